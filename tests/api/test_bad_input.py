"""Requests that are wrong: dockerd's status and words, and nothing changes, neither in the list of containers nor on the disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import needs_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_testing.machine import Machine
from ketchd.containers import fields

pytestmark = [needs_root, pytest.mark.root]

LONG = "n" * 10_000
BASE: dict[str, Any] = {"Image": "busybox", "Cmd": ["true"]}


def _tree(root: Path) -> list[str]:
    """Every path of the data root but the database's own files and what is being unlinked behind an answer."""
    return sorted(
        os.path.join(top, name)
        for top, directories, files in os.walk(root)
        for name in [*directories, *files]
        if not name.startswith("catalogue.sqlite") and "trash" not in Path(top, name).relative_to(root).parts
    )


def _world(machine: Machine) -> tuple[Any, ...]:
    rows = machine.json("GET", "/containers/json?all=1")
    return [row["Id"] for row in rows], machine.json("GET", "/volumes")["Volumes"], _tree(machine.data_root)


def _check_same(machine: Machine, before: tuple[Any, ...]) -> None:
    """Nothing has changed, or will not have when what was deleted has been unlinked behind the answer."""
    until = time.monotonic() + 20
    while (now := _world(machine)) != before and time.monotonic() < until:
        time.sleep(0.05)
    more, less = set(now[2]) - set(before[2]), set(before[2]) - set(now[2])
    assert (now[:2], more, less) == (before[:2], set(), set())


@pytest.fixture(scope="module")
def warm(machine: Machine) -> Machine:
    """A machine that has made a container with a volume before: the init layer and the directory of volumes are there."""
    made = machine.json("POST", "/containers/create", {**BASE, "Volumes": {"/v": {}}})
    machine.json("DELETE", f"/containers/{made['Id']}?v=1")
    return machine


@pytest.fixture
def unchanged(warm: Machine) -> Iterator[Machine]:
    """Fails unless the world is the same afterwards."""
    before = _world(warm)
    yield warm
    _check_same(warm, before)


def refused(machine: Machine, body: Any, status: int = 400, *, name: str = "", query: str = "") -> str:
    """The message of a create that is refused with `status`."""
    asked = f"/containers/create?name={quote(name)}" if name else f"/containers/create?{query}"
    got, answer = machine.request("POST", asked, body)
    assert got == status, answer
    message = json.loads(answer)["message"]
    assert message and "Traceback" not in message
    return str(message)


