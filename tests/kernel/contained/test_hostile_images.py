"""Hostile images and containers. Each test is named after the CVE whose way it tries. Source: published advisories of runc, moby."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from ketch_testing.contained import Contained, attached, layer, read_until, replaced_by_link
from ketch_wire.launch import MountPlan
from ketchd.containers.shims import LaunchFailed
from ketchd.kernel import mounts
from ketchd.sandbox import defaults


def canary(path: str) -> dict[str, tuple[int, int, int]]:
    """What a host directory holds: name -> inode, mode, device."""
    return {name: _facts(os.path.join(path, name)) for name in sorted(os.listdir(path))}


def _facts(path: str) -> tuple[int, int, int]:
    info = os.lstat(path)
    return info.st_ino, info.st_mode, info.st_rdev


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/../../etc", "etc"])
async def test_cve_2026_41579_dev_is_a_link(box: Contained, target: str) -> None:
    """The image's /dev leads to /etc: mounts and nodes land in the container's own /etc, never in the host's."""
    before = canary("/etc")
    top = layer(box, replaced_by_link("dev", target))

    code, output = await box.run("sh", "-c", "ls /etc; stat -c %t:%T /dev/null", layers=(top,))

    assert canary("/etc") == before
    assert (code, output.splitlines()[-1]) == (0, "1:3")


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/tmp", "/etc", "/proc/1/root", "/nowhere"])
async def test_proc_and_sys_must_be_ordinary_directories(box: Contained, name: str, target: str) -> None:
    """A /proc that is somewhere else would leave the masks, and our writes, somewhere else."""
    before = canary("/etc")
    top = layer(box, replaced_by_link(name, target))

    with pytest.raises(LaunchFailed, match="must be mounted on ordinary directory"):
        await box.start(box.plan("true", layers=(top,)))

    assert canary("/etc") == before


async def test_cve_2021_30465_a_mount_target_leads_out(box: Contained) -> None:
    """The target of a volume is a link to the host's root, by absolute and by relative names."""
    outside = box.base / "outside"
    outside.mkdir()
    volume = box.base / "volume"
    volume.mkdir()
    (volume / "mine").write_text("inside")

    def links(top: Path) -> None:
        (top / "absolute").symlink_to(outside)
        (top / "relative").symlink_to("../" * 12 + str(outside))

    top = layer(box, links)
    wanted = (
        *box.mounts(),
        MountPlan("/absolute/a", "bind", str(volume), ("rbind", "rprivate")),
        MountPlan("/relative/b", "bind", str(volume), ("rbind", "rprivate")),
    )
    code, output = await box.run("cat", "/absolute/a/mine", "/relative/b/mine", layers=(top,), mounts=wanted)

    assert (code, output) == (0, "insideinside")
    assert os.listdir(outside) == []


