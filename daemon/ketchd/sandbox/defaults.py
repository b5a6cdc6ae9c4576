"""What every container gets unless it asks otherwise: capabilities, devices, mounts, hidden and read-only paths. Data, read once.

Source: Docker Engine 28's defaults (moby oci/defaults.go, oci/caps); runtime-spec config-linux.md.
"""

from __future__ import annotations

import os

from ketch_wire.launch import DevicePlan, MountPlan

_CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
_DEFAULT = """
    CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE
    SETFCAP
"""
# In the kernel's order (linux/capability.h): the index is the number.
ALL_CAPABILITIES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _CAPABILITIES.split())
DEFAULT_CAPABILITIES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _DEFAULT.split())


def _thermal_paths() -> tuple[str, ...]:
    """Each CPU's counters: a side channel (moby GHSA-6fw5-f8r9-fgfm). Missing on most virtual machines."""
    base = "/sys/devices/system/cpu"
    try:
        names = [name for name in os.listdir(base) if name.startswith("cpu") and name[3:].isdigit()]
    except OSError:
        return ()
    paths = (f"{base}/{name}/thermal_throttle" for name in sorted(names, key=lambda name: int(name[3:])))
    return tuple(path for path in paths if os.path.isdir(path))


MASKED_PATHS: tuple[str, ...] = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap", *_thermal_paths(),
)  # fmt: skip
READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Docker's names -> RLIMIT_* numbers (asm-generic/resource.h); `as` is not among those Docker offers.
RLIMITS: dict[str, int] = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip

DEFAULT_DEVICES: tuple[DevicePlan, ...] = tuple(
    DevicePlan(f"/dev/{name}", "c", major, minor)
    for name, major, minor in (
        ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0),
    )
)  # fmt: skip

_SAFE = ("nosuid", "noexec", "nodev")


def default_mounts(
    *,
    privileged: bool,
    shm_size: int,
    ipc_mode: str,
    cgroup_version: int,
    shm_source: str,
    cgroup_join: tuple[str, ...] = (),
) -> tuple[MountPlan, ...]:
    """The mounts below a new root, in order.

    shm_size: bytes of /dev/shm. shm_source: the host path of the donor's /dev/shm, for an ipc_mode of `container:X`.
    cgroup_join: the container's own cgroup directories (CgroupPlan.join); version 1 binds each of them, version 2 mounts
    the hierarchy, which a cgroup namespace cuts off at the container's directory. Without any, no cgroup is shown.
    """
    access = "rw" if privileged else "ro"
    mounts = [
        MountPlan("/proc", "proc", "proc", _SAFE),
        MountPlan("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        MountPlan(
            "/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
        ),
        MountPlan("/sys", "sysfs", "sysfs", (*_SAFE, access)),
        *_cgroup_mounts(cgroup_version, cgroup_join, access),
        MountPlan("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ]  # fmt: skip
    if shm_source or ipc_mode == "host":
        mounts.append(MountPlan("/dev/shm", "bind", shm_source or "/dev/shm", ("rbind", "rprivate", *_SAFE)))
    elif ipc_mode != "none":
        mounts.append(MountPlan("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", f"size={shm_size}")))
    return tuple(mounts)


def _cgroup_mounts(version: int, join: tuple[str, ...], access: str) -> list[MountPlan]:
    base = "/sys/fs/cgroup"
    if version == 2:
        return [MountPlan(base, "cgroup", "cgroup", (*_SAFE, "relatime", access))]
    if not join:
        return []
    mounts, links = [MountPlan(base, "tmpfs", "tmpfs", (*_SAFE, "mode=755"))], []
    for directory in join:
        hierarchy = directory.removeprefix(f"{base}/").split("/", 1)[0]
        mounts.append(
            MountPlan(
                f"{base}/{hierarchy}", "bind", directory, ("bind", "rprivate", *_SAFE, "relatime", access)
            )
        )
        if "," in hierarchy:
            links += [MountPlan(f"{base}/{name}", "symlink", hierarchy) for name in hierarchy.split(",")]
    return [*mounts, *links, MountPlan(base, "remount", "", (*_SAFE, access))]
