"""Values of JSON as Go's templates see them: fields by Go's names, nothing of a type, how they are printed. Pure."""

from __future__ import annotations

import json
from typing import Any

from ketch.gotemplate import TemplateError

# A key that is missing in one of these is no mistake: they are maps in Go, not structures.
MAPS = frozenset(
    [
        "Labels",
        "Ports",
        "PortBindings",
        "ExposedPorts",
        "Networks",
        "Volumes",
        "Options",
        "DriverOpts",
        "Sysctls",
        "Annotations",
        "Tmpfs",
        "StorageOpt",
        "Config",
        "Containers",
        "IPAMConfig",
    ]
)
# Nothing in one of these is a list of nothing.
LISTS = frozenset(
    """Aliases Args Binds CapAdd CapDrop Cmd DNSNames DeviceCgroupRules DeviceRequests Devices Dns DnsOptions DnsSearch Entrypoint
    Env ExecIDs ExtraHosts GroupAdd Layers Links MaskedPaths Mirrors Mounts OnBuild ReadonlyPaths RepoDigests RepoTags SecurityOpt
    Shell Ulimits VolumesFrom Warnings""".split()
)
# Left out of answers when empty; nil in Go.
OPTIONAL = frozenset(
    "Health Healthcheck StopSignal StopTimeout Error UsageData Status Shell SizeRw SizeRootFs".split()
)


class Nil:
    """What Go has for nothing of a known type: false, without anything in it, `null` in JSON. shown: as `print` writes it."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def printed(value: Any) -> str:
    """A value as Go's `print` writes it."""
    if value is None:
        return "<no value>"
    if isinstance(value, Nil):
        return value.shown
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e21 else repr(value)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{inner(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(inner(item) for item in value) + "]"
    return str(value)


def inner(value: Any) -> str:
    """A value in another one, or as an argument of `print`: nothing is `<nil>` there."""
    return "<nil>" if value is None else printed(value)


def field(value: Any, name: str, inside: str = "") -> Any:
    """`.name` of `value`; None for what is there without a value. Raises TemplateError where Go would."""
    if isinstance(value, Nil) and value.shown == "map[]":
        return NO_VALUE
    if value is None or isinstance(value, Nil):
        raise TemplateError(f"nil pointer evaluating interface {{}}.{name}")
    if not isinstance(value, dict):
        raise TemplateError(f"can't evaluate field {name} in type {type(value).__name__}")
    if name in value:
        return value[name]
    if inside in MAPS and inside != "Config":
        return NO_VALUE
    if name[:1].isupper():
        # Go's name of a field where JSON has another: .ID is Id, .CPUPeriod is CpuPeriod.
        same = [key for key in value if key.lower() == name.lower()]
        if len(same) == 1:
            return value[same[0]]
    if name in OPTIONAL or name in MAPS or name in LISTS:
        return None
    if inside in MAPS:
        return NO_VALUE
    raise TemplateError(f'map has no entry for key "{name}"')


NO_VALUE = Nil("<no value>")


def truth(value: Any) -> bool:
    """Go's truth: not the zero value, not empty."""
    return bool(value)


def to_json(value: Any) -> str:
    """A value on one line. What a template may call (`.Label "x"`) is not part of it."""
    if isinstance(value, Nil):
        return "null"
    return json.dumps(_data(value), separators=(",", ":"), ensure_ascii=False)


def _data(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _data(item) for key, item in value.items() if not callable(item)}
    return [_data(item) for item in value] if isinstance(value, list) else value