async def test_a_file_target_that_is_a_dangling_link_is_made_inside(box: Contained) -> None:
    """Images have /etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf, and the target is missing."""
    source = box.base / "resolv.conf"
    source.write_text("nameserver 192.0.2.1\n")

    def links(top: Path) -> None:
        (top / "etc").mkdir()
        (top / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")

    wanted = (*box.mounts(), MountPlan("/etc/resolv.conf", "bind", str(source), ("bind", "rprivate")))
    code, output = await box.run("cat", "/etc/resolv.conf", layers=(layer(box, links),), mounts=wanted)

    assert (code, output) == (0, "nameserver 192.0.2.1\n")


@pytest.mark.parametrize("cwd", [f"/proc/self/fd/{number}" for number in (3, 4, 5, 6, 7, 8, 9, 12, 16, 20)])
async def test_cve_2024_21626_no_descriptor_is_a_working_directory(box: Contained, cwd: str) -> None:
    with pytest.raises(LaunchFailed) as caught:
        await box.start(box.plan("cat", "../../../../etc/hostname", cwd=cwd))

    assert f'chdir to cwd ("{cwd}") set in config.json failed' in caught.value.message


async def test_cve_2024_21626_nor_by_a_link_of_the_image(box: Contained) -> None:
    def links(top: Path) -> None:
        for number in range(20):
            (top / f"w{number}").symlink_to(f"/proc/self/fd/{number}/../../..")

    top = layer(box, links)

    for number in range(3, 20, 4):
        with pytest.raises(LaunchFailed):
            await box.start(box.plan("true", cwd=f"/w{number}", layers=(top,)))


async def test_cve_2026_55686_the_working_directory_is_made_inside(box: Contained) -> None:
    """podman made it by path: a link in the image made directories of the host."""
    outside = box.base / "outside"
    outside.mkdir()

    def links(top: Path) -> None:
        (top / "out").symlink_to(outside)

    code, _ = await box.run("true", cwd="/out/made", layers=(layer(box, links),))

    assert code == 0
    assert os.listdir(outside) == []


async def test_cve_2025_31133_null_of_the_image_masks_nothing(box: Contained) -> None:
    """The image brings a /dev/null that is a link into procfs; /dev is a volume, so that ours does not cover it."""
    volume = box.base / "dev"
    volume.mkdir()
    (volume / "null").symlink_to("/proc/sys/kernel/core_pattern")
    wanted = (box.mounts()[0], MountPlan("/dev", "bind", str(volume), ("rbind", "rprivate")))

    with pytest.raises(LaunchFailed, match="/dev/null is not the null device"):
        await box.start(box.plan("true", mounts=wanted, masked_paths=("/proc/keys", "/etc/passwd")))


async def test_cve_2025_31133_the_mask_is_our_null_and_not_the_hosts(box: Contained) -> None:
    """Changing the mask's mode inside must not change the host's /dev/null."""
    before = stat.S_IMODE(os.stat("/dev/null").st_mode)

    code, output = await box.run(
        "sh", "-c", "chmod 000 /etc/shadow-like; stat -c %t:%T /etc/shadow-like; echo > /etc/shadow-like",
        masked_paths=("/etc/shadow-like",), layers=(layer(box, _shadow),),
    )  # fmt: skip

    assert stat.S_IMODE(os.stat("/dev/null").st_mode) == before
    assert code == 0 and "1:3" in output


def _shadow(top: Path) -> None:
    (top / "etc").mkdir()
    (top / "etc/shadow-like").write_text("secret")


async def test_cve_2025_52565_the_console_is_a_link(box: Contained) -> None:
    """/dev is a volume whose `console` leads to a file of the host."""
    target = box.base / "hosts-file"
    target.write_text("untouched")
    volume = box.base / "dev"
    volume.mkdir()
    (volume / "console").symlink_to(target)
    wanted = (
        box.mounts()[0], MountPlan("/dev", "bind", str(volume), ("rbind", "rprivate")),
        MountPlan("/dev/pts", "devpts", "devpts", ("newinstance", "ptmxmode=0666")),
    )  # fmt: skip
    plan = box.plan("true", mounts=wanted, masked_paths=(), tty=True)

    with pytest.raises(LaunchFailed):
        await box.start(plan)

    assert target.read_text() == "untouched" and stat.S_ISREG(target.stat().st_mode)


async def test_cve_2025_52881_nothing_covers_a_part_of_proc(box: Contained) -> None:
    """A volume over /proc/sys/net, with a file where the sysctl would be written."""
    volume = box.base / "net"
    (volume / "ipv4").mkdir(parents=True)
    decoy = volume / "ipv4/ip_unprivileged_port_start"
    decoy.write_text("untouched")
    wanted = (*box.mounts(), MountPlan("/proc/sys/net", "bind", str(volume), ("rbind", "rprivate")))
    plan = box.plan("true", mounts=wanted, sysctls={"net.ipv4.ip_unprivileged_port_start": "7"})

    with pytest.raises(LaunchFailed, match='"/proc/sys/net" cannot be mounted because it is inside /proc'):
        await box.start(plan)

    assert decoy.read_text() == "untouched"


async def test_cve_2019_5736_the_interpreter_cannot_be_opened_from_inside(box: Contained) -> None:
    """`--init` leaves a process of ours inside, and an exec passes through: neither's executable can be had."""
    before = hashlib.sha256(Path(os.path.realpath(sys.executable)).read_bytes()).hexdigest()
    top = layer(box, lambda top: (top / "self").symlink_to("/proc/self/exe"))
    code, output = await box.run(
        "sh", "-c", "cat /proc/1/exe | wc -c; echo x > /proc/1/exe; readlink /proc/1/exe; ls /proc/1/fd; head -c 1 /proc/1/mem; echo end",
        init=True, layers=(top,),
    )  # fmt: skip

    assert "end\n" in output and code == 0
    assert "python" not in output
    assert output.count("ermission denied") >= 3
    assert hashlib.sha256(Path(os.path.realpath(sys.executable)).read_bytes()).hexdigest() == before


async def test_cve_2019_5736_proc_self_exe_as_the_program_is_the_containers(box: Contained) -> None:
    """The entrypoint is /proc/self/exe: that is our interpreter until execve, so it must not be found."""
    top = layer(box, lambda top: (top / "evil").symlink_to("/proc/self/exe"))

    for program in ("/proc/self/exe", "/evil", "./evil"):
        with pytest.raises(LaunchFailed, match="permission denied"):
            await box.start(box.plan(program, layers=(top,)))


async def test_cve_2019_5736_our_executable_lies_on_a_readonly_mount(box: Contained) -> None:
    """Where a link is not refused, as in `#!/proc/self/exe`, writing to what it leads to is."""
    link = await box.start(box.plan("sleep", "60"))
    shim = Path(f"/proc/{link.pid}/stat").read_text().rpartition(")")[2].split()[1]
    for pid in (shim, str(box.launcher.pid)):
        with pytest.raises(OSError, match="Read-only file system"):
            os.utime(f"/proc/{pid}/exe")
        with pytest.raises(OSError):
            os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
    await link.signal(signal.SIGKILL)
    await box.end(link)


async def test_cve_2019_5736_an_exec_cannot_be_caught_on_its_way(box: Contained) -> None:
    """A container that watches for new processes tries to open each one's executable."""
    link = await box.start(
        box.plan(
            "sh",
            "-c",
            "while :; do for p in /proc/[0-9]*; do n=$(readlink $p/exe 2>/dev/null); case $n in *python*) echo CAUGHT $n;; esac; done; done",
        )
    )
    for _ in range(25):
        assert (await box.execute(link, "true"))[0] == 0
    await link.signal(signal.SIGKILL)
    await box.end(link)

    assert "CAUGHT" not in box.logged(box.plans[-1])


def abstract_names() -> set[str]:
    """Of unix sockets in this network namespace."""
    return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@" in line}


async def test_cve_2020_15257_no_socket_is_abstract(box: Contained) -> None:
    """A container with the host's network sees every abstract name: ours must not be among them."""
    before = abstract_names()
    link = await box.start(box.plan("sleep", "60"))

    assert not [
        name for name in abstract_names() - before if "shim" in name or link.container_id[:12] in name
    ]
    await link.signal(signal.SIGKILL)
    await box.end(link)


async def test_cve_2022_0492_release_agent_is_out_of_reach(box: Contained) -> None:
    """cgroup v1: the hierarchy is read-only, and mounting another one is refused."""
    plan = box.plan(
        "sh", "-c", "for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release; do echo 1 > $f; done 2>&1; "
        "mkdir /tmp/c; mount -t cgroup -o memory c /tmp/c; echo mounted=$?; touch /sys/fs/cgroup/x",
    )  # fmt: skip
    link = await box.start(plan)
    await box.end(link)

    output = box.logged(plan)
    assert "mounted=0" not in output and "mounted=" in output
    assert "Read-only file system" in output


async def test_cve_2022_0847_the_layers_stay_as_they_are(box: Contained) -> None:
    """Root in a container writes, cuts, renames and changes modes of files of its layers: the store's bytes, modes and names stay."""
    secret = box.layer / "etc/secret"
    secret.write_text("kept")
    secret.chmod(0o400)
    before = {
        str(path): (path.lstat().st_mode, path.lstat().st_uid, path.read_bytes() if path.is_file() else b"")
        for path in box.layer.rglob("*")
        if not path.is_symlink()
    }
    code, _ = await box.run(
        "sh", "-c",
        "echo bad > /etc/secret; echo bad >> /etc/passwd; chmod 777 /etc/secret /etc; chown 1000 /etc/group; mv /etc/group /g;"
        "dd if=/dev/zero of=/bin/busybox bs=1 count=4 conv=notrunc; rm -rf /home; cat /etc/secret | grep -q bad",
    )  # fmt: skip

    assert code == 0
    after = {
        str(path): (path.lstat().st_mode, path.lstat().st_uid, path.read_bytes() if path.is_file() else b"")
        for path in box.layer.rglob("*")
        if not path.is_symlink()
    }
    assert after == before


async def test_masked_paths_are_the_containers(box: Contained) -> None:
    """A masked path that is a link of the image covers the link's place inside, nothing outside."""
    outside = box.base / "outside"
    outside.write_text("here")
    top = layer(box, replaced_by_link("hidden", str(outside)))

    code, _ = await box.run("true", masked_paths=("/hidden",), readonly_paths=("/hidden",), layers=(top,))

    assert code == 0 and outside.read_text() == "here"


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "huge", "link out"])
async def test_a_strange_passwd_is_no_trap(box: Contained, kind: str) -> None:
    """Nobody waits on a pipe, reads a device or the host's file: it counts as empty."""

    def strange(top: Path) -> None:
        (top / "etc").mkdir()
        path = top / "etc/passwd"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        elif kind == "directory":
            path.mkdir()
        elif kind == "huge":
            with path.open("wb") as big:
                big.truncate(1 << 40)
        else:
            path.symlink_to(box.base / "host-passwd")

    (box.base / "host-passwd").write_text("ghost:x:1:1::/:/bin/sh\n")
    top = layer(box, strange)

    with pytest.raises(LaunchFailed, match="unable to find user ghost"):
        await box.start(box.plan("true", user="ghost", layers=(top,)))