HOST_TABLE: list[tuple[dict[str, Any], str]] = [
    ({"Memory": -1}, "Minimum memory limit allowed is 6MB"),
    ({"Memory": 1024}, "Minimum memory limit allowed is 6MB"),
    ({"Memory": 1 << 25, "MemorySwap": 1 << 24}, "Minimum memoryswap limit should be larger than memory limit, see usage"),
    ({"MemorySwap": 1 << 25}, "You should always set the Memory limit when using Memoryswap limit, see usage"),
    ({"Memory": 1 << 24, "MemoryReservation": 1 << 25}, "Minimum memory limit can not be less than memory reservation limit, see usage"),
    ({"MemorySwappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
    ({"NanoCpus": 1}, "range of CPUs is from 0.01 to"),
    ({"NanoCpus": 10**9, "CpuPeriod": 100000}, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
    ({"NanoCpus": 10**9, "CpuQuota": 100000}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
    ({"CpuPeriod": 10}, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
    ({"CpuQuota": 10}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
    ({"CpuShares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
    ({"CpusetCpus": "9000"}, "Invalid value 9000 for cpuset cpus"),
    ({"CpusetCpus": "999"}, "Requested CPUs are not available - requested 999, available: "),
    ({"CpusetCpus": "a"}, "Invalid value a for cpuset cpus: invalid format: a"),
    ({"CpuRealtimeRuntime": 1000}, "Your kernel does not support CPU real-time scheduler"),
    ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
    ({"ShmSize": -1}, "SHM size can not be less than 0"),
    ({"OomScoreAdj": 2000}, "Invalid value 2000, range for oom score adj is [-1000, 1000]"),
    ({"RestartPolicy": {"Name": "sometimes"}}, "invalid restart policy: unknown policy 'sometimes'"),
    ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}, "invalid restart policy: maximum retry count can only be used with 'on-failure'"),
    ({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -1}}, "maximum retry count cannot be negative"),
    ({"RestartPolicy": {"Name": "always"}, "AutoRemove": True}, "can't create 'AutoRemove' container with restart policy"),
    ({"PidMode": "nobody"}, "invalid PID mode: nobody"),
    ({"IpcMode": "nobody"}, "invalid IPC mode: nobody"),
    ({"UTSMode": "container:x"}, "invalid UTS mode: container:x"),
    ({"UsernsMode": "mine"}, "invalid user namespace mode: mine"),
    ({"CgroupnsMode": "container:x"}, "invalid cgroup namespace mode: container:x"),
    ({"Runtime": "crun"}, "unknown or invalid runtime name: crun"),
    ({"Isolation": "hyperv"}, "invalid isolation 'hyperv' on linux"),
    ({"LogConfig": {"Type": "abacus"}}, 'error looking up logging plugin abacus: plugin "abacus" not found'),
    ({"LogConfig": {"Type": "json-file", "Config": {"max-size": "big"}}}, "big"),
    ({"LogConfig": {"Type": "json-file", "Config": {"max-file": "0"}}}, "max-file cannot be less than 1"),
    ({"CapAdd": ["FLY"]}, 'invalid CapAdd: unknown capability: "CAP_FLY"'),
    ({"CapDrop": ["CAP_FLY"]}, 'invalid CapDrop: unknown capability: "CAP_FLY"'),
    ({"SecurityOpt": ["nonsense"]}, 'invalid --security-opt 1: "nonsense"'),
    ({"SecurityOpt": ["non=sense"]}, 'invalid --security-opt 2: "non=sense"'),
    ({"SecurityOpt": ["no-new-privileges=perhaps"]}, 'invalid --security-opt 2: "no-new-privileges=perhaps"'),
    ({"SecurityOpt": ["seccomp={"]}, "decoding seccomp profile failed"),
    ({"SecurityOpt": ["seccomp=/no/such/file"]}, "opening seccomp profile (/no/such/file) failed"),
    ({"SecurityOpt": ["systempaths=some"]}, 'invalid --security-opt 2: "systempaths=some"'),
    ({"VolumesFrom": ["nobody"]}, "No such container: nobody"),
    ({"VolumesFrom": [""]}, "volumes-from specification cannot be an empty string"),
    ({"Ulimits": [{"Name": "shoes", "Soft": 1, "Hard": 1}]}, "invalid ulimit type: shoes"),
    ({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
    ({"Sysctls": {"kernel.core_pattern": "x"}}, 'sysctl "kernel.core_pattern" is not in a separate kernel namespace'),
    ({"Sysctls": {"net./../kernel.core_pattern": "x"}}, "is not in a separate kernel namespace"),
    ({"NetworkMode": "host", "Sysctls": {"net.core.somaxconn": "9"}}, 'sysctl "net.core.somaxconn" is not in a separate kernel namespace'),
    ({"DeviceCgroupRules": ["c 1"]}, "invalid device cgroup rule format"),
    ({"DeviceRequests": [{"Capabilities": [["gpu"]]}]}, 'could not select device driver "" with capabilities: [[gpu]]'),
    ({"StorageOpt": {"size": "1g"}}, "--storage-opt is supported only for overlay over xfs"),
    ({"Binds": ["/no/where:relative"]}, "invalid volume specification: '/no/where:relative': invalid mount config for type \"bind\": invalid mount path: 'relative' mount path must be absolute"),
    ({"Binds": ["vol:relative"]}, "invalid volume specification: 'vol:relative': invalid mount config for type \"volume\": invalid mount path: 'relative' mount path must be absolute"),
    ({"Binds": ["/x:/"]}, "invalid volume specification: '/x:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"),
    ({"Binds": ["vol:/x:rslave"]}, "invalid volume specification: 'vol:/x:rslave': invalid mount config for type \"volume\": field BindOptions must not be specified"),
    ({"Binds": ["v:/x"]}, "create v: volume name is too short, names should be at least two alphanumeric characters"),
    ({"Mounts": [{"Type": "volume", "Source": "v", "Target": "/y"}]}, "create v: volume name is too short, names should be at least two alphanumeric characters"),
    ({"Mounts": [{"Type": "volume", "Source": "/tmp", "Target": "/y"}]}, 'create /tmp: "/tmp" includes invalid characters for a local volume name'),
    ({"Mounts": [{"Type": "tmpfs", "Target": "y"}]}, "invalid mount config for type \"tmpfs\": invalid mount path: 'y' mount path must be absolute"),
    ({"Binds": ["/x:/proc/self"]}, '"/proc/self" cannot be mounted because it is inside /proc'),
    *(
        (sent, '"/proc" cannot be mounted because it is inside /proc')
        for sent in ({"Binds": ["vol:/proc"]}, {"Tmpfs": {"/proc": ""}}, {"Mounts": [{"Type": "tmpfs", "Target": "/tmp/../proc"}]})
    ),
    ({"Binds": ["/x:/y:fast"]}, "invalid mode: fast"),
    ({"Binds": [":/y"]}, "invalid spec: :/y: empty section between colons"),
    ({"Binds": ["a b:/y"]}, "includes invalid characters for a local volume name"),
    ({"Binds": ["/tmp:/y", "/var:/y"]}, "Duplicate mount point: /y"),
    ({"Mounts": [{"Type": "bind", "Source": "/no/such/place", "Target": "/y"}]}, 'invalid mount config for type "bind": bind source path does not exist: /no/such/place'),
    ({"Mounts": [{"Type": "bind", "Target": "/y"}]}, "field Source must not be empty"),
    ({"Mounts": [{"Type": "volume"}]}, "field Target must not be empty"),
    ({"Mounts": [{"Type": "volume", "Target": "/y", "ReadOnly": True}]}, "must not set ReadOnly mode when using anonymous volumes"),
    ({"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/y", "VolumeOptions": {"NoCopy": True}}]}, 'VolumeOptions must not be specified on mount type "bind"'),
    ({"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/y", "BindOptions": {"Propagation": "up"}}]}, "invalid propagation mode: up"),
    ({"Mounts": [{"Type": "wall", "Target": "/y"}]}, 'invalid mount config for type "wall": mount type unknown'),
    ({"Tmpfs": {"/y": "colour=red"}}, 'invalid tmpfs option ["colour=red"]'),
    ({"PortBindings": {"http": [{}]}}, 'invalid port specification: "http"'),
    ({"PortBindings": {"80-82/tcp": [{"HostPort": "90-91"}]}}, 'invalid port specification: "80-82/tcp"'),
    ({"PortBindings": {"80/tcp": [{"HostPort": "many"}]}}, 'invalid port specification: "many"'),
    ({"PortBindings": {"80/tcp": [{"HostPort": "90-80"}]}}, 'invalid port specification: "90-80"'),
    ({"PortBindings": {"80/tcp": [{"HostPort": "65536"}]}}, 'invalid port specification: "65536"'),
    ({"PortBindings": {"80/tcp": [{"HostIp": "here"}]}}, "invalid hostIP: here"),
    ({"NetworkMode": "container:x", "PortBindings": {"80/tcp": [{}]}}, "conflicting options: port publishing and the container type network mode"),
    ({"NetworkMode": "container:x", "Dns": ["1.1.1.1"]}, "conflicting options: dns and the network mode"),
    ({"NetworkMode": "container:x", "ExtraHosts": ["a:1.1.1.1"]}, "conflicting options: custom host-to-IP mapping and the network mode"),
    ({"ExtraHosts": ["nothing"]}, 'bad format for add-host: "nothing"'),
    ({"ExtraHosts": ["a:here"]}, 'invalid IP address in add-host: "here"'),
    ({"Dns": ["1.1.1.1\nnameserver 2.2.2.2"]}, "bad nameserver address"),
    ({"DnsSearch": ["a\nnameserver 2.2.2.2"]}, "is not a valid word of resolv.conf"),
    ({"GroupAdd": ["a\0b"]}, "invalid HostConfig.GroupAdd: it contains a NUL byte"),
    ({"Binds": ["/a\0b:/c"]}, "invalid HostConfig.Binds: it contains a NUL byte"),
    ({"CgroupParent": "a\0b"}, "invalid HostConfig.CgroupParent: it contains a NUL byte"),
]  # fmt: skip


@pytest.mark.parametrize(("host", "words"), HOST_TABLE, ids=[row[1][:50] for row in HOST_TABLE])
def test_host_config(unchanged: Machine, host: dict[str, Any], words: str) -> None:
    assert words in refused(unchanged, {**BASE, "HostConfig": host})


def test_a_commit_of_nothing(unchanged: Machine) -> None:
    status, answer = unchanged.request("POST", "/commit")

    assert (status, json.loads(answer)["message"]) == (400, 'invalid name or ID supplied: ""')


CONFIG_TABLE: list[tuple[dict[str, Any], str]] = [
    ({"WorkingDir": "relative"}, "the working directory 'relative' is invalid, it needs to be an absolute path"),
    ({"Env": ["=x"]}, "invalid environment variable: =x"),
    ({"Env": ["A=\0"]}, "invalid Env: it contains a NUL byte"),
    ({"Cmd": ["a\0b"]}, "invalid Cmd: it contains a NUL byte"),
    ({"User": "a\0b"}, "invalid User: it contains a NUL byte"),
    ({"Hostname": "h" * 65}, "invalid hostname: hhhh"),
    ({"Hostname": "a\nb"}, "invalid hostname: a\nb"),
    ({"Domainname": "d" * 65}, "invalid domainname: dddd"),
    ({"StopSignal": "SIGNOPE"}, "invalid signal: SIGNOPE"),
    ({"StopSignal": "65"}, "invalid signal: 65"),
    ({"ExposedPorts": {"0/tcp": {}}}, 'invalid port specification: "0/tcp"'),
    ({"ExposedPorts": {"80/smoke": {}}}, 'invalid port specification: "80/smoke"'),
    ({"Healthcheck": {"Test": ["CMD", "true"], "Interval": 5}}, "Interval in Healthcheck cannot be less than 1ms"),
    ({"Healthcheck": {"Test": ["CMD", "true"], "Retries": -1}}, "Retries in Healthcheck cannot be negative"),
    ({"User": "busybox", "ExposedPorts": {"80/tcp": {}}, "HostConfig": {"NetworkMode": "container:y"}}, "conflicting options: port exposing and the container type network mode"),
    ({"Image": "Not:A:Name"}, "invalid reference format"),
    ({"MacAddress": "zz"}, "invalid MAC address: zz"),
    ({"Hostname": "x", "HostConfig": {"UTSMode": "host"}}, "conflicting options: hostname and the UTS mode"),
    ({"Hostname": "x", "HostConfig": {"NetworkMode": "container:y"}}, "conflicting options: hostname and the network mode"),
    ({"Cmd": 5}, "invalid JSON: cannot unmarshal number into field Cmd of type []string"),
    ({"Tty": "yes"}, "invalid JSON: cannot unmarshal string into field Tty of type bool"),
    ({"Env": {"A": "b"}}, "invalid JSON: cannot unmarshal object into field Env of type []string"),
    ({"HostConfig": {"Memory": "64m"}}, "invalid JSON: cannot unmarshal string into field HostConfig.Memory of type int64"),
    ({"HostConfig": {"Memory": 1.5}}, "invalid JSON: cannot unmarshal number into field HostConfig.Memory of type int64"),
    ({"HostConfig": {"Memory": 1 << 70}}, "invalid JSON: cannot unmarshal number into field HostConfig.Memory of type int64"),
    ({"HostConfig": []}, "invalid JSON: cannot unmarshal array into field HostConfig of type object"),
    ({"NetworkingConfig": {"EndpointsConfig": {"bridge": 4}}}, "invalid JSON: cannot unmarshal number into field NetworkingConfig.EndpointsConfig of type object"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), CONFIG_TABLE, ids=[row[1][:50] for row in CONFIG_TABLE])
def test_config(unchanged: Machine, config: dict[str, Any], words: str) -> None:
    assert words in refused(unchanged, {**BASE, **config})


def test_names(unchanged: Machine) -> None:
    """What the request's address says is checked as well."""
    rule = "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    for name in ("a b", "-a", "a\0b", "a/b", "ä"):
        assert rule in refused(unchanged, BASE, name=name), name
    said = refused(unchanged, BASE, name=LONG)
    assert said.startswith("Invalid container name (nnnn") and len(said) < 200
    assert "cannot parse platform specifier" in refused(unchanged, BASE, query="platform=linux/a/b/c")
    assert "does not match the specified platform" in refused(
        unchanged, BASE, 404, query="platform=linux/s390x"
    )


def test_bodies(unchanged: Machine) -> None:
    """Documents that are no create request."""
    json_type = {"Content-Type": "application/json"}
    for raw, words in (
        (b"", "config cannot be empty in order to create a container"),
        (b"{}", "config cannot be empty in order to create a container"),
        (b"[]", "invalid JSON: an object is expected"),
        (b'{"Image": "busybox"', "invalid JSON"),
        (b'{"Image": NaN}', "invalid JSON: invalid character 'N' looking for beginning of value"),
        (b'{"Image": -Infinity}', "invalid JSON: invalid character 'I' in numeric literal"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"HostConfig": {"Memory": ' + b"9" * 6000 + b"}}", "invalid JSON"),
    ):
        status, answer = unchanged.request("POST", "/containers/create", raw=raw, headers=json_type)
        assert status == 400 and words in json.loads(answer)["message"], (raw[:40], answer)
    status, answer = unchanged.request(
        "POST", "/containers/create", raw=b"Image=busybox", headers={"Content-Type": "text/plain"}
    )
    assert status == 400 and b"unsupported Content-Type header (text/plain)" in answer


def test_the_body_is_read_before_the_thing_is_looked_for(unchanged: Machine) -> None:
    for path in (
        "/containers/nobody/exec", "/exec/nobody/start", "/volumes/create", "/networks/create", "/containers/nobody/update",
        "/networks/nobody/connect", "/networks/nobody/disconnect", "/commit?container=nobody",
    ):  # fmt: skip
        status, answer = unchanged.request(
            "POST", path, raw=b"{bad", headers={"Content-Type": "application/json"}
        )
        said = json.loads(answer)["message"]
        assert (status, said) == (
            400, "invalid JSON: invalid character 'b' looking for beginning of object key string"
        ), path  # fmt: skip


def test_missing_things(unchanged: Machine) -> None:
    """404 for what is not there."""
    assert refused(unchanged, {"Image": "nope"}, 404) == "No such image: nope:latest"
    for method, path in (
        ("GET", "/containers/nobody/json"), ("POST", "/containers/nobody/start"), ("POST", "/containers/nobody/kill"),
        ("DELETE", "/containers/nobody"), ("POST", "/containers/nobody/rename?name=x"), ("GET", "/exec/nobody/json"),
    ):  # fmt: skip
        status, answer = unchanged.request(method, path)
        assert status == 404 and "nobody" in json.loads(answer)["message"]


def test_logs_of_no_stream(unchanged: Machine) -> None:
    """Said before the container is looked for."""
    status, answer = unchanged.request("GET", "/containers/nobody/logs")
    assert (status, json.loads(answer)["message"]) == (
        400,
        "Bad parameters: you must choose at least one stream",
    )


def test_duplicate_keys(warm: Machine) -> None:
    """As Go's decoder: the last of a name wins, whatever its case, and null takes nothing away."""
    raw = b'{"Image": "nope", "image": "busybox", "Cmd": ["false"], "CMD": ["true"], "Image": null}'
    status, answer = warm.request(
        "POST", "/containers/create", raw=raw, headers={"Content-Type": "application/json"}
    )
    assert status == 201, answer
    made = json.loads(answer)["Id"]
    try:
        assert warm.json("GET", f"/containers/{made}/json")["Config"]["Cmd"] == ["true"]
    finally:
        warm.json("DELETE", f"/containers/{made}")


def test_of_a_running_container(warm: Machine) -> None:
    """Signals, sizes, conditions, names and execs that cannot be leave it as it is."""
    made = warm.json("POST", "/containers/create?name=stays", {**BASE, "Cmd": ["sleep", "3600"]})["Id"]
    try:
        warm.json("POST", f"/containers/{made}/start")
        before = warm.json("GET", f"/containers/{made}/json")
        for path, status, words in (
            ("kill?signal=SIGNOPE", 400, f"cannot kill container: {made}: invalid signal: SIGNOPE"),
            ("kill?signal=0", 400, "invalid signal: 0"),
            ("kill?signal=99", 400, "invalid signal: 99"),
            ("stop?signal=NOPE", 400, "invalid signal: NOPE"),
            ("stop?t=soon", 400, 'strconv.Atoi: parsing "soon": invalid syntax'),
            ("resize?h=a&w=b", 400, "invalid resize height or width"),
            ("wait?condition=dreaming", 400, 'invalid condition: "dreaming"'),
            ("rename?name=a b", 400, "Error when allocating new name: Invalid container name (a b), only"),
            ("rename", 400, "Neither old nor new names may be empty"),
            ("rename?name=stays", 400, "same name as its current name"),
            ("unpause", 409, "is not paused"),
        ):
            got, answer = warm.request("POST", f"/containers/{made}/{path.replace(' ', '%20')}")
            assert got == status and words in json.loads(answer)["message"], (path, answer)
        for body, words in (
            ({}, "No exec command specified"),
            ({"Cmd": "ls"}, "cannot unmarshal string into field Cmd of type []string"),
            ({"Cmd": ["a\0"]}, "invalid Cmd: it contains a NUL byte"),
            ({"Cmd": ["ls"], "DetachKeys": "ctrl-1"}, "Invalid escape keys (ctrl-1) provided"),
            ({"Cmd": ["ls"], "Env": 5}, "cannot unmarshal number into field Env"),
            ({"Cmd": ["ls"], "ConsoleSize": ["a"]}, "cannot unmarshal string into field ConsoleSize"),
        ):
            got, answer = warm.request("POST", f"/containers/{made}/exec", body)
            assert got == 400 and words in json.loads(answer)["message"], answer
        for update, words in (
            ({"Memory": -5}, "Minimum memory limit allowed is 6MB"),
            ({"Memory": "5"}, "cannot unmarshal string into field Memory of type int64"),
            ({"RestartPolicy": {"Name": "maybe"}}, "unknown policy 'maybe'"),
            ({"CpusetCpus": "x"}, "Invalid value x for cpuset cpus"),
        ):
            got, answer = warm.request("POST", f"/containers/{made}/update", update)
            assert got == 400 and words in json.loads(answer)["message"], answer
        for connect, words in (
            ({"EndpointConfig": 4}, "cannot unmarshal number into field EndpointConfig of type object"),
            ({"EndpointConfig": {"DriverOpts": 3}}, "number into field EndpointConfig.DriverOpts of type map[string]string"),
            ({"EndpointConfig": {"Links": [5]}}, "cannot unmarshal number into field EndpointConfig.Links of type string"),
            ({"EndpointConfig": {"IPAMConfig": []}}, "cannot unmarshal array into field EndpointConfig.IPAMConfig"),
            ({"Container": 5}, "cannot unmarshal number into field Container of type string"),
        ):  # fmt: skip
            got, answer = warm.request("POST", "/networks/none/connect", {"Container": made, **connect})
            assert got == 400 and words in json.loads(answer)["message"], answer
        got, answer = warm.request("POST", "/networks/none/disconnect", {"Container": made, "Force": "yes"})
        assert got == 400 and "string into field Force of type bool" in json.loads(answer)["message"], answer
        got, answer = warm.request("POST", "/containers/create?name=stays", BASE)
        assert got == 409 and f'is already in use by container "{made}"' in json.loads(answer)["message"]
        assert warm.json("GET", f"/containers/{made}/json") == before
    finally:
        warm.request("DELETE", f"/containers/{made}?force=1")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
    | st.sampled_from(["host", "container:x", "/a:/b", "80/tcp", "no", "../..", "\ud800", "a\0b", "-1", LONG]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["Name", "Type", "Target", "Source", "Path", "Test", "80/tcp", "Config"]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip
PATHS = [("", key) for key in fields.CREATE if key not in ("HostConfig", "NetworkingConfig")] + [
    ("HostConfig", key) for key in fields.HOST_CONFIG
]
# Where a well-formed word makes something on the host: a directory for a bind, a volume, another image's 404.
_OUTSIDE = {"Binds", "Mounts", "Image"}


@pytest.mark.parametrize(("above", "key"), PATHS, ids=[f"{above}.{key}" for above, key in PATHS])
def test_any_json_in_any_field(warm: Machine, above: str, key: str) -> None:
    """Made (201) or refused (4xx), never a failure of ours; what was made is removed, and nothing else has changed."""
    before = _world(warm)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(JSON_VALUES)
    def ask(value: Any) -> None:
        if key in _OUTSIDE and isinstance(value, list):
            value = [one for one in value if not isinstance(one, str)]
        body = {**BASE, above: {key: value}} if above else {**BASE, key: value}
        status, answer = warm.request("POST", "/containers/create", body)
        assert status == 201 or 400 <= status < 500 or status == 501, (body, status, answer)
        if status == 201:
            made = json.loads(answer)["Id"]
            assert warm.request("GET", f"/containers/{made}/json")[0] == 200
            assert warm.request("GET", "/containers/json?all=1")[0] == 200
            assert warm.request("DELETE", f"/containers/{made}?v=1")[0] == 204
        else:
            assert json.loads(answer)["message"]

    ask()
    _check_same(warm, before)
