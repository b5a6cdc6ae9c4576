"""An upgrade of ketchd: a shim of one version meets a ketchd of another, and everything that is asked of a container still works."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

import ketch_wire
import ketchd
from ketch_testing.clients import Client
from ketch_testing.machine import BIN, Machine
from ketch_testing.waiting import until
from ketch_wire.frames import FrameReader
from ketch_wire.shim import PROTOCOL_VERSION

pytestmark = [needs_root, pytest.mark.root]
SCRIPT = "echo started; while [ ! -e /go ]; do sleep 0.05; done; echo ending; exit 7"


class Versions:
    """One machine, run by copies of the packages whose protocols differ."""

    def __init__(self, base: Path) -> None:
        self.machine = Machine(base / "m")
        self.ketch = Client(self.machine, str(BIN / "ketch"))
        self._base = base

    def start(self, version: int, *edits: tuple[str, str, str]) -> None:
        """Start ketchd as of protocol `version`. edits: (file of ketchd, text, other text)."""
        packages = self._base / f"version-{version}"
        if not packages.exists():
            for package in (ketchd, ketch_wire):
                source = Path(package.__path__[0])
                shutil.copytree(source, packages / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            self._edit(
                packages / "ketch_wire/shim.py",
                f"PROTOCOL_VERSION = {PROTOCOL_VERSION}\n",
                f"PROTOCOL_VERSION = {version}\n",
            )
            for name, text, other in edits:
                self._edit(packages / "ketchd" / name, text, other)
        self.machine.start(packages=packages)

    @staticmethod
    def _edit(path: Path, text: str, other: str) -> None:
        content = path.read_text()
        assert text in content, f"{path} has no {text!r}"
        path.write_text(content.replace(text, other))

    def hello(self, container: str) -> dict[str, object]:
        """What the container's shim says to somebody who connects. The daemon must be down: it would lose its own link."""
        reader = FrameReader()
        directory = os.open(self.machine.exec_root / "containers" / container, os.O_PATH | os.O_DIRECTORY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(f"/proc/self/fd/{directory}/shim.sock")  # the whole path is too long for one
            os.close(directory)
            link.settimeout(30)
            while True:
                for message in reader.feed(link.recv(65536)):
                    return dict(message)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait; the daemon's log says why it does not come about."""
        until(holds, told=lambda: self.machine.log.read_text()[-3000:])


@pytest.fixture
def versions() -> Iterator[Versions]:
    base = Path(tempfile.mkdtemp(prefix="ketch-up-"))
    made = Versions(base)
    try:
        yield made
    finally:
        if made.machine.process is None:
            made.machine.start()
        made.machine.close()
        shutil.rmtree(base, ignore_errors=True)
    assert made.machine.leftovers() == []


def everything_works(versions: Versions, name: str) -> None:
    """State, logs, exec, attach, pause, stats, the end with its code and its last words."""
    ketch = versions.ketch
    assert ketch.inspect(name)["State"]["Status"] == "running"
    assert ketch("logs", name) == "started\n"
    assert ketch("exec", "-i", name, "cat", stdin=b"through exec") == "through exec"
    ketch("exec", name, "sh", "-c", "exit 5", code=5)
    assert "executable file not found" in ketch("exec", name, "nosuch", code=127)
    ketch("pause", name)
    assert ketch.inspect(name)["State"]["Paused"] is True
    ketch("unpause", name)
    assert ketch("top", name).count("\n") >= 2
    ketch("exec", name, "touch", "/go")
    assert ketch("wait", name) == "7\n"
    assert ketch("logs", name) == "started\nending\n"


@pytest.mark.parametrize(
    ("old", "new"), [(PROTOCOL_VERSION, PROTOCOL_VERSION + 1), (PROTOCOL_VERSION + 1, PROTOCOL_VERSION)]
)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_another_version_takes_over(versions: Versions, old: int, new: int, end: str) -> None:
    """An old shim meets a new daemon, and a new shim an old one (a downgrade)."""
    versions.start(old)
    import_busybox(versions.machine)
    ketch = versions.ketch
    container = ketch("run", "-d", "--name", "one", "busybox", "sh", "-c", SCRIPT).strip()
    ketch("run", "-d", "--name", "two", "-t", "busybox", "sleep", "3600")
    versions.until(lambda: ketch("logs", "one") == "started\n")
    pid = ketch.inspect("one")["State"]["Pid"]
    if end == "stop":
        versions.machine.stop()
    else:
        versions.machine.kill()
    assert versions.hello(container)["version"] == old

    versions.start(new)

    assert ketch.inspect("one")["State"]["Pid"] == pid
    everything_works(versions, "one")
    ketch("stop", "-t", "0", "two")
    assert ketch.inspect("two")["State"]["ExitCode"] == 137
    if old > new:
        assert re.search(rf"shim of a newer ketchd.*version={old}", versions.machine.log.read_text())
    # what is started from now on has a shim of the version that runs
    ketch("start", "two")
    container = ketch.inspect("two")["Id"]
    versions.machine.stop()
    assert versions.hello(container)["version"] == new
    versions.start(new)
    ketch("rm", "-f", "one", "two")


def test_an_end_between_two_versions(versions: Versions) -> None:
    """It ends while no ketchd runs: the other version reads the exit record."""
    versions.start(PROTOCOL_VERSION)
    import_busybox(versions.machine)
    ketch = versions.ketch
    ketch("run", "-d", "--name", "one", "busybox", "sh", "-c", SCRIPT)
    pid = ketch.inspect("one")["State"]["Pid"]
    versions.machine.stop()
    Path(f"/proc/{pid}/root/go").touch()
    versions.until(lambda: not Path(f"/proc/{pid}/root/go").exists())

    versions.start(PROTOCOL_VERSION + 1)

    state = ketch.inspect("one")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    assert ketch("logs", "one") == "started\nending\n"


def test_a_shim_that_hears_of_no_oom_before_the_end(versions: Versions) -> None:
    """One of before `oom` was told at once: its end tells it, once."""
    versions.start(
        PROTOCOL_VERSION,
        ("shim/shim.py", 'self._say({"event": "oom", ', 'self._warn("") or dict({"event": "oom", '),
        ("shim/shim.py", '"ooms": self._ooms.count if self._ooms is not None else 0,\n', "\n"),
        ("shim/shim.py", '"oom": ooms > 0, "ooms": ooms,', '"oom": ooms > 0,'),
        ("shim/exits.py", '"ooms": int(ooms),', ""),
    )
    import_busybox(versions.machine)
    ketch = versions.ketch
    started = time.time()
    for name in ("one", "two"):
        ketch("run", "-d", "--name", name, "--memory", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", f"tail /dev/zero; {SCRIPT}")  # fmt: skip
    versions.until(lambda: ketch("logs", "one") == ketch("logs", "two") == "started\n")
    pid = ketch.inspect("two")["State"]["Pid"]
    versions.machine.kill()
    versions.start(PROTOCOL_VERSION + 1)
    ketch("exec", "one", "touch", "/go")
    assert ketch("wait", "one") == "7\n"
    versions.machine.kill()
    Path(f"/proc/{pid}/root/go").touch()
    versions.until(lambda: not Path(f"/proc/{pid}/root/go").exists())
    versions.start(PROTOCOL_VERSION + 1)

    assert ketch("wait", "two") == "7\n"
    for name in ("one", "two"):
        assert ketch.inspect(name)["State"]["OOMKilled"] is True
        told = ketch("events", "--since", f"{started:.9f}", "--until", f"{time.time():.9f}", "--filter", f"container={name}",
                     "--filter", "event=oom", "--filter", "event=die", "--format", "{{.Action}}")  # fmt: skip
        assert told == "oom\ndie\n"


def test_a_request_that_the_shim_does_not_know(versions: Versions) -> None:
    """A newer ketchd asks for something new: the shim says so and goes on; so does the container."""
    versions.start(PROTOCOL_VERSION)
    import_busybox(versions.machine)
    ketch = versions.ketch
    ketch("run", "-d", "--name", "one", "-t", "busybox", "sh", "-c", SCRIPT)
    versions.until(lambda: ketch("logs", "one") == "started\r\n")
    versions.machine.stop()
    versions.start(
        PROTOCOL_VERSION + 1,
        ("containers/shimlink.py", '{"op": "resize", ', '{"op": "reshape", "of": {"new": [1]}, '),
    )

    status, answer = versions.machine.request("POST", "/containers/one/resize?h=10&w=20")

    assert status == 500 and b"does not know 'reshape'" in answer
    ketch("exec", "one", "touch", "/go")
    assert ketch("wait", "one") == "7\n"