async def test_mounts_inside_are_not_seen_outside(box: Contained) -> None:
    """Neither ours nor, with the capability, the container's own. Others may mount theirs meanwhile."""

    def seen() -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(box.base) in line or " - tmpfs inner " in line]

    before = seen()
    plan = box.plan(
        "sh",
        "-c",
        "mount -t tmpfs inner /tmp && echo mounted; sleep 60",
        capabilities=defaults.ALL_CAPABILITIES,
        seccomp=b"",
    )
    client, stream = attached()
    link = await box.start(plan, stream)
    await read_until(client, b"mounted")

    assert seen() == before
    client.close()
    await link.signal(signal.SIGKILL)
    await box.end(link)


@pytest.mark.parametrize("word", ["rprivate", "rslave", "rshared"])
async def test_propagation(box: Contained, word: str) -> None:
    """A later mount of the host below a bind's source: seen with rslave and rshared alone."""
    source = box.base / "source"
    (source / "sub").mkdir(parents=True)
    mounts.mount(str(source), str(source), None, mounts.MS_BIND)
    try:
        mounts.mount(None, str(source), None, mounts.MS_SHARED)
        bind = MountPlan("/m", "bind", str(source), ("rbind", word))
        waiting = "while [ ! -e /go ]; do sleep 0.01; done; ls /m/sub"
        plan = box.plan("sh", "-c", waiting, mounts=(*box.mounts(), bind))
        link = await box.start(plan)
        mounts.mount("later", str(source / "sub"), "tmpfs")
        (source / "sub/late").touch()
        Path(f"/proc/{link.pid}/root/go").touch()
        await box.end(link)
        assert box.logged(plan) == ("" if word == "rprivate" else "late\n")
    finally:
        for path in (source / "sub", source):
            mounts.umount(str(path), mounts.MNT_DETACH)


