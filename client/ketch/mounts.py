"""Mounts as they are typed: `--mount`, `-v`, `--tmpfs`, `--device`. Pure but for the working directory.

Source: docker/cli opts/mount.go, cli/compose/loader/volume.go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from ketch.quantities import parse_size

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_RECURSIVE = {
    "enabled": "",
    "disabled": "NonRecursive",
    "writable": "ReadOnlyNonRecursive",
    "readonly": "ReadOnlyForceRecursive",
}
_OPTIONS = {
    "volume": "VolumeOptions",
    "bind": "BindOptions",
    "tmpfs": "TmpfsOptions",
    "image": "ImageOptions",
}
_CDI_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z][\w-]*=[A-Za-z0-9][\w.:-]*")


def split_fields(text: str) -> list[str]:
    """The fields of one CSV record, where quotes may hold a comma. Raises ValueError."""
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise ValueError(f"parse error on line 1: {error}") from None


def parse_mount(text: str) -> dict[str, Any]:
    """`type=bind,source=/a,target=/b,readonly` as the API takes it. Raises ValueError."""
    if not text:
        raise ValueError("value is empty")
    mount: dict[str, Any] = {
        "Type": "volume",
        "Source": "",
        "Target": "",
        "ReadOnly": False,
        "Consistency": "",
    }
    for one in split_fields(text):
        _field(mount, one)
    _check(mount)
    return {key: value for key, value in mount.items() if key == "Type" or value not in ("", False)}


def _field(mount: dict[str, Any], text: str) -> None:
    key, assigned, value = text.partition("=")
    key = key.lower()
    if not assigned:
        if key in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive"):
            value = "true"
        else:
            raise ValueError(f"invalid field '{text}' must be a key=value pair")
    if key == "type":
        mount["Type"] = value.lower()
    elif key in ("source", "src"):
        mount["Source"] = os.path.abspath(value) if value == "." or value.startswith("./") else value
    elif key in ("target", "dst", "destination"):
        mount["Target"] = value
    elif key in ("readonly", "ro"):
        mount["ReadOnly"] = _boolean(key, value)
    elif key == "consistency":
        mount["Consistency"] = value.lower()
    elif key.startswith(("bind-", "volume-", "tmpfs-", "image-")):
        _option(mount, key, value, text)
    else:
        raise ValueError(f"unexpected key '{key}' in '{text}'")


def _option(mount: dict[str, Any], key: str, value: str, text: str) -> None:
    options: dict[str, Any] = dict(mount.get(_OPTIONS[key.partition("-")[0]]) or {})
    if key == "bind-propagation":
        options["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        options["NonRecursive"] = _boolean(key, value)
    elif key == "bind-recursive":
        if value not in _RECURSIVE:
            raise ValueError(
                f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
            )
        if not _RECURSIVE[value]:
            return
        options[_RECURSIVE[value]] = True
    elif key == "volume-nocopy":
        options["NoCopy"] = _boolean(key, value)
    elif key in ("volume-subpath", "image-subpath"):
        options["Subpath"] = value
    elif key == "volume-label":
        _put(options, ("Labels",), value)
    elif key == "volume-driver":
        options["DriverConfig"] = {**options.get("DriverConfig", {}), "Name": value}
    elif key == "volume-opt":
        _put(options, ("DriverConfig", "Options"), value)
    elif key == "tmpfs-size":
        try:
            options["SizeBytes"] = parse_size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-mode":
        if not re.fullmatch("[0-7]+", value):
            raise ValueError(f"invalid value for {key}: {value}")
        options["Mode"] = int(value, 8)
    else:
        raise ValueError(f"unexpected key '{key}' in '{text}'")
    mount[_OPTIONS[key.partition("-")[0]]] = options


def _put(options: dict[str, Any], path: tuple[str, ...], text: str) -> None:
    for name in path:
        options[name] = dict(options.get(name, {}))
        options = options[name]
    key, _, value = text.partition("=")
    if key:
        options[key] = value


def _boolean(key: str, value: str) -> bool:
    if value not in _TRUE | _FALSE:
        raise ValueError(f"invalid value for {key}: {value}")
    return value in _TRUE


def _check(mount: dict[str, Any]) -> None:
    if not mount["Type"]:
        raise ValueError("type is required")
    if not mount["Target"]:
        raise ValueError("target is required")
    for kind, name in _OPTIONS.items():
        if name in mount and mount["Type"] != kind:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{mount['Type']}'")
    bind = mount.get("BindOptions") or {}
    for field, typed in (("ReadOnlyNonRecursive", "writable"), ("ReadOnlyForceRecursive", "readonly")):
        if bind.get(field) and not mount["ReadOnly"]:
            raise ValueError(
                f"option 'bind-recursive={typed}' requires 'readonly' to be specified in conjunction"
            )
    if bind.get("ReadOnlyForceRecursive") and bind.get("Propagation") != "rprivate":
        raise ValueError(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
        )


def split_volumes(specs: Iterable[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """`-v` values as the API takes them: binds, and the targets of anonymous volumes. Raises ValueError."""
    binds: list[str] = []
    anonymous: dict[str, dict[str, str]] = {}
    for spec in dict.fromkeys(specs):
        source = volume_source(spec)
        if len(spec) > 2 and spec.startswith(":"):
            raise ValueError(f"invalid spec: {spec}: empty section between colons")
        if not source:
            anonymous[spec] = {}
            continue
        if source.startswith("."):
            spec = os.path.abspath(source) + spec[len(source) :]
        binds.append(spec)
    return binds, anonymous


def volume_source(spec: str) -> str:
    """What stands before the target: a path or a volume's name; empty for an anonymous volume."""
    if len(spec) <= 2:
        return ""
    source, colon, _ = spec.partition(":")
    # One letter is read as a drive of another system.
    if not colon or (len(source) == 1 and source.isalpha()):
        return ""
    return source


def parse_device(text: str) -> dict[str, str]:
    """`/dev/fuse[:/dev/inside][:rwm]` as the API takes it. Raises ValueError."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(f"bad format for path: {text}")
    host, inside, mode = parts[0], "", "rwm"
    if len(parts) == 3:
        inside, mode = parts[1], parts[2]
        if not _is_mode(mode):
            raise ValueError(f"bad mode specified: {mode}")
    elif len(parts) == 2:
        if _is_mode(parts[1]):
            mode = parts[1]
        else:
            inside = os.path.normpath(parts[1])
    else:
        host = os.path.normpath(host)
    if not (inside or host).startswith("/"):
        raise ValueError(f"{inside or host} is not an absolute path")
    return {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": mode}


def _is_mode(text: str) -> bool:
    return bool(text) and len(set(text)) == len(text) and set(text) <= set("rwm")


def is_cdi_name(text: str) -> bool:
    """Whether a `--device` is a qualified CDI name: `vendor.com/class=name`."""
    return _CDI_NAME.fullmatch(text) is not None
