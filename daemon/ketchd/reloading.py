"""What a SIGHUP changes: the settings that were read again, beside the running ones. Pure.

Source: moby daemon/reload.go and reload_unix.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ketchd.checks import OUR_RUNTIMES
from ketchd.config import Config

# What dockerd reloads, and what it has nothing of. Everything else waits for a restart.
RELOADABLE = frozenset(
    {
        "debug", "labels", "insecure_registries", "registry_mirrors", "max_concurrent_downloads", "max_concurrent_uploads",
        "max_download_attempts", "shutdown_timeout", "live_restore", "default_runtime", "default_shm_size", "default_ipc_mode",
        "default_cgroupns_mode", "features", "ketch",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reload:
    """config: what runs from now on. changed: keys that have another value now.

    waiting: keys that have another value in the file, which a restart would take. ignored: keys that are ignored and were not
    there before. All with hyphens, in the order of `Config`.
    """

    config: Config
    changed: Sequence[str]
    waiting: Sequence[str]
    ignored: Sequence[str]


def compare(running: Config, found: Config) -> Reload:
    """What becomes of `running` when `found` is what flags and file say now. A key that is gone has its default again."""
    different = [
        entry.name
        for entry in fields(Config)
        if entry.name != "ignored" and getattr(found, entry.name) != getattr(running, entry.name)
    ]
    taken = [name for name in different if name in RELOADABLE]
    values = {name: getattr(found, name) for name in (*taken, "ignored")}
    return Reload(
        replace(running, **values),
        [_key(name) for name in taken],
        [_key(name) for name in different if name not in RELOADABLE],
        [name for name in found.ignored if name not in running.ignored],
    )


def attributes(config: Config, host: str, cgroup_version: int) -> dict[str, str]:
    """The attributes of the event `daemon reload`, as dockerd 28 writes them. host: this host's name."""
    return {
        "name": host,
        "debug": _words(config.debug),
        "default-cgroupns-mode": config.default_cgroupns_mode
        or ("private" if cgroup_version == 2 else "host"),
        "default-ipc-mode": config.default_ipc_mode or "private",
        "default-runtime": config.default_runtime,
        "default-shm-size": str(config.default_shm_size),
        "features": _go_map(config.features),
        "insecure-registries": _words(config.insecure_registries),
        "labels": _words(config.labels),
        "live-restore": _words(config.live_restore),
        "max-concurrent-downloads": str(config.max_concurrent_downloads),
        "max-concurrent-uploads": str(config.max_concurrent_uploads),
        "max-download-attempts": str(config.max_download_attempts),
        "registry-mirrors": _words(config.registry_mirrors),
        "runtimes": " ".join(f"{name}:ketch" for name in OUR_RUNTIMES),
        "shutdown-timeout": str(config.shutdown_timeout),
    }


def _key(name: str) -> str:
    return name.replace("_", "-")


def _words(value: bool | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _go_map(features: Mapping[str, bool]) -> str:
    """`map[a:true b:false]`, as Go prints one."""
    return f"map[{' '.join(f'{name}:{_words(features[name])}' for name in sorted(features))}]"