async def test_a_readonly_bind_is_readonly_all_the_way_down(box: Contained) -> None:
    source = box.base / "source"
    (source / "sub").mkdir(parents=True)
    mounts.mount("below", str(source / "sub"), "tmpfs")
    try:
        bind = MountPlan("/m", "bind", str(source), ("rbind", "rprivate", "ro"))
        _, output = await box.run("touch", "/m/x", "/m/sub/x", mounts=(*box.mounts(), bind))
        assert output.count("Read-only file system") == 2
    finally:
        mounts.umount(str(source / "sub"), mounts.MNT_DETACH)


async def test_a_directory_onto_a_file_is_refused_in_dockers_words(box: Contained) -> None:
    (box.base / "d").mkdir()
    wanted = (*box.mounts(), MountPlan("/etc/passwd", "bind", str(box.base / "d"), ("rbind", "rprivate")))

    with pytest.raises(LaunchFailed, match="Are you trying to mount a directory onto a file") as caught:
        await box.start(box.plan("true", mounts=wanted))

    assert (caught.value.exit_code, caught.value.status) == (127, 400)


async def test_a_racing_container_cannot_move_a_target_of_another(box: Contained) -> None:
    """Two containers share a volume; one swaps a directory and a link while the other mounts below it, again and again."""
    outside, volume = box.base / "outside", box.base / "volume"
    outside.mkdir()
    (volume / "d").mkdir(parents=True)
    bind = MountPlan("/v", "bind", str(volume), ("rbind", "rprivate"))
    up = "../" * 14 + str(outside)
    racer = await box.start(
        box.plan(
            "sh",
            "-c",
            f"cd /v; ln -s {up} l; while :; do mv d x; mv l d; mv d l; mv x d; done",
            mounts=(*box.mounts(), bind),
        )
    )
    source = box.base / "mine"
    source.mkdir()
    for _ in range(12):
        plan = box.plan(
            "true",
            mounts=(*box.mounts(), bind, MountPlan("/v/d/t", "bind", str(source), ("rbind", "rprivate"))),
        )
        try:
            link = await box.start(plan)
        except LaunchFailed:
            continue
        await box.end(link)
    await racer.signal(signal.SIGKILL)
    await box.end(racer)

    assert os.listdir(outside) == []
