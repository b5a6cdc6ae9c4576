"""Flags of `run` about files: binds, volumes, tmpfs, /dev/shm, the root. Looked at from inside, by both clients."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import BIN, Machine

pytestmark = [needs_root, pytest.mark.root]


def mount_of(text: str, point: str) -> list[str]:
    """(mount options, tags, type, filesystem's options) of the last mount at `point` in a mountinfo text."""
    lines = [line.split() for line in text.splitlines() if " - " in line]
    rows = [line for line in lines if line[4] == point]
    assert rows, f"nothing is mounted at {point}:\n{text}"
    row = rows[-1]
    dash = row.index("-")
    return [row[5], " ".join(row[6:dash]), row[dash + 1], row[dash + 3]]


def test_bind(client: Client, tmp_path: Path) -> None:
    """-v: both ways; ro; a missing source is made a directory; a file on a file."""
    (tmp_path / "file").write_text("from outside\n")
    got = client.inside(
        "-v", f"{tmp_path}:/data", "-v", f"{tmp_path}/file:/etc/motd:ro", "-v", f"{tmp_path}/made:/made",
        script="cat /etc/motd; echo x > /etc/motd; echo from inside > /data/new; ls -d /made; cat /proc/self/mountinfo",
    )  # fmt: skip
    assert got.startswith("from outside\n/made\n")
    assert (tmp_path / "new").read_text() == "from inside\n"
    assert (tmp_path / "made").is_dir() and (tmp_path / "file").read_text() == "from outside\n"
    assert mount_of(got, "/etc/motd")[0].startswith("ro,") and mount_of(got, "/data")[0].startswith("rw,")


def test_the_hosts_proc(client: Client) -> None:
    """-v /proc:/proc, with the masks of a new one; nothing but a procfs may lie there."""
    script = (
        "cat /proc/self/mountinfo; readlink /proc/self; cat /proc/keys; echo x > /proc/sys/kernel/hostname"
    )
    for flags in (["-v", "/proc:/proc"], ["--mount", "type=bind,source=/proc,target=/proc"]):
        got = client.machine.run(
            client.program, "run", "--rm", *flags, "busybox", "sh", "-c", script, check=False
        )
        *lines, number = got.stdout.splitlines()
        assert mount_of("\n".join(lines), "/proc")[2] == "proc" and int(number) > 2
        assert "Read-only file system" in got.stderr and got.returncode == 1
    assert client.inside("-v", "/proc:/proc:ro", script="grep ' /proc ' /proc/mounts").split()[3][:2] == "ro"
    said = client.says("run", "--name", "it", "-v", "/tmp:/proc", "busybox", "true", code=125)
    words = 'error mounting "/tmp" to rootfs at "/proc": "/proc" cannot be mounted because it is not of type proc: unknown'
    assert f"error during container init: {words}" in said
    state = client.inspect("it")["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 128) and words in state["Error"]


def test_an_images_relative_volume(client: Client) -> None:
    """`VOLUME data` is /data, filled from the image."""
    client("create", "--name", "it", "busybox")
    client("commit", "-c", "VOLUME tmp/../data etc", "it", "volumes")
    client("rm", "it")
    got = client.inside(script="cat /proc/self/mountinfo; ls /etc/group", image="volumes")
    assert mount_of(got, "/data")[0].startswith("rw,") and mount_of(got, "/etc")[0].startswith("rw,")
    assert got.endswith("/etc/group")
    client("rmi", "volumes")


def test_mount(client: Client, tmp_path: Path) -> None:
    """--mount: bind, volume and tmpfs, read-only, with their options; a bind's source must exist."""
    got = client.inside(
        "--mount", f"type=bind,source={tmp_path},target=/b,readonly", "--mount", "type=volume,source=vol,target=/v",
        "--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770", script="cat /proc/self/mountinfo; stat -c %a /t",
    )  # fmt: skip
    *lines, mode = got.splitlines()
    text = "\n".join(lines)
    assert mode == "1770"
    assert mount_of(text, "/b")[0].startswith("ro,")
    assert mount_of(text, "/v")[0].startswith("rw,")
    options, _, kind, own = mount_of(text, "/t")
    assert (
        kind == "tmpfs" and "size=1024k" in own and {"nosuid", "nodev", "noexec"} <= set(options.split(","))
    )
    client("volume", "rm", "vol")
    said = client.says("run", "--mount", "type=bind,source=/no/such,target=/b", "busybox", "true", code=125)
    assert 'invalid mount config for type "bind": bind source path does not exist: /no/such' in said


def test_volumes(client: Client, machine: Machine) -> None:
    """A named volume keeps; it is filled from the image at first use; ro; another's by --volumes-from."""
    client("run", "--rm", "-v", "kept:/etc", "busybox", "sh", "-c", "echo mine > /etc/mine")
    assert client.inside(
        "-v", "kept:/x:ro", script="cat /x/mine /x/group | head -2; touch /x/y 2>&1; true"
    ) == ("mine\nroot:x:0:\ntouch: /x/y: Read-only file system")
    assert client.inside("-v", "empty:/etc:nocopy", script="ls /etc") == "hostname\nhosts\nresolv.conf"
    client("create", "--name", "donor", "-v", "kept:/a", "-v", "/anonymous", "busybox")
    assert (
        client.inside("--volumes-from", "donor", script="cat /a/mine; ls -d /anonymous") == "mine\n/anonymous"
    )
    got = client.inside("--volumes-from", "donor:ro", script="touch /a/y 2>&1; ls -d /anonymous")
    assert got == "touch: /a/y: Read-only file system\n/anonymous"
    refused = client.says("create", "-v", "/tmp:/b:nocopy", "busybox", code=1)
    assert "field VolumeOptions must not be specified" in refused
    client("rm", "-v", "donor")
    assert {volume["Name"] for volume in machine.json("GET", "/volumes")["Volumes"]} == {"kept", "empty"}
    client("volume", "rm", "kept", "empty")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount point of the host whose mounts propagate."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", str(place)], check=True)
    subprocess.run(["mount", "--make-shared", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-R", str(place)], check=True)


def test_a_volume_that_a_container_is_made_with_is_not_removed(machine: Machine) -> None:
    """Whoever removes volumes that nobody uses comes too late, or the container gets another one: it starts."""
    over = threading.Event()

    def remove() -> None:
        while not over.is_set():
            machine.request("DELETE", "/volumes/wanted")

    other = threading.Thread(target=remove)
    other.start()
    try:
        for _ in range(5):
            wanted = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Binds": ["wanted:/bin"]}}
            made = machine.json("POST", "/containers/create", wanted)["Id"]
            assert machine.request("GET", "/volumes/wanted")[0] == 200
            assert machine.request("POST", f"/containers/{made}/start") == (204, b"")
            machine.request("DELETE", f"/containers/{made}?force=1")
    finally:
        over.set()
        other.join()
    machine.request("DELETE", "/volumes/wanted")


def test_a_volume_that_several_containers_are_made_with_is_filled_once(
    client: Client, machine: Machine
) -> None:
    """And none of them starts before that, as services of one compose file that share the image's files."""
    script = "mkdir /many; cd /many; seq 2000 | xargs touch"
    client("run", "--name", "it", "busybox", "sh", "-c", script)
    client("commit", "it", "many")
    client("rm", "it")
    wanted = {
        "Image": "many", "Cmd": ["sh", "-c", "exit $(($(ls /many | wc -l) / 10))"], "HostConfig": {"Binds": ["many:/many"]},
    }  # fmt: skip

    def run(_: int) -> Any:
        made = machine.json("POST", "/containers/create", wanted)["Id"]
        machine.json("POST", f"/containers/{made}/start")
        code = machine.json("POST", f"/containers/{made}/wait")["StatusCode"]
        machine.json("DELETE", f"/containers/{made}")
        return code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [200] * 4
    client("volume", "rm", "many")
    client("rmi", "many")


def test_an_inherited_anonymous_volume(client: Client, machine: Machine) -> None:
    """`rm -v` of the last container that has it takes it, by whichever way it came; a named one stays."""

    def volumes() -> set[str]:
        return {volume["Name"] for volume in machine.json("GET", "/volumes")["Volumes"]}

    client("create", "--name", "giver", "-v", "kept:/a", "-v", "/b", "busybox")
    client("create", "--name", "taker", "--volumes-from", "giver", "busybox")
    both = volumes()
    assert len(both) == 2
    client("rm", "-v", "giver")
    assert volumes() == both
    client("rm", "-v", "taker")
    assert volumes() == {"kept"}
    client("volume", "rm", "kept")


def test_propagation(client: Client, shared: Path) -> None:
    """rprivate by default; rslave sees the host's later mounts, rshared gives its own back."""
    for mode, tag in (("", ""), (":rslave", "master:"), (":rshared", "shared:")):
        got = client.inside("-v", f"{shared}:/s{mode}", script="cat /proc/self/mountinfo")
        assert mount_of(got, "/s")[1].startswith(tag) and bool(mount_of(got, "/s")[1]) == bool(tag), mode
    client("run", "-d", "--name", "sees", "-v", f"{shared}:/s:rslave", "busybox", "sleep", "3600")
    (shared / "later").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "later", str(shared / "later")], check=True)
    (shared / "later" / "file").touch()
    assert client("exec", "sees", "ls", "/s/later") == "file\n"
    client("run", "--rm", "--cap-add", "SYS_ADMIN", "-v", f"{shared}:/s:rshared", "busybox", "sh", "-c",
           "mkdir /s/back && mount -t tmpfs back /s/back && touch /s/back/file")  # fmt: skip
    assert os.listdir(shared / "back") == ["file"]


