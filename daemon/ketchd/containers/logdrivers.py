"""Log drivers: which there are, which options they take, and what a container's choice means for its shim. Pure.

Names are looked at when a container is created, values when it is started, as dockerd does and in its words.
Source: moby's daemon/logger (jsonfilelog, local, journald, loggerutils) and docs.docker.com, "Configure logging drivers".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketch_wire.launch import LogPlan
from ketchd.containers.record import ContainerRecord

DRIVERS = ("json-file", "local", "journald", "none")
_ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_FILES = frozenset({"max-size", "max-file", "compress"})
_CACHE = frozenset({"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
# How dockerd delivers to a driver that blocks. Ours never blocks a container, so both modes are the same.
_DELIVERY = frozenset({"mode", "max-buffer-size"})
_OPTIONS = {"json-file": _FILES | _ATTRIBUTES, "local": _FILES, "journald": _ATTRIBUTES}
_UNKNOWN = {
    "json-file": "unknown log opt '{}' for json-file log driver",
    "local": "unknown log opt '{}' for log driver local",
    "journald": "unknown log opt '{}' for journald log driver",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)*) ?([kKmMgGtTpP])?[iI]?[bB]?")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a log is kept: `files` of `size` bytes (0: one without end)."""

    size: int
    files: int
    compress: bool


# Unlike dockerd's, a json-file log is bounded by itself: full disks are what its users report most.
JSON_FILE = Limits(16 * 1024 * 1024, 3, False)
LOCAL = Limits(20_000_000, 5, True)


def settle(asked: Mapping[str, Any], driver: str, options: Mapping[str, str]) -> dict[str, Any]:
    """A container's LogConfig: what was asked, completed with the daemon's driver and, for that driver, its options."""
    kind = asked["Type"] or driver
    chosen = dict(asked["Config"] or {})
    for key, value in options.items():
        if kind == driver or key in _CACHE:
            chosen.setdefault(key, value)
    check_names(kind, chosen)
    return {"Type": kind, "Config": chosen}


def check_values(record: ContainerRecord) -> None:
    """Refuse at the create what a start would refuse; dockerd waits for the start. Raises InvalidInput."""
    try:
        plan(record, "", has_journal=True)
    except EngineFailure as fault:
        raise InvalidInput(fault.message) from None


