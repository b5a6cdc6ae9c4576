"""Files of the host that containers' files are made from."""

from __future__ import annotations

from pathlib import Path

from ketchd.network.files import only_loopback

_RESOLV_CONF = "/etc/resolv.conf"
_BEHIND_THE_STUB = "/run/systemd/resolve/resolv.conf"


def read(path: str) -> str:
    """A file's text, empty when it is not there."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def resolv_conf() -> str:
    """The host's, as the host uses it."""
    return read(_RESOLV_CONF)


def for_containers(path: str) -> str:
    """A file as a container can use it: for resolv.conf the real servers behind systemd's stub."""
    text = read(path)
    if path == _RESOLV_CONF and only_loopback(text):
        return read(_BEHIND_THE_STUB) or text
    return text