def test_propagation_of_a_private_source(client: Client, tmp_path: Path) -> None:
    """What does not propagate outside cannot be shared inside."""
    place = tmp_path / "private"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "private", str(place)], check=True)
    subprocess.run(["mount", "--make-private", str(place)], check=True)
    try:
        for mode, word in (("rshared", "shared"), ("rslave", "shared or slave")):
            said = client.says("run", "--rm", "-v", f"{place}:/s:{mode}", "busybox", "true", code=125)
            assert f"path {place} is mounted on {place} but it is not a {word} mount" in said
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_bind_of_the_data_root(client: Client, machine: Machine) -> None:
    """Or of what it is in: rslave, as in dockerd, whatever the host's root can; what is not is refused."""
    root = machine.data_root
    for source in (root, root / "volumes", root.parent):
        for options in (("-v", f"{source}:/s:ro"), ("--mount", f"type=bind,src={source},dst=/s")):
            name = client("create", *options, "busybox", "ls", "/s").strip()
            assert [one["Propagation"] for one in client.inspect(name)["Mounts"]] == ["rslave"]
            assert client("start", "-a", name).split() == sorted(os.listdir(source))
        said = client.says("create", "-v", f"{source}:/s:rprivate", "busybox", code=1)
        assert (
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within'
            in said
        )
    name = client("create", "-v", f"{root}x:/s", "busybox").strip()
    assert [one["Propagation"] for one in client.inspect(name)["Mounts"]] == ["rprivate"]
    Path(f"{root}x").rmdir()