def check_names(driver: str, options: Mapping[str, str]) -> None:
    """Raises InvalidInput for a driver that there is not, and for an option that it does not take."""
    if driver not in DRIVERS:
        name = driver[:80]
        raise InvalidInput(f'error looking up logging plugin {name}: plugin "{name}" not found')
    if driver == "none":
        return
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidInput(f"logger: logging mode not supported: {mode[:80]}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidInput("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        try:
            size(options["max-buffer-size"])
        except InvalidInput as fault:
            raise InvalidInput(f"error parsing option max-buffer-size: {fault.message}") from None
    for key in options:
        if key not in _OPTIONS[driver] | _CACHE | _DELIVERY:
            raise InvalidInput(_UNKNOWN[driver].format(key[:80]))


def size(text: str, base: int = 1000) -> int:
    """Bytes of `10m`, in powers of `base`. Raises InvalidInput."""
    match = _SIZE.fullmatch(text)
    if match is None or match[1].count(".") > 1:
        raise InvalidInput(f"invalid size: '{text[:80]}'")
    return int(float(match[1]) * base ** _POWERS.get((match[2] or "").lower(), 0))


def flag(text: str) -> bool:
    """As Go's strconv reads it. Raises InvalidInput."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidInput(f'strconv.ParseBool: parsing "{text[:80]}": invalid syntax')


def number(text: str) -> int:
    """As Go's strconv reads it. Raises InvalidInput."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise InvalidInput(f'strconv.Atoi: parsing "{text[:80]}": invalid syntax')
    return int(text)


def is_readable(host_config: Mapping[str, Any]) -> bool:
    """Whether `logs` can read what the driver keeps."""
    log = host_config["LogConfig"]
    if log["Type"] == "none":
        return False
    return log["Type"] != "journald" or log["Config"].get("cache-disabled", "") not in _TRUE


def plan(record: ContainerRecord, path: str, *, has_journal: bool) -> LogPlan:
    """What the shim is to do. path: the log file. Raises EngineFailure in dockerd's words when it cannot be done."""
    chosen = record.host_config["LogConfig"]
    driver, options = chosen["Type"] or "json-file", chosen["Config"]
    if driver == "none":
        return LogPlan("none")
    try:
        if driver == "journald":
            return _journal_plan(record, options, path, has_journal)
        limits = _local_limits(options) if driver == "local" else _json_limits(options)
        attributes = {} if driver == "local" else _attributes(record, options, "")
    except InvalidInput as fault:
        raise EngineFailure(f"failed to initialize logging driver: {fault.message}") from None
    shown = json.dumps(attributes, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
    return LogPlan(
        driver, path, limits.size, limits.files, compress=limits.compress, attrs=shown if attributes else b""
    )


def _json_limits(options: Mapping[str, str]) -> Limits:
    limit, files, compress = JSON_FILE.size, JSON_FILE.files, False
    if "max-size" in options:
        # -1 is what Docker's documentation calls "no limit", and what dockerd refuses.
        limit = 0 if options["max-size"] == "-1" else size(options["max-size"])
        if not limit and options["max-size"] != "-1":
            raise InvalidInput("max-size must be a positive number")
    if "max-file" in options:
        files = number(options["max-file"])
        if files < 1:
            raise InvalidInput("max-file cannot be less than 1")
    if "compress" in options:
        compress = flag(options["compress"])
        if compress and (files == 1 or not limit):
            raise InvalidInput("compress cannot be true when max-file is less than 2 or max-size is not set")
    return Limits(limit, files, compress)


def _local_limits(options: Mapping[str, str], prefix: str = "") -> Limits:
    limit, files, compress = LOCAL.size, LOCAL.files, LOCAL.compress
    if (text := options.get(f"{prefix}max-size")) is not None:
        try:
            limit = size(text, 1024)
        except InvalidInput as fault:
            raise InvalidInput(f"invalid value for max-size: {text[:80]}: {fault.message}") from None
    if (text := options.get(f"{prefix}max-file")) is not None:
        try:
            files = number(text)
        except InvalidInput as fault:
            raise InvalidInput(f"invalid value for max-file: {text[:80]}: {fault.message}") from None
    if (text := options.get(f"{prefix}compress")) is not None:
        try:
            compress = flag(text)
        except InvalidInput as fault:
            raise InvalidInput(f"error reading compress log option: {fault.message}") from None
    if compress and files <= 1:
        raise InvalidInput("compression cannot be enabled when max file count is 1")
    if files < 1:
        raise InvalidInput("max file count must be greater than 0")
    return Limits(limit, files, compress)


def _journal_plan(
    record: ContainerRecord, options: Mapping[str, str], path: str, has_journal: bool
) -> LogPlan:
    if not has_journal:
        raise InvalidInput("journald is not enabled on this host")
    tag = _tag(record, options.get("tag") or "{{.ID}}")
    fields = {
        "CONTAINER_ID": record.short,
        "CONTAINER_ID_FULL": record.id,
        "CONTAINER_NAME": record.name,
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": record.image_name,
        "SYSLOG_IDENTIFIER": tag,
    }
    for key, value in _attributes(record, {**options, "tag": ""}, "journal").items():
        fields[key] = value
    limits = _local_limits(options, "cache-")
    cached = path if is_readable(record.host_config) else ""
    return LogPlan("journald", cached, limits.size, limits.files, compress=limits.compress, journal=fields)


def _attributes(record: ContainerRecord, options: Mapping[str, str], style: str) -> dict[str, str]:
    """What `labels`, `env` and `tag` choose, by name. style: `journal` for names that the journal takes."""
    labels: dict[str, str] = record.config["Labels"] or {}
    variables = dict(entry.partition("=")[::2] for entry in record.config["Env"] or [] if "=" in entry)
    found: dict[str, str] = {}
    for source, key in ((labels, "labels"), (variables, "env")):
        for name in options.get(key, "").split(",") if options.get(key) else []:
            if name in source:
                found[name] = source[name]
        if text := options.get(f"{key}-regex"):
            pattern = _pattern(text)
            found |= {name: value for name, value in source.items() if pattern.search(name)}
    if style == "journal":
        found = {_journal_name(name): value for name, value in found.items() if _journal_name(name)}
    if options.get("tag"):
        found["tag"] = _tag(record, options["tag"])
    return found


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        if "missing )" in str(error) or "unterminated subpattern" in str(error):
            raise InvalidInput(f"error parsing regexp: missing closing ): `{text[:80]}`") from None
        raise InvalidInput(f"error parsing regexp: {error}: `{text[:80]}`") from None


def _journal_name(name: str) -> str:
    """Upper case, digits and `_`, which it does not begin with."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper() if name.isascii() else name).lstrip("_")


def _tag(record: ContainerRecord, template: str) -> str:
    """The tag's template with the container's values. Of Go's template language it knows fields: `{{.Name}}`."""
    image = record.image_id.removeprefix("sha256:")
    values = {
        "ID": record.short, "FullID": record.id, "Name": record.name, "ImageID": image[:12], "ImageFullID": record.image_id,
        "ImageName": record.image_name, "DaemonName": "docker", "Command": " ".join([record.path, *record.args]),
        "ContainerID": record.id, "ContainerName": "/" + record.name, "ContainerEntrypoint": record.path,
        "ContainerImageID": record.image_id, "ContainerImageName": record.image_name,
    }  # fmt: skip

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise InvalidInput(
                f'template: log-tag:1:{match.start() + 2}: executing "log-tag" at <.{name}>: can\'t evaluate field {name} in '
                "type *logger.Info"
            )
        return values[name]

    text = re.sub(r"\{\{-?\s*\.(\w+)\s*-?\}\}", value, template)
    if "{{" in text:
        what = (
            "unclosed action"
            if "}}" not in text.rpartition("{{")[2]
            else "only fields are understood in a tag"
        )
        raise InvalidInput(f"template: log-tag:1: {what}")
    return text
