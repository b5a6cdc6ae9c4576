"""--userns-remap on real containers: whose ids are where, what is kept from the host, what the daemon refuses at its start."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.clients import Client
from ketch_testing.consistency import differences
from ketch_testing.machine import BIN, Machine, running
from ketchd.containers import idmapjob
from ketchd.engine import remapping
from ketchd.kernel import detached
from ketchd.kernel.mounts import MS_PRIVATE
from ketchd.kernel.namespaces import CLONE_NEWNS, unshare
from ketchd.kernel.ownroot import take_root

pytestmark = [needs_root, pytest.mark.root]
FIRST, COUNT = 231072, 65536
REFUSED = "the kernel shows no idmapped layers here"


@pytest.fixture(scope="module")
def subordinate() -> Iterator[None]:
    """root has ids in /etc/subuid and /etc/subgid for the module's time."""
    before = {
        path: path.read_bytes() if path.exists() else None for path in (remapping.SUBUID, remapping.SUBGID)
    }
    try:
        for path, content in before.items():
            others = [line for line in (content or b"").splitlines() if not line.startswith(b"root:")]
            path.write_bytes(b"\n".join([*others, f"root:{FIRST}:{COUNT}\n".encode()]))
        yield
    finally:
        for path, content in before.items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)


@pytest.fixture(scope="module")
def remapped(subordinate: None) -> Iterator[Client]:
    """`ketch` against a ketchd with --userns-remap root."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(running(flags=("--userns-remap", "root")))
        except AssertionError as error:
            if REFUSED in str(error):
                pytest.skip(str(error).strip().splitlines()[-1])
            raise
        import_busybox(made)
        yield Client(made, str(BIN / "ketch"))


@pytest.fixture
def ketch(remapped: Client) -> Iterator[Client]:
    """Containers that the test leaves are removed, and nothing else stays."""
    yield remapped
    for row in remapped.machine.json("GET", "/containers/json?all=1"):
        remapped.machine.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
    deadline = time.monotonic() + 10  # a removal is answered before the last of the directory is gone
    while (left := differences(remapped.machine)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_root_inside_is_nobody_outside(ketch: Client) -> None:
    """Root with its usual capabilities inside, an unprivileged id on the host; every namespace is its own."""
    got = ketch.inside(
        script="id -u; cat /proc/self/uid_map /proc/self/gid_map; grep CapEff /proc/self/status"
    )
    assert got.split() == ["0", *["0", str(FIRST), str(COUNT)] * 2, "CapEff:", "00000000a80425fb"]
    ketch("run", "-d", "--name", "one", "-u", "user", "busybox", "sleep", "3600")
    pid = ketch.inspect("one")["State"]["Pid"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["Uid"].split()) == {str(FIRST + 1000)} and set(status["Gid"].split()) == {
        str(FIRST + 1000)
    }
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert "name=userns" in ketch.machine.json("GET", "/info")["SecurityOptions"]


def test_files(ketch: Client) -> None:
    """The image's owners inside, and the same ids on the disk: layers, what is written, volumes."""
    script = "stat -c '%u:%g' /bin/busybox /etc/passwd /etc/hosts; touch /mine; chown user /mine; stat -c %u /mine; echo x > /etc/hosts; touch /v/file; mkdir /d && rm -r /home && echo well"
    ketch("create", "--name", "files", "-v", "vol:/v", "busybox", "sh", "-c", script)
    assert ketch("start", "-a", "files").split() == ["0:0", "0:0", "0:0", "1000", "well"]
    container = ketch.inspect("files")
    upper = ketch.machine.data_root / "containers" / container["Id"] / "upper"
    assert os.stat(upper / "mine").st_uid == 1000
    assert stat.S_ISCHR(os.stat(upper / "home").st_mode)
    assert os.stat(Path(container["Mounts"][0]["Source"]) / "file").st_uid == 0
    assert sorted(ketch("diff", "files").splitlines()) == ["A /d", "A /mine", "A /v", "D /home"]
    ketch("commit", "files", "kept")
    assert (
        ketch.inside(script="stat -c %u /mine; ls -d /home 2>&1; true", image="kept")
        == "1000\nls: /home: No such file or directory"
    )
    ketch("rmi", "-f", "kept")
    ketch("rm", "files")
    ketch("volume", "rm", "vol")