def test_later_mounts_are_seen_beside_the_data_root(tmp_path: Path) -> None:
    """Where the host's mount propagates."""
    subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
    machine = Machine(tmp_path / "m")
    try:
        subprocess.run(["mount", "--make-shared", str(tmp_path)], check=True)
        machine.start()
        import_busybox(machine)
        machine.run(
            str(BIN / "ketch"),
            "run",
            "-d",
            "--name",
            "it",
            "-v",
            f"{tmp_path}:/s",
            "busybox",
            "sleep",
            "3600",
        )
        (tmp_path / "later").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "later", str(tmp_path / "later")], check=True)
        (tmp_path / "later" / "file").touch()
        assert machine.run(str(BIN / "ketch"), "exec", "it", "ls", "/s/later").stdout == "file\n"
    finally:
        machine.close()
        subprocess.run(["umount", "-R", str(tmp_path)], check=True)
    assert machine.leftovers() == []


def test_a_bind_that_is_not_recursive(client: Client, tmp_path: Path) -> None:
    """What is mounted below its source is in a container's bind only when nothing is said of that."""
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", str(tmp_path / "below")], check=True)
    try:
        (tmp_path / "below" / "file").touch()
        mount = f"type=bind,source={tmp_path},target=/foo,readonly"
        assert client.inside("--mount", mount, script="ls /foo/below").split() == ["file"]
        alone = f"{mount},bind-recursive=disabled"
        assert client.inside(
            "--mount", alone, script="ls /foo/below; touch /foo/x 2>/dev/null || echo no"
        ).split() == ["no"]
    finally:
        subprocess.run(["umount", str(tmp_path / "below")], check=True)


