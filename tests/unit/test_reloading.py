"""What a SIGHUP changes, and what it leaves: the running settings beside those that were read again."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from ketchd.config import Config
from ketchd.reloading import RELOADABLE, attributes, compare

RUNNING = Config(hosts=["unix:///x"], labels=["a=1"], mtu=1400)


def another(name: str) -> object:
    """A value that the setting does not have in RUNNING."""
    value = getattr(RUNNING, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return (
        {"x": True}
        if isinstance(value, dict)
        else [*value, "x=2"]
        if isinstance(value, list)
        else f"{value}x"
    )


SETTINGS = sorted({entry.name for entry in fields(Config)} - {"ignored"})


def test_nothing_has_changed() -> None:
    reload = compare(RUNNING, replace(RUNNING))
    assert reload.config == RUNNING
    assert not reload.changed and not reload.waiting and not reload.ignored


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_taken_or_waits(name: str) -> None:
    """One of both, by its key; what waits runs on with the value it had, and is told each time."""
    found = replace(RUNNING, **{name: another(name)})
    reload = compare(RUNNING, found)
    key = name.replace("_", "-")
    if name in RELOADABLE:
        assert (reload.config, reload.changed, reload.waiting) == (found, [key], [])
        assert not compare(reload.config, found).changed
    else:
        assert (reload.config, reload.changed, reload.waiting) == (RUNNING, [], [key])
        assert compare(reload.config, found).waiting == [key]


def test_dockerds_list_of_what_is_reloaded() -> None:
    """Every one has its attribute in the event; `ketch` is ours."""
    told = set(attributes(RUNNING, "here", 2))
    assert {name.replace("_", "-") for name in RELOADABLE} - {"ketch"} == told - {"name", "runtimes"}


def test_a_key_that_is_gone_has_its_default_again() -> None:
    reload = compare(RUNNING, Config(hosts=["unix:///x"]))
    assert (reload.config.labels, reload.changed) == ([], ["labels"])
    assert (reload.config.mtu, reload.waiting) == (1400, ["mtu"])


def test_what_is_ignored_is_told_when_it_comes() -> None:
    first = compare(RUNNING, replace(RUNNING, ignored=["iptables"]))
    assert (first.ignored, first.changed, first.waiting) == (["iptables"], [], [])
    assert not compare(first.config, replace(RUNNING, ignored=["iptables"])).ignored


def test_the_event_in_dockerds_words() -> None:
    """Recorded of Debian's dockerd 20.10 with the same settings, but for what 28 has no more, and the runtimes' path."""
    config = Config(
        labels=["a=c"], debug=True, registry_mirrors=["https://m.example"], insecure_registries=["reg:5000", "10.0.0.0/8"],
        max_concurrent_downloads=9, default_shm_size=1 << 20, features={"buildkit": True},
    )  # fmt: skip
    assert attributes(config, "vm", 1) == {
        "debug": "true", "default-cgroupns-mode": "host", "default-ipc-mode": "private", "default-runtime": "runc",
        "default-shm-size": "1048576", "features": "map[buildkit:true]", "insecure-registries": json.dumps(["reg:5000", "10.0.0.0/8"], separators=(",", ":")),
        "labels": '["a=c"]', "live-restore": "true", "max-concurrent-downloads": "9", "max-concurrent-uploads": "5",
        "max-download-attempts": "5", "name": "vm", "registry-mirrors": '["https://m.example"]',
        "runtimes": "runc:ketch io.containerd.runc.v2:ketch ketch:ketch", "shutdown-timeout": "15",
    }  # fmt: skip
    plain = attributes(Config(default_ipc_mode="shareable", features={"b": False, "a": True}), "vm", 2)
    assert (plain["default-cgroupns-mode"], plain["default-ipc-mode"]) == ("private", "shareable")
    assert (plain["features"], plain["labels"]) == ("map[a:true b:false]", "[]")
