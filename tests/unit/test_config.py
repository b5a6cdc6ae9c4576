"""dockerd's flags and daemon.json keys: read, merged, refused by name, or ignored aloud."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.config import read


def given(tmp_path: Path, keys: object, *flags: str) -> list[str]:
    path = tmp_path / "daemon.json"
    path.write_text(keys if isinstance(keys, str) else json.dumps(keys))
    return ["--config-file", str(path), *flags]


def test_flags_and_keys_are_merged(tmp_path: Path) -> None:
    typed = read(
        given(
            tmp_path,
            {"data-root": "/d", "insecure-registries": ["a:1"], "debug": True},
            "-H",
            "tcp://127.0.0.1:1",
            "-H",
            "unix:///x",
        )
    )
    config = typed.config
    assert (config.data_root, config.hosts) == ("/d", ["tcp://127.0.0.1:1", "unix:///x"])
    assert config.insecure_registries == ["a:1"]
    assert config.log_level == "debug"


def test_the_same_in_both_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="both as a flag and in the configuration file: data-root"):
        read(given(tmp_path, {"data-root": "/d"}, "--data-root", "/e"))


def test_unknown_keys_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="don't match any configuration option: data_root, nonsense"):
        read(given(tmp_path, {"nonsense": 1, "data_root": "/d"}))


def test_unknown_flags_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="--nonsense"):
        read(["--nonsense"])


def test_what_dockerd_knows_and_ketch_ignores_is_named(tmp_path: Path) -> None:
    typed = read(given(tmp_path, {"iptables": True, "runtimes": {}}, "--userland-proxy=false"))
    assert sorted(typed.config.ignored) == ["iptables", "runtimes", "userland-proxy"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("{", "Expecting"), ("[]", "no JSON object"), ({"debug": "maybe"}, "neither true nor false"), ({"mtu": "x"}, "no whole number"),
        ({"hosts": "unix:///x"}, "a list of strings"), ({"log-opts": 1}, "a map"), ({"log-level": "loud"}, "invalid logging level"),
        ({"bip": "10.0.0.0/24"}, "invalid bip"), ({"hosts": ["ftp://x"]}, "invalid -H"), ({"mtu": 1}, "invalid mtu"),
        ({"storage-driver": "zfs"}, "unknown storage driver: zfs"), ({"max-concurrent-downloads": 0}, "invalid max-concurrent-downloads"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(tmp_path: Path, keys: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read(given(tmp_path, keys))


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file or directory"):
        read(["--config-file", str(tmp_path / "absent.json")])