def test_binds_of_the_host_are_not_shifted(ketch: Client, tmp_path: Path) -> None:
    """What is the host's stays the host's: its root is nobody inside."""
    (tmp_path / "roots").write_text("x")
    (tmp_path / "ours").write_text("x")
    tmp_path.chmod(0o755)
    (tmp_path / "roots").chmod(0o600)
    os.chown(tmp_path / "ours", FIRST + 5, FIRST + 5)
    got = ketch.inside(
        "-v",
        f"{tmp_path}:/b",
        script="stat -c %u /b/roots /b/ours; (cat /b/roots; touch /b/new; chown 0 /b/roots) 2>&1; true",
    )
    lines = got.splitlines()
    assert lines[:2] == ["65534", "5"]
    assert all("denied" in line or "permitted" in line for line in lines[2:]) and len(lines) == 5
    assert not (tmp_path / "new").exists()


def test_streams_and_execs(ketch: Client) -> None:
    """/dev/stdout can be opened again, a terminal belongs to the user, execs are in the same namespaces."""
    assert ketch.inside("-u", "user", script="echo through > /dev/stdout") == "through"
    assert (
        ketch("run", "--rm", "-t", "busybox", "sh", "-c", "tty; stat -c %u /dev/pts/0")
        == "/dev/pts/0\r\n0\r\n"
    )
    ketch("run", "-d", "--name", "one", "--init", "busybox", "sleep", "3600")
    script = "for n in user pid mnt net; do readlink /proc/self/ns/$n; done; id -u; touch /made; ps | grep -c sleep"
    inside = ketch("exec", "one", "sh", "-c", script).split()
    assert inside[4] == "0" and int(inside[5]) >= 1
    pid = ketch.inspect("one")["State"]["Pid"]
    assert inside[0] == os.readlink(f"/proc/{pid}/ns/user")
    assert ketch("exec", "-u", "user", "one", "id", "-G") == "1000 2000\n"
    assert ketch("exec", "-i", "one", "cat", stdin=b"in\n") == "in\n"
    ketch("stop", "one")
    assert ketch.inspect("one")["State"]["ExitCode"] == 143


def test_copies_into_and_out_of_a_running_container(ketch: Client, tmp_path: Path) -> None:
    """cp both ways with the container's ids, export as well."""
    ketch("run", "-d", "--name", "one", "-u", "root", "busybox", "sleep", "3600")
    (tmp_path / "file").write_text("content")
    os.chown(tmp_path / "file", 1000, 1000)
    ketch("cp", str(tmp_path / "file"), "one:/tmp/file")
    assert ketch("exec", "one", "stat", "-c", "%u:%g", "/tmp/file") == "1000:1000\n"
    ketch("exec", "one", "sh", "-c", "echo back > /back; chown 1000:2000 /back")
    ketch("cp", "-a", "one:/back", str(tmp_path / "back"))
    info = os.stat(tmp_path / "back")
    assert (info.st_uid, info.st_gid, (tmp_path / "back").read_text()) == (1000, 2000, "back\n")
    listing = ketch.machine.run("sh", "-c", f"{ketch.program} export one | tar -tvf - --numeric-owner").stdout
    assert any("1000/2000" in line and line.endswith(" back") for line in listing.splitlines())


def test_limits_network_and_sysctls(ketch: Client) -> None:
    """Cgroups, a bridge, sysctls of the container's own namespaces and devices work as without a remap."""
    got = ketch.inside(
        "--memory", "32m", "--pids-limit", "50", "--sysctl", "net.core.somaxconn=99", "--device", "/dev/zero:/dev/nought",
        "--tmpfs", "/t:uid=1000", "--shm-size", "1m", "-h", "box", "--read-only",
        script="cat /proc/sys/net/core/somaxconn; hostname; head -c1 /dev/nought | wc -c; stat -c %u /t; ping -c1 -w5 $(ip route | awk '/default/ {print $3}') >/dev/null && echo reached",
    )  # fmt: skip
    assert got.split() == ["99", "box", "1", "1000", "reached"]
    assert "permitted" in ketch.inside(script="busybox mknod /tmp/x c 1 1 2>&1; true")
    assert (
        ketch.says(
            "run", "--rm", "--memory", "16m", "--memory-swap", "16m", "busybox", "tail", "/dev/zero", code=137
        )
        == ""
    )


