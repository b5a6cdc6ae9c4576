"""dockerd's flags and daemon.json keys: read, merged, refused by name, or ignored aloud."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

import ketchd
from ketch_wire.faults import InvalidInput
from ketchd.config import Config, read
from ketchd.ignored import IGNORED, ignored_because


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
    assert (config.log_level, config.effective_log_level) == ("info", "debug")


@pytest.mark.parametrize("value", [True, False])
def test_to_speak_of_tlsverify_is_to_want_tls(tmp_path: Path, value: bool) -> None:
    """`false` is TLS for everybody, never plain TCP."""
    flag = f"--tlsverify={str(value).lower()}"
    for keys, flags in (({}, (flag,)), ({"tlsverify": value}, ())):
        config = read(given(tmp_path, keys, *flags)).config
        assert (config.tls, config.tlsverify) == (True, value)


def test_tls_alone_verifies_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without `-H` it is TCP on this host. The flag finds certificates where docker's clients have them."""
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certificates")
    for keys, flags in (({}, ("--tls",)), ({"tls": True}, ())):
        config = read(given(tmp_path, keys, *flags)).config
        assert (config.tls, config.tlsverify, config.hosts) == (True, True, ["tcp://localhost:2376"])
    config = read(given(tmp_path, {}, "--tls", "--tlskey=/k")).config
    assert (config.tlscacert, config.tlscert, config.tlskey) == (
        "/certificates/ca.pem",
        "/certificates/cert.pem",
        "/k",
    )
    config = read(given(tmp_path, {}, "--tls=false")).config
    assert (config.tls, config.tlsverify) == (False, False)


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
        ({"bip": "10.0.0.0/24"}, "invalid bip"), ({"hosts": ["ftp://x"]}, "invalid bind address format: ftp://x"), ({"mtu": 1}, "invalid mtu"),
        ({"dns": ["here"]}, "here is not an ip address"), ({"dns-search": ["a b"]}, "a b is not a valid domain"),
        ({"dns-opts": [""]}, "is not a valid word"), ({"ip": "everywhere"}, "everywhere is not an ip address"),
        ({"default-shm-size": "much"}, "invalid size: 'much'"), ({"default-shm-size": 1}, 'invalid size: "1"'),
        ({"default-ulimits": {"nofile": {"Soft": 2, "Hard": 1}}}, "less than or equal to hard limit: 2 > 1"),
        ({"default-ulimits": {"files": {"Soft": 1, "Hard": 1}}}, "invalid ulimit type: files"),
        ({"default-ulimits": {"core": {"Soft": "x"}}}, "invalid ulimit argument: core"), ({"labels": ["alone"]}, "bad attribute format: alone"),
        ({"default-ipc-mode": "host"}, 'IPC mode "host" is not supported as default value'),
        ({"default-cgroupns-mode": "x"}, "default cgroup namespace mode (.x.) is invalid"),
        ({"default-runtime": "runsc"}, "specified default runtime 'runsc' does not exist"),
        ({"authorization-plugins": ["x"]}, "authorization-plugins is not supported"), ({"graph": "/x"}, "configuration option: graph"),
        ({"storage-driver": "zfs"}, "unknown storage driver: zfs"), ({"max-concurrent-downloads": 0}, "invalid max-concurrent-downloads"),
        ({"registry-mirrors": ["ftp://x"]}, 'invalid mirror: unsupported scheme "ftp" in "ftp://x"'),
        ({"registry-mirrors": ["http://[x"]}, "is not a valid URI"), ({"insecure-registries": ["http://x"]}, "should not contain '://'"),
        ({"labels": ["a=1", "a=2"]}, "conflict labels for a=2 and a=1"), ({"features": {"buildkit": "yes"}}, "a map of true and false"),
        ({"default-address-pools": "x"}, "a list of base and size"), ({"default-address-pools": [{"base": "10.0.0.0/8"}]}, "a list of base and size"),
        ({"default-address-pools": [{"base": "10.0.0.0/8", "size": 7}]}, "has no subnets of size 7"),
        ({"bip": "fd00::1/64"}, "invalid bip"), ({"fixed-cidr": "10.0.0.0"}, "invalid CIDR address: 10.0.0.0"),
        ({"fixed-cidr": "fd00::/64"}, "invalid CIDR address: fd00::/64"), ({"fixed-cidr": "10.0.0.0/31"}, "no room for a gateway"),
        ({"bip": "10.0.0.1/24", "fixed-cidr": "10.0.1.0/24"}, "fixed-cidr 10.0.1.0/24 is not in the subnet 10.0.0.0/24"),
        ({"default-gateway": "x"}, "x is not an ip address"), ({"default-gateway": "fd00::1"}, "it is no IPv4 address"),
        ({"bip": "10.0.0.1/24", "default-gateway": "10.0.1.1"}, "must belong to the master pool: 10.0.0.0/24"),
        ({"fixed-cidr": "10.0.0.0/24", "default-gateway": "10.0.0.1"}, "DefaultGatewayIPv4:10.0.0.1.: Address already in use"),
        ({"host-gateway-ip": "x"}, "x is not an ip address"), ({"host-gateway-ips": ["10.0.0.1", "10.0.0.2"]}, "one IPv4 and one IPv6"),
        ('{"mtu": Infinity}', "no whole number"), ('{"labels": ["a=\\ud800"]}', "surrogates not allowed"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(tmp_path: Path, keys: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read(given(tmp_path, keys))


def test_what_containers_get_is_read_from_both_places(tmp_path: Path) -> None:
    config = read(
        given(
            tmp_path,
            {"default-shm-size": "128M", "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}}, "authorization-plugins": []},
            "--init", "--dns", "9.9.9.9", "--dns-search", "example.com", "--dns-search", ".", "--no-new-privileges=true",
        )
    ).config  # fmt: skip
    assert (config.default_shm_size, config.default_ulimits) == (128 << 20, {"nofile": (10, 20)})
    assert (config.init, config.dns, config.dns_search) == (True, ["9.9.9.9"], ["example.com", "."])
    assert (config.no_new_privileges, config.ignored) == (True, [])
    config = read(
        ["--default-ulimit", "nofile=1:2", "--default-ulimit", "core=-1", "--default-shm-size", "1g"]
    ).config
    assert (config.default_shm_size, config.default_ulimits) == (
        1 << 30,
        {"nofile": (1, 2), "core": (-1, -1)},
    )


def test_address_pools_are_read_from_both_places(tmp_path: Path) -> None:
    expected = [("10.1.0.0/16", 24), ("10.2.0.0/16", 20)]
    pools = [{"base": base, "size": size} for base, size in expected]
    assert read(given(tmp_path, {"default-address-pools": pools})).config.default_address_pools == expected
    flags = [f"--default-address-pool=base={base},size={size}" for base, size in expected]
    assert read(flags).config.default_address_pools == expected


def test_the_default_bridge_is_read_from_both_places(tmp_path: Path) -> None:
    """`host-gateway-ip` is one in the file of 20.10, and a list with another name in 28's; an MTU of 0 is the usual one."""
    keys = {
        "bip": "10.0.0.1/24",
        "fixed-cidr": "10.0.0.65/26",
        "default-gateway": "10.0.0.2",
        "host-gateway-ip": "192.0.2.1",
        "mtu": 0,
    }
    config = read(given(tmp_path, keys)).config
    assert (config.fixed_cidr, config.default_gateway, config.mtu) == ("10.0.0.65/26", "10.0.0.2", 1500)
    assert (config.host_gateway_ips, config.ignored) == (["192.0.2.1"], [])
    flags = [
        "--fixed-cidr=10.0.0.0/24",
        "--default-gateway=10.0.0.9",
        "--host-gateway-ip=192.0.2.1",
        "--host-gateway-ip=2001:db8::1",
    ]
    config = read(given(tmp_path, {}, *flags)).config
    assert (config.fixed_cidr, config.default_gateway) == ("10.0.0.0/24", "10.0.0.9")
    assert config.host_gateway_ips == ["192.0.2.1", "2001:db8::1"]
    with pytest.raises(InvalidInput, match="both as a flag and in the configuration file: host-gateway-ips"):
        read(given(tmp_path, {"host-gateway-ip": "192.0.2.1"}, "--host-gateway-ip=192.0.2.1"))


def test_a_label_is_there_once(tmp_path: Path) -> None:
    assert read(given(tmp_path, {"labels": ["a=1", "b=", "a=1"]})).config.labels == ["a=1", "b="]


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["gc", "Soft", "nofile", "x"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given_values(key=st.sampled_from(sorted(entry.name.replace("_", "-") for entry in fields(Config))), value=_ANYTHING)  # fmt: skip
def test_a_file_is_read_or_refused(key: str, value: object) -> None:
    """A running daemon reads it too: nothing that stands in it may be a surprise."""
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(InvalidInput):
        assert isinstance(read(given(Path(name), {key: value})).config, Config)


# Read by `config` itself, or only there to be shown.
_NOT_LOOKED_UP = {"ignored", "log_level"}


@pytest.mark.parametrize("name", sorted({entry.name for entry in fields(Config)} - _NOT_LOOKED_UP))
def test_every_setting_is_used(name: str) -> None:
    """What is accepted is used by the daemon; otherwise it belongs to those that are ignored aloud or refused."""
    root = Path(ketchd.__file__).parent
    users = [root / "assembly.py", root / "process.py", root / "reloading.py"]
    assert any(re.search(rf"config\.{name}\b", path.read_text()) for path in users)


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_every_ignored_key_says_why(tmp_path: Path, key: str) -> None:
    config = read(given(tmp_path, {key: {"x": True} if key == "features" else "x"})).config
    assert config.ignored == [key]
    assert ignored_because(key)
    assert read([f"--{key}=x"]).config.ignored == [key]


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file or directory"):
        read(["--config-file", str(tmp_path / "absent.json")])


def test_proxies(tmp_path: Path) -> None:
    """By flags or, in dockerd's form, by the file; not by both."""
    config = read(given(tmp_path, {"proxies": {"https-proxy": "http://p:1", "no-proxy": "a,b"}})).config
    assert (config.http_proxy, config.https_proxy, config.no_proxy) == ("", "http://p:1", "a,b")
    assert read(["--http-proxy", "http://q"]).config.http_proxy == "http://q"
    with pytest.raises(InvalidInput, match="both as a flag and in the configuration file: https-proxy"):
        read(given(tmp_path, {"proxies": {"https-proxy": "http://p:1"}}, "--https-proxy=http://q"))
    with pytest.raises(InvalidInput, match="invalid value of proxies"):
        read(given(tmp_path, {"proxies": {"socks": "x"}}))


def test_null_is_not_set(tmp_path: Path) -> None:
    """As in Go: also beside the flag, which is then alone."""
    typed = given(tmp_path, {"max-concurrent-uploads": None, "labels": None, "mtu": None}, "--mtu", "1400")
    config = read(typed).config
    assert (config.max_concurrent_uploads, config.labels, config.mtu) == (5, [], 1400)
