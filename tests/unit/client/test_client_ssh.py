"""Addresses of engines behind ssh, what ssh is given, and what is said of its failures."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from ketch.faults import CommandFailed
from ketch.sshlink import MISSING, Target, explain, parse


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("ssh://foo", Target("", "foo", "", "")),
        ("ssh://foo/", Target("", "foo", "", "")),
        ("ssh://me@Foo:10022", Target("me", "Foo", "10022", "")),
        ("ssh://me%40corp@foo", Target("me@corp", "foo", "", "")),
        ("ssh://[::1]:22/run/a%20b.sock", Target("", "::1", "22", "/run/a b.sock")),
    ],
)
def test_addresses(address: str, target: Target) -> None:
    assert parse(address) == target


INVALID = "ssh host connection is not valid: invalid SSH URL: "


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ssh://me:passw0rd@foo", f"{INVALID}plain-text password is not supported"),
        ("ssh://foo?bar", f'{INVALID}query parameters are not allowed: "bar"'),
        ("ssh://foo#bar", f'{INVALID}fragments are not allowed: "bar"'),
        ("ssh://", f"{INVALID}hostname is empty"),
        ("ssh://me@", f"{INVALID}hostname is empty"),
        ("ssh://foo:99999", 'parse "ssh://foo:99999": invalid port ":99999" after host'),
        ("ssh://foo:x", 'parse "ssh://foo:x": invalid port ":x" after host'),
        ("ssh://[::1", "parse \"ssh://[::1\": missing ']' in host"),
    ],
)
def test_addresses_that_are_none(address: str, words: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        parse(address)
    assert caught.value.message == words


def test_what_ssh_is_given() -> None:
    *options, host, command = Target("me", "-oProxyCommand=x", "22", "").arguments()
    assert options == ["-o", "ConnectTimeout=30", "-T", "-l", "me", "-p", "22", "--"]
    assert host == "-oProxyCommand=x"  # a host, behind the end of the options
    shell, flag, script = shlex.split(command.removeprefix("exec "))
    assert (shell, flag) == ("sh", "-c")
    assert "exec $c system dial-stdio;" in script


def test_a_socket_s_name_is_one_word_there() -> None:
    command = Target("", "h", "", "/a b'; touch x; '").arguments()[-1].removeprefix("exec ")
    shown = command.replace("for c in ketch docker", "for c in echo")
    done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "--host unix:///a b'; touch x; ' system dial-stdio\n"


def test_neither_is_there() -> None:
    command = Target("", "h", "", "").arguments()[-1].replace("ketch docker;", "nosuch1 nosuch2;")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (127, f"{MISSING}\n")


CHANGED = """@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (255, "ssh: connect to host h port 22: Connection refused\r\n", "connect to host h port 22: Connection refused"),
        (255, "Welcome!\n\nme@h: Permission denied (publickey).\n", "me@h: Permission denied (publickey)"),
        (255, CHANGED, "Host key verification failed: the key of h has changed; if that is right, ssh-keygen -R 'h'"),
        (255, "Host key verification failed.\n", "Host key verification failed"),
        (255, "", "EOF"),
        (0, "", "EOF"),
        (1, "", "EOF (exit status 1)"),
    ],
)  # fmt: skip
def test_one_line_for_each_failure(code: int, said: str, told: str) -> None:
    assert explain("ssh://h", code, said, "EOF") == f"error during connect: ssh://h: {told}"