def test_host_is_an_exception(ketch: Client) -> None:
    """--userns host: no namespace of its own, and then everything is allowed that is without a remap."""
    assert ketch.inside(
        "--userns", "host", "--privileged", script="readlink /proc/self/ns/user"
    ) == os.readlink("/proc/self/ns/user")
    # the same writable layer, without and with it
    ketch("run", "--name", "both", "--userns", "host", "busybox", "sh", "-c", "touch /by-root")
    assert ketch.inside("--userns", "host", "--network", "host", script="echo well") == "well"
    for option, words in (
        (("--privileged",), "privileged mode is incompatible with user namespaces"),
        (("--network", "host"), "cannot share the host's network namespace when user namespaces are enabled"),
        (("--pid", "host"), "cannot share the host PID namespace when user namespaces are enabled"),
    ):
        assert words in ketch.says("run", "--rm", *option, "busybox", "true", code=125)


SHARED = {"network": ("net", "uts"), "pid": ("pid",), "ipc": ("ipc",)}
LOOK = "cd /proc/self/ns; for kind in user net uts pid ipc mnt cgroup; do echo $kind $(readlink $kind); done"


def namespaces(printed: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in printed.splitlines())


@pytest.mark.parametrize("kinds", [("network",), ("pid",), ("ipc",), ("network", "pid", "ipc")])
def test_another_containers_namespaces(ketch: Client, kinds: tuple[str, ...]) -> None:
    """Joined with the user namespace that owns them; the rest is its own, and root inside is still nobody outside."""
    ketch("run", "-d", "--name", "donor", "--ipc", "shareable", "busybox", "sleep", "3600")
    ketch("exec", "donor", "sh", "-c", "echo kept > /dev/shm/file")
    donor = namespaces(ketch("exec", "donor", "sh", "-c", LOOK))
    options = [word for kind in kinds for word in (f"--{kind}", "container:donor")]
    ketch("run", "-d", "--name", "guest", *options, "busybox", "sleep", "3601")
    pid = ketch.inspect("guest")["State"]["Pid"]
    seen = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in donor}
    shared = {"user", *(name for kind in kinds for name in SHARED[kind])}
    assert {kind for kind in donor if seen[kind] == donor[kind]} - {"cgroup"} == shared
    assert Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split()[0] == str(FIRST)
    # An exec goes where its container is, and files are shifted as everywhere.
    assert {**namespaces(ketch("exec", "guest", "sh", "-c", LOOK)), "cgroup": ""} == {**seen, "cgroup": ""}
    assert ketch("exec", "guest", "sh", "-c", "touch /mine && stat -c %u /mine /bin/busybox") == "0\n0\n"
    processes = ketch("exec", "guest", "ps")
    assert ("sleep 3600" in processes) == ("pid" in kinds) and "sleep 3601" in processes
    if "network" in kinds:
        address = "ip -4 addr show eth0 | grep inet"
        assert ketch("exec", "guest", "sh", "-c", address) == ketch("exec", "donor", "sh", "-c", address)
    if "ipc" in kinds:
        assert ketch("exec", "guest", "cat", "/dev/shm/file") == "kept\n"
    assert ketch.inside("--network", "container:guest", script="echo third") == "third"
    ketch("rm", "-f", "guest")
    assert ketch("exec", "donor", "echo", "unharmed") == "unharmed\n"


def test_namespaces_that_cannot_be_shared(ketch: Client) -> None:
    """Those of two user namespaces, and those of the host's: one line says why, and nothing stays."""
    ketch("run", "-d", "--name", "one", "busybox", "sleep", "3600")
    ketch("run", "-d", "--name", "two", "busybox", "sleep", "3600")
    ketch("run", "-d", "--name", "plain", "--userns", "host", "busybox", "sleep", "3600")
    said = ketch.says(
        "run", "--rm", "--network", "container:one", "--pid", "container:two", "busybox", "true", code=125
    )
    assert "cannot share namespaces of several containers" in said
    said = ketch.says("run", "--rm", "--network", "container:plain", "busybox", "true", code=125)
    assert "another user namespace mapping" in said
    assert ketch.inside("--userns", "host", "--network", "container:one", script="echo well") == "well"


def test_builds_run_in_it(ketch: Client, tmp_path: Path) -> None:
    """A build step is in a user namespace too, and its layer has the container's ids."""
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN cat /proc/self/uid_map > /map && touch /u && chown 1000 /u\n"
    )
    ketch("build", "-q", "-t", "built", str(tmp_path))
    assert ketch.inside(script="cat /map; stat -c %u /u", image="built").split() == [
        "0",
        str(FIRST),
        str(COUNT),
        "1000",
    ]
    ketch("rmi", "-f", "built")


