"""Debian's sshd on a loopback port, with keys and configuration of its own, and the ssh that a client finds first."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch_testing.machine import Machine, free_port

SSHD = "/usr/sbin/sshd"


class SshServer:
    """A host that is this one by another way: root may log in with the key that `env` knows.

    bin: what its users have as commands; `install` puts programs there.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.base = machine.base / "ssh"
        self.bin = self.base / "bin"
        self.port = free_port()
        self.host = f"ssh://root@127.0.0.1:{self.port}"
        self.known = self.base / "known_hosts"
        for directory in (self.bin, self.base / "near"):
            directory.mkdir(parents=True)
        for name in ("host", "user"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.base / name)]
            subprocess.run(words, check=True)
        self.trust((self.base / "host.pub").read_text())
        _program(
            self.base / "shell",
            f'export PATH={self.bin} DOCKER_HOST=unix://{machine.socket}\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n',
        )
        (self.base / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.base}/host\nAuthorizedKeysFile {self.base}/user.pub\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nForceCommand {self.base}/shell\n"
        )
        (self.base / "ssh_config").write_text(
            f"IdentityFile {self.base}/user\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking yes\n"
            f"UserKnownHostsFile {self.known}\n"
        )
        ssh = shutil.which("ssh")
        _program(self.base / "near" / "ssh", f'exec {ssh} -F {self.base}/ssh_config "$@"\n')
        self.install("sh", "/bin/sh")

    @property
    def env(self) -> dict[str, str]:
        """For clients that are far from the engine: nothing but ssh leads there."""
        env = {**self.machine.env, "DOCKER_HOST": self.host}
        return {**env, "PATH": f"{self.base / 'near'}:{env['PATH']}"}

    def install(self, name: str, program: str) -> None:
        """`name` on the far side is `program`."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).symlink_to(program)

    def trust(self, key: str) -> None:
        """The one host key that the client knows."""
        self.known.write_text(f"[127.0.0.1]:{self.port} {key}")

    def logins(self) -> int:
        """How often somebody logged in."""
        return (self.base / "log").read_text().count("Accepted publickey")


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)


@contextlib.contextmanager
def ssh_server(machine: Machine) -> Iterator[SshServer]:
    """Started, and ended afterwards: nobody logs in any more. Skips where sshd or ssh is missing."""
    for program, package in ((SSHD, "openssh-server"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install {package})")
    os.makedirs("/run/sshd", exist_ok=True)  # sshd's empty root, which its service makes where there is one
    server = SshServer(machine)
    with (server.base / "log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(server.base / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port), 1) as probe,
            ):
                if probe.recv(4) == b"SSH-":
                    break
            if time.monotonic() > deadline or process.poll() is not None:
                raise AssertionError(f"sshd does not start:\n{(server.base / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(server.base, ignore_errors=True)