def test_tmpfs(client: Client) -> None:
    """--tmpfs: empty, noexec, nosuid, nodev unless it says otherwise."""
    got = client.inside(
        "--tmpfs",
        "/etc/plain",
        "--tmpfs",
        "/run:exec,size=2m,mode=700,uid=1000",
        "--tmpfs",
        "/srv:shared",
        script="cat /proc/self/mountinfo; stat -c '%a %u' /run",
    )
    *lines, last = got.splitlines()
    text = "\n".join(lines)
    assert last == "700 1000"
    assert set(mount_of(text, "/etc/plain")[0].split(",")) >= {"rw", "nosuid", "nodev", "noexec"}
    options, _, kind, own = mount_of(text, "/run")
    assert kind == "tmpfs" and "noexec" not in options and "nosuid" in options and "size=2048k" in own
    assert any(" /srv " in line and " shared:" in line for line in lines)


def test_read_only(client: Client, tmp_path: Path) -> None:
    """--read-only: the root and its three files; volumes, tmpfs and /dev stay writable."""
    script = (
        "for f in /x /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm/x /dev/x /t/x /b/x; do "
        "(echo y > $f) 2>/dev/null && echo $f; done; cat /proc/self/mountinfo"
    )
    got = client.inside("--read-only", "--tmpfs", "/t", "-v", f"{tmp_path}:/b", script=script)
    written = [line for line in got.splitlines() if line.startswith("/")]
    assert written == ["/dev/shm/x", "/dev/x", "/t/x", "/b/x"]
    assert mount_of(got, "/")[0].startswith("ro,")


def test_shm_size(client: Client) -> None:
    """--shm-size, 64 MiB without it."""
    got = client.inside("--shm-size", "5m", script="cat /proc/self/mountinfo")
    options, _, kind, own = mount_of(got, "/dev/shm")
    assert (
        kind == "tmpfs" and "size=5120k" in own and {"nosuid", "nodev", "noexec"} <= set(options.split(","))
    )
    assert "size=65536k" in mount_of(client.inside(script="cat /proc/self/mountinfo"), "/dev/shm")[3]


def test_usual_mounts(client: Client) -> None:
    """What every container has, with the options it has there."""
    text = client.inside(script="cat /proc/self/mountinfo")
    for point, kind, options in (
        ("/", "overlay", "rw"), ("/proc", "proc", "rw,nosuid,nodev,noexec"), ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"), ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"), ("/proc/sys", "proc", "ro,nosuid,nodev,noexec"),
        ("/sys/firmware", "tmpfs", "ro"),
    ):  # fmt: skip
        if point == "/sys/firmware" and not os.path.exists(point):
            continue
        seen = mount_of(text, point)
        assert seen[2] == kind and seen[0].startswith(options), (point, seen)
    assert not any("/tmp/ketch-test" in line.split("-")[0] for line in text.splitlines())


def test_nested(client: Client, tmp_path: Path) -> None:
    """Deeper mounts come after those that hold them, whatever the order of the flags; two on one place are refused."""
    (tmp_path / "in").mkdir()
    got = client.inside(
        "-v",
        f"{tmp_path}/in:/a/b/c",
        "--tmpfs",
        "/a",
        "-v",
        "vol:/a/b",
        script="ls -d /a/b/c; mount | grep -c ' on /a'",
    )
    assert got == "/a/b/c\n3"
    client("volume", "rm", "vol")
    assert "Duplicate mount point: /a" in client.says(
        "run", "-v", "/tmp:/a", "-v", "/var:/a", "busybox", code=125
    )