def test_survives_the_daemon(ketch: Client) -> None:
    """Killed and started again, ketchd finds the container, and execs work."""
    ketch("run", "-d", "--name", "one", "busybox", "sleep", "3600")
    ketch.machine.kill()
    ketch.machine.start()
    assert ketch("exec", "one", "id", "-u") == "0\n"
    ketch("rm", "-f", "one")


def test_cve_2021_21284(ketch: Client) -> None:
    """The remapped root, as which a container's root acts on the host, can neither write nor enter the engine's directories."""
    ketch("run", "-d", "--name", "one", "-v", "vol:/v", "busybox", "sleep", "3600")
    container = ketch.inspect("one")
    root = ketch.machine.data_root
    assert stat.S_IMODE(root.stat().st_mode) == 0o710 and root.stat().st_gid == 0
    paths = [
        root, root / "containers", root / "containers" / container["Id"], root / "containers" / container["Id"] / "upper",
        root / "layers", root / "catalogue.sqlite", Path(container["Mounts"][0]["Source"]),
        ketch.machine.exec_root / "containers" / container["Id"],
    ]  # fmt: skip
    for path in paths:
        info = path.stat()
        assert not FIRST <= info.st_uid < FIRST + COUNT and not FIRST <= info.st_gid < FIRST + COUNT, path
        assert not info.st_mode & 0o002, path
    ketch.machine.base.chmod(0o755)
    assert as_user(FIRST, lambda: os.listdir(root)) == "PermissionError"
    assert (
        as_user(FIRST, lambda: (root / "containers" / container["Id"] / "upper" / "x").touch())
        == "PermissionError"
    )
    # a set-user-id file made inside is no host user's way to root: its directory cannot be entered
    ketch("exec", "one", "sh", "-c", "cp /bin/busybox /root-shell && chmod 4755 /root-shell")
    upper = root / "containers" / container["Id"] / "upper" / "root-shell"
    assert upper.stat().st_mode & stat.S_ISUID
    assert as_user(65534, lambda: upper.stat()) == "PermissionError"
    ketch("rm", "-f", "one")
    ketch("volume", "rm", "vol")


def as_user(uid: int, action: Callable[[], object]) -> str:
    """The name of what `action` raises in a process of the user, or ""."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            action()
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as told:
        said = told.read()
    os.waitpid(child, 0)
    return said


class _Port:
    """As much of a layer worker's port as the trial asks for. scratch: a place to mount at."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.scratch = lambda: str(place)


def test_layers_are_shown_shifted_by_kernels_before_6_5_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no `lowerdir+` and no overlay without a place (Debian 12's 6.1): the trial of the start takes the old way."""
    newer = detached.fsmount

    def older(fstype: str, *more: Any) -> int:
        if fstype == "overlay":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), fstype)
        return newer(fstype, *more)

    monkeypatch.setattr(detached, "fsmount", older)
    ids = [[0, FIRST, COUNT]]
    reader, writer = os.pipe()
    child = os.fork()  # for a mount namespace of its own
    if child == 0:
        try:
            unshare(CLONE_NEWNS)
            take_root(MS_PRIVATE)
            arguments = {"stage": str(tmp_path), "uids": ids, "gids": ids}
            idmapjob.probe(arguments, _Port(tmp_path / "place"))  # type: ignore[arg-type]
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as told:
        said = told.read()
    os.waitpid(child, 0)
    if REFUSED in said and "idmap" in said:
        pytest.skip(said)  # the file system of the test's directory has no idmapped mounts
    assert said == ""


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("nosuchuser", "there is no user nosuchuser"),
        ("nobody:nosuchgroup", "there is no group nosuchgroup"),
        ("nobody:nogroup", "no subordinate ids for nobody in /etc/subuid"),
        (":x", "default, USER or USER:GROUP is expected"),
    ],
)
def test_refused_at_start(subordinate: None, tmp_path: Path, setting: str, words: str) -> None:
    """One line that says what is missing; nothing starts."""
    made = Machine(tmp_path / "m", flags=("--userns-remap", setting))
    try:
        with pytest.raises(AssertionError) as failure:
            made.start()
        last = str(failure.value).strip().splitlines()[-1]
        assert words in last and last.startswith("ketchd: ")
    finally:
        made.close()
        made.leftovers()


def test_info_without_a_remap(machine: Machine) -> None:
    assert "name=userns" not in json.dumps(machine.json("GET", "/info")["SecurityOptions"])
