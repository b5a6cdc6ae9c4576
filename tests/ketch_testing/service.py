"""ketchd as a service of systemd: the units of `systemd/`, installed for the time of a test, below /run."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ketch_testing.machine import BIN, Machine

UNITS = Path("/run/systemd/system")
SOURCE = Path(__file__).parents[2] / "systemd"
SCOPE = Path("/sys/fs/cgroup/ketch.slice/ketchd-containers.scope")
INSTALLED = ("ketchd.service", "ketchd.socket", "ketch.slice")
PATIENCE_SECONDS = 300


def missing() -> str:
    """What this host lacks for a service on version 2 cgroups; "" when it lacks nothing."""
    if os.geteuid() != 0:
        return "root"
    if not Path("/run/systemd/system").is_dir():
        return "systemd as process 1"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "cgroup version 2 alone, at /sys/fs/cgroup"
    if not Path("/bin/busybox").exists():
        return "busybox (apt-get install busybox-static)"
    if systemctl("show", "-P", "LoadState", "ketchd.service") != "not-found":
        return "a host without a ketchd of its own: there is a ketchd.service here"
    return ""


def systemctl(*words: str) -> str:
    """What it prints. Raises AssertionError with its complaint."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.returncode} {done.stderr}"
    return done.stdout.strip()


def shown(unit: str, name: str) -> str:
    """A property of a unit."""
    return systemctl("show", "-P", name, unit)


def cgroup_of(pid: int) -> str:
    """A process's version 2 cgroup."""
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


class Service(Machine):
    """The units as they are, with a drop-in that says where ketchd lies and gives it directories of its own below `base`."""

    patience = 300.0  # a first request may start the daemon, and a machine in software emulation is slow

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.socket = Path("/run/ketch.sock")
        self._made_group = False

    @property
    def pid(self) -> int:
        """The daemon's process, 0 while there is none."""
        return int(shown("ketchd.service", "MainPID"))

    def install(self) -> None:
        """Units and group. Starts nothing but the socket."""
        self._made_group = "ketch" not in {one.gr_name for one in grp.getgrall()}
        subprocess.run(["systemd-sysusers", str(SOURCE / "ketch.sysusers")], check=True, capture_output=True)
        subprocess.run(
            ["systemd-tmpfiles", "--create", str(SOURCE / "ketch.tmpfiles")], check=True, capture_output=True
        )
        for name in INSTALLED:
            shutil.copy(SOURCE / name, UNITS / name)
        drop_in = UNITS / "ketchd.service.d" / "test.conf"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(
            f"[Service]\nExecStart=\nExecStart={BIN}/ketchd -H fd:// --data-root {self.data_root} "
            f"--exec-root {self.exec_root} --pidfile {self.base}/ketchd.pid --bridge {self.bridge} "
            f"--config-file {self.base}/daemon.json\nStandardError=append:{self.log}\n"
        )
        self.log.touch()
        systemctl("daemon-reload")
        systemctl("start", "ketchd.socket")

    def systemctl_and_wait(self, *words: str) -> None:
        """A command that ends the daemon and lets systemd start another; returns when that one answers."""
        before = self.pid
        systemctl(*words)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.pid in (0, before) or shown("ketchd.service", "ActiveState") != "active":
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def restart(self) -> None:
        """Returns when it is ready. Raises AssertionError with its log."""
        try:
            systemctl("restart", "ketchd.service")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}") from None

    def stop(self) -> int:
        """Socket and service, so that nothing starts it again."""
        systemctl("stop", "ketchd.socket", "ketchd.service")
        return 0

    def kill(self) -> None:
        """Nothing: the daemon is systemd's."""

    def run(self, *argv: str, timeout: float = 300, **more: Any) -> subprocess.CompletedProcess[str]:
        """As Machine's, with more patience."""
        return super().run(*argv, timeout=timeout, **more)

    def close(self) -> None:
        """Remove every container, then all that `install` made."""
        try:
            if self.pid and self.socket.exists():
                for row in self.json("GET", "/containers/json?all=1"):
                    self.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
        finally:
            with contextlib.suppress(AssertionError):  # what does not stop is found by `leftovers`
                self.stop()
            self._end_strays()
            for name in INSTALLED:
                (UNITS / name).unlink(missing_ok=True)
            self.socket.unlink(missing_ok=True)  # systemd leaves the file of a socket that it closes
            shutil.rmtree(UNITS / "ketchd.service.d", ignore_errors=True)
            systemctl("daemon-reload")
            with contextlib.suppress(AssertionError):
                systemctl("stop", "ketch.slice")
            if self._made_group:
                subprocess.run(["groupdel", "ketch"], check=False, capture_output=True)
            shutil.rmtree(self.base, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """And the scope, loop devices, and mounts in anybody's namespace."""
        found = super().leftovers()
        deadline = time.monotonic() + 20  # systemd takes an empty scope away when it gets to it
        while SCOPE.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        found += [f"cgroup {one}" for one in (SCOPE, Path("/sys/fs/cgroup/docker")) if one.exists()]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if str(self.base) in (text := backing.read_text().strip()):
                    found.append(f"loop device {backing.parts[3]}: {text}")
        return found + ([f"socket {self.socket}"] if self.socket.exists() else [])
