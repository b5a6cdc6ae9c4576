"""What a daemon.json gives to containers that say nothing of their own, looked at from inside; and what SIGHUP makes of a new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.machine import BIN, Machine, registry
from ketch_testing.machine import running as machine_of_its_own

pytestmark = [needs_root, pytest.mark.root]

KETCH = str(BIN / "ketch")
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
}


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ketch-settings-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def daemon(base: Path) -> Iterator[Machine]:
    made = Machine(base / "m")
    (base / "profile.json").write_text(json.dumps(PROFILE))
    (made.base / "daemon.json").write_text(
        json.dumps(
            {
                "init": True, "default-shm-size": "32m", "dns": ["192.0.2.7"], "dns-opts": ["timeout:3"],
                "dns-search": ["example.com"], "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 100, "Hard": 200}},
                "no-new-privileges": True, "default-ipc-mode": "shareable", "default-cgroupns-mode": "host",
                "seccomp-profile": str(base / "profile.json"), "labels": ["site=lab"], "shutdown-timeout": 20,
                "default-address-pools": [{"base": "10.231.0.0/16", "size": 24}], "host-gateway-ip": "192.0.2.8",
                "fixed-cidr": "10.231.9.64/26", "bip": "10.231.9.1/24", "default-gateway": "10.231.9.65",
            }
        )
    )  # fmt: skip
    try:
        made.start()
        import_busybox(made)
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


def inside(daemon: Machine, *options: str, script: str) -> str:
    return daemon.run(KETCH, "run", "--rm", *options, "busybox", "sh", "-c", script).stdout


def states_of(daemon: Machine) -> dict[str, str]:
    return {row["Names"][0]: row["State"] for row in daemon.json("GET", "/containers/json?all=1")}


def host_config(daemon: Machine, *options: str) -> Any:
    name = daemon.run(KETCH, "create", *options, "busybox", "true").stdout.strip()
    try:
        return daemon.json("GET", f"/containers/{name}/json")["HostConfig"]
    finally:
        daemon.request("DELETE", f"/containers/{name}")


def test_settled_at_create_and_shown(daemon: Machine) -> None:
    """What dockerd writes into HostConfig, and what it does not."""
    host = host_config(daemon)
    assert (host["ShmSize"], host["IpcMode"], host["CgroupnsMode"]) == (32 << 20, "shareable", "host")
    assert host["Ulimits"] == [{"Name": "nofile", "Hard": 200, "Soft": 100}]
    assert not host["Dns"] and not host["SecurityOpt"] and "Init" not in host
    own = host_config(
        daemon, "--shm-size", "1m", "--ipc", "private", "--ulimit", "nofile=5", "--ulimit", "nproc=9", "--cgroupns", "private"
    )  # fmt: skip
    assert (own["ShmSize"], own["IpcMode"], own["CgroupnsMode"]) == (1 << 20, "private", "private")
    assert sorted(one["Name"] for one in own["Ulimits"]) == ["nofile", "nproc"]
    assert next(one["Hard"] for one in own["Ulimits"] if one["Name"] == "nofile") == 5


def test_init(daemon: Machine) -> None:
    assert inside(daemon, script="exec cat /proc/1/cmdline") != inside(
        daemon, "--init=false", script="exec cat /proc/1/cmdline"
    )
    assert inside(daemon, script="echo $$").strip() != "1"
    assert inside(daemon, "--init=false", script="echo $$").strip() == "1"


def test_shm_and_ulimits(daemon: Machine) -> None:
    assert "32768" in inside(daemon, script="df -k /dev/shm")
    assert inside(daemon, script="ulimit -Sn; ulimit -Hn").split() == ["100", "200"]
    assert inside(daemon, "--ulimit", "nofile=50:60", script="ulimit -Sn; ulimit -Hn").split() == ["50", "60"]


def test_the_default_network(daemon: Machine) -> None:
    """A part of the subnet, another gateway, and another address of the host: shown and seen from inside, in a build too."""
    name = daemon.run(
        KETCH, "run", "-d", "--add-host", "host:host-gateway", "busybox", "sleep", "100"
    ).stdout.strip()
    try:
        network = daemon.json("GET", f"/containers/{name}/json")["NetworkSettings"]
        assert network["Gateway"] == network["Networks"]["bridge"]["Gateway"] == "10.231.9.65"
        assert IPv4Address(network["IPAddress"]) in IPv4Network("10.231.9.64/26")
        assert network["IPPrefixLen"] == 24
        seen = daemon.run(KETCH, "exec", name, "sh", "-c", "ip route; cat /etc/hosts").stdout
        assert "default via 10.231.9.65" in seen and "192.0.2.8\thost\n" in seen
    finally:
        daemon.request("DELETE", f"/containers/{name}?force=1")
    dockerfile = b"FROM busybox\nRUN cat /etc/hosts\n"
    built = daemon.run(
        "docker", "build", "-q=false", "--no-cache", "--add-host", "host:host-gateway", "-", stdin=dockerfile
    )  # fmt: skip
    assert "192.0.2.8\thost" in built.stdout
    daemon.run(KETCH, "image", "prune", "-f")


def test_resolv_conf(daemon: Machine) -> None:
    """Each of the three is the container's own, or else the daemon's; on the host's network too."""
    wanted = ["nameserver 192.0.2.7", "search example.com", "options timeout:3"]
    for options in ((), ("--network", "none"), ("--network", "host")):
        lines = inside(daemon, *options, script="cat /etc/resolv.conf").splitlines()
        assert [line for line in lines if not line.startswith("#")] == wanted
    lines = inside(daemon, "--dns", "192.0.2.9", script="cat /etc/resolv.conf").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["nameserver 192.0.2.9", *wanted[1:]]
    daemon.run(KETCH, "network", "create", "own")
    try:
        lines = inside(daemon, "--network", "own", script="cat /etc/resolv.conf").splitlines()
        assert [line for line in lines if not line.startswith("#")] == [
            "nameserver 127.0.0.11", "search example.com", "options timeout:3 ndots:0",
        ]  # fmt: skip
    finally:
        daemon.run(KETCH, "network", "rm", "own")


def test_no_default_network() -> None:
    """With `--bridge none` what would be on it has its loopback alone, a build's steps too; networks of its own work on."""
    with machine_of_its_own(flags=("--bridge", "none")) as own:
        import_busybox(own)
        script = "ip -o link | cut -d: -f2"
        for options in ((), ("--network", "bridge"), ("-p", "127.0.0.1::80")):
            assert inside(own, *options, script=script).split() == ["lo"]
        context = own.base / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM busybox\nRUN {script} > /links\n")
        own.run(KETCH, "build", "-q", "-t", "built", str(context))
        assert own.run(KETCH, "run", "--rm", "built", "cat", "/links").stdout.split() == ["lo"]
        own.run(KETCH, "network", "create", "one")
        assert "eth0" in inside(own, "--network", "one", script=script)
        own.run(KETCH, "network", "rm", "one")


def test_address_pools(daemon: Machine, running: Machine) -> None:
    """The default network's subnet and a new one's are out of them; info shows them, where there are any."""
    assert "DefaultAddressPools" not in running.json("GET", "/info")
    assert daemon.json("GET", "/info")["DefaultAddressPools"] == [{"Base": "10.231.0.0/16", "Size": 24}]
    daemon.json("POST", "/networks/create", {"Name": "pooled"})
    for name in ("bridge", "pooled"):
        (config,) = daemon.json("GET", f"/networks/{name}")["IPAM"]["Config"]
        subnet = IPv4Network(config["Subnet"])
        assert subnet.subnet_of(IPv4Network("10.231.0.0/16")) and subnet.prefixlen == 24
    assert daemon.request("DELETE", "/networks/pooled")[0] == 204


def test_privileges_and_seccomp(daemon: Machine) -> None:
    """Of the first process and of an exec; a container may choose otherwise."""
    look = "grep NoNewPrivs /proc/self/status; mkdir /made 2>&1; true"
    said = inside(daemon, script=look)
    assert "NoNewPrivs:\t1" in said and "Function not implemented" in said
    own = inside(daemon, "--security-opt", "no-new-privileges=false", "--security-opt", "seccomp=unconfined", script=look)  # fmt: skip
    assert own == "NoNewPrivs:\t0\n"
    daemon.run(KETCH, "run", "-d", "--name", "target", "busybox", "sleep", "3600")
    try:
        said = daemon.run(KETCH, "exec", "target", "sh", "-c", look, check=False).stdout
        assert "NoNewPrivs:\t1" in said and "Function not implemented" in said
    finally:
        daemon.request("DELETE", "/containers/target?force=1")
    assert (
        daemon.json("GET", "/v1.24/info")["ExecutionDriver"] == "<not supported>"
    )  # no longer told from 1.25 on
    info = daemon.json("GET", "/info")
    assert "name=no-new-privileges" in info["SecurityOptions"]
    assert any("profile.json" in option for option in info["SecurityOptions"])
    assert info["Labels"] == ["site=lab"]


def test_a_build_gets_them_too(daemon: Machine, base: Path) -> None:
    (base / "context").mkdir()
    (base / "context/Dockerfile").write_text(
        "FROM busybox\nRUN cat /etc/resolv.conf; df -k /dev/shm; ulimit -Sn; grep NoNewPrivs /proc/self/status\n"
    )
    done = daemon.run(KETCH, "build", "--no-cache", str(base / "context"))
    said = done.stdout + done.stderr
    for words in ("nameserver 192.0.2.7", "32768", "100", "NoNewPrivs:\t1"):
        assert words in said


def test_stopped_by_the_daemons_end_is_not_by_hand() -> None:
    """Without live-restore: `unless-stopped` starts again with ketchd, one that was stopped before does not."""
    with tempfile.TemporaryDirectory(prefix="ketch-settings-") as name:
        daemon = Machine(Path(name) / "m", flags=("--live-restore=false", "--shutdown-timeout=30"))
        try:
            daemon.start()
            import_busybox(daemon)
            for one in ("kept", "stopped"):
                daemon.run(KETCH, "run", "-d", "--init", "--name", one, "--restart", "unless-stopped", "busybox", "sleep", "3600")  # fmt: skip
            daemon.run(KETCH, "stop", "-t", "1", "stopped")
            assert daemon.stop() == 0
            daemon.start()
            deadline = time.monotonic() + 60  # they are started when the door is open
            while (states := states_of(daemon))["/kept"] != "running" and time.monotonic() < deadline:
                time.sleep(0.02)
            assert states == {"/kept": "running", "/stopped": "exited"}
        finally:
            daemon.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file or directory"), ("words", "it is no JSON object"), ('{"syscalls": 1}', "decoding seccomp profile failed")],
)  # fmt: skip
def test_a_profile_that_cannot_be_used(base: Path, text: str | None, words: str) -> None:
    path = base / "broken.json"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    daemon = Machine(base / "broken", flags=("--seccomp-profile", str(path)))
    try:
        daemon.start(wait=False)
        assert daemon.process is not None and daemon.process.wait(30) == 1
        assert words in daemon.log.read_text().splitlines()[-1]
    finally:
        daemon.process = None
        daemon.close()


# -- SIGHUP


@pytest.fixture(scope="module")
def running() -> Iterator[Machine]:
    """Another one, with a daemon.json that the tests change, and a container that runs through all of them."""
    made = Machine(Path(tempfile.mkdtemp(prefix="ketch-settings-")), flags=("--max-concurrent-uploads", "2"))
    try:
        made.start()
        import_busybox(made)
        made.run(KETCH, "run", "-d", "--name", "kept", "busybox", "sleep", "3600")
        before = made.json("GET", "/containers/kept/json")["State"]
        yield made
        assert made.json("GET", "/containers/kept/json")["State"] == before
    finally:
        made.close()
    assert made.leftovers() == []


def reload(daemon: Machine, keys: object) -> str:
    """Write a daemon.json (a text as it is, None for no file) and send SIGHUP; what the log says of it."""
    path = daemon.base / "daemon.json"
    path.unlink(missing_ok=True)
    if keys is not None:
        path.write_text(keys if isinstance(keys, str) else json.dumps(keys))
    before = daemon.log.stat().st_size
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while True:
        said = daemon.log.read_bytes()[before:].decode()
        if "reloaded configuration" in said or "configuration is not reloaded" in said:
            return said
        assert time.monotonic() < deadline and daemon.process.poll() is None, said
        time.sleep(0.02)


def reloads(daemon: Machine) -> list[Any]:
    """The events `daemon reload` so far, as the docker CLI shows them."""
    said = daemon.run(
        "docker", "events", "--since", "0", "--until", f"{time.time():.9f}", "--filter", "type=daemon",
        "--filter", "event=reload", "--format", "{{json .}}",
    ).stdout  # fmt: skip
    return [json.loads(line) for line in said.splitlines()]


def test_a_reload_is_shown_and_told(running: Machine) -> None:
    """`info` and the event have the new values; a flag stands, and a key that is gone has its default again."""
    already = len(reloads(running))
    said = reload(
        running,
        {"labels": ["a=c"], "debug": True, "live-restore": False, "default-runtime": "ketch", "registry-mirrors": ["https://m.example"],
         "insecure-registries": ["reg:5000", "10.0.0.0/8"], "max-concurrent-downloads": 9, "features": {"buildkit": True}},
    )  # fmt: skip
    assert "changed='debug, insecure-registries, registry-mirrors, labels, default-runtime" in said
    assert "need a restart" not in said
    assert said.count("known and ignored") == 1 and "setting=features" in said
    info = running.json("GET", "/info")
    assert (info["Labels"], info["Debug"], info["LiveRestoreEnabled"]) == (["a=c"], True, False)
    assert (info["DefaultRuntime"], info["RegistryConfig"]["Mirrors"]) == ("ketch", ["https://m.example/"])
    assert "10.0.0.0/8" in info["RegistryConfig"]["InsecureRegistryCIDRs"]
    assert not info["RegistryConfig"]["IndexConfigs"]["reg:5000"]["Secure"]
    assert host_config(running)["Runtime"] == "ketch"
    assert "Labels:\n  a=c" in running.run("docker", "info").stdout

    assert not reload(running, {}).count("known and ignored")
    info = running.json("GET", "/info")
    assert (info["Labels"], info["Debug"], info["LiveRestoreEnabled"]) == ([], False, True)
    assert info["RegistryConfig"]["Mirrors"] is None
    first, second = reloads(running)[already:]
    assert first["Actor"]["ID"] == second["Actor"]["ID"] == info["ID"]
    told = first["Actor"]["Attributes"]
    assert (told["name"], told["labels"], told["debug"]) == (info["Name"], '["a=c"]', "true")
    assert (told["features"], told["registry-mirrors"]) == ("map[buildkit:true]", '["https://m.example"]')
    assert (told["max-concurrent-downloads"], told["max-concurrent-uploads"]) == ("9", "2")
    told = second["Actor"]["Attributes"]
    assert (told["labels"], told["debug"], told["max-concurrent-downloads"]) == ("[]", "false", "6")


def test_debug_is_switched_on_and_off(running: Machine) -> None:
    for debug in (True, False):
        reload(running, {"debug": debug})
        before = running.log.stat().st_size
        running.json("GET", "/version")
        assert ("path=/version" in running.log.read_bytes()[before:].decode()) is debug


def test_containers_made_after_it_get_the_new_defaults(running: Machine) -> None:
    made = running.run(KETCH, "create", "busybox", "true").stdout.strip()
    try:
        reload(running, {"default-shm-size": "3m", "default-ipc-mode": "shareable"})
        host = host_config(running)
        assert (host["ShmSize"], host["IpcMode"]) == (3 << 20, "shareable")
        assert running.json("GET", f"/containers/{made}/json")["HostConfig"]["ShmSize"] == 64 << 20
        assert "3072" in inside(running, script="df -k /dev/shm")
    finally:
        running.request("DELETE", f"/containers/{made}")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('{"labels":', "unable to configure the ketch daemon with file"), (None, "no such file or directory"),
        ({"labels": ["a=new"], "nonsense": 1}, "don't match any configuration option: nonsense"),
        ({"labels": ["a=new"], "max-concurrent-uploads": 3}, "max-concurrent-uploads: (from flag: 2, from file: 3)"),
        ({"labels": ["a=new"], "registry-mirrors": ["ftp://x"]}, "unsupported scheme"),
        ({"labels": ["a=new"], "ketch": {"gc": {"low": 20, "high": 10}}}, "low not above high"),
        ({"labels": ["a=new"], "ketch": {"push": {"compression-format": "rar"}}}, "unknown compression format"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_changes_nothing(running: Machine, keys: object, words: str) -> None:
    """One line says why; the next file that is right is taken."""
    reload(running, {"labels": ["a=old"]})
    info, already = running.json("GET", "/info"), len(reloads(running))
    lines = [line for line in reload(running, keys).splitlines() if "got signal" not in line]
    assert len(lines) == 1 and "[error" in lines[0] and words in lines[0]
    after = running.json("GET", "/info")
    assert (after["Labels"], after["RegistryConfig"]) == (["a=old"], info["RegistryConfig"])
    assert len(reloads(running)) == already
    reload(running, {"labels": ["a=newer"]})
    assert running.json("GET", "/info")["Labels"] == ["a=newer"]


def test_what_needs_a_restart_is_named(running: Machine) -> None:
    network = running.json("GET", "/networks/bridge")
    said = reload(running, {"labels": ["a=1"], "icc": False, "log-level": "error", "dns": ["192.0.2.1"]})
    assert said.count("need a restart") == 1 and "settings='log-level, icc, dns'" in said
    assert running.json("GET", "/info")["Labels"] == ["a=1"]
    assert running.json("GET", "/networks/bridge") == network
    assert "192.0.2.1" not in inside(running, script="cat /etc/resolv.conf")


def test_registries_after_a_reload(running: Machine, tmp_path: Path) -> None:
    """Insecure ones, mirrors, and how a push compresses: in force for the next pull and push."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    gateway = running.json("GET", "/networks/bridge")["IPAM"]["Config"][0]["Gateway"]
    with registry(tmp_path / "registry", address=gateway) as host:
        image = f"{host}/library/app"
        running.run("docker", "tag", "busybox", f"{image}:1")
        assert running.run("docker", "push", f"{image}:1", check=False).returncode == 1
        push = {"compression-format": "zstd", "force-compression": True}
        reload(running, {"insecure-registries": [host], "ketch": {"push": push}})
        running.run("docker", "push", f"{image}:1")
        wanted = urllib.request.Request(f"http://{host}/v2/library/app/manifests/1")
        wanted.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
        with urllib.request.urlopen(wanted, timeout=30) as answer:
            manifest = json.load(answer)
        assert [layer["mediaType"] for layer in manifest["layers"]] == ["application/vnd.oci.image.layer.v1.tar+zstd"]  # fmt: skip

        reload(running, {"registry-mirrors": [f"http://{host}"]})
        assert running.run("docker", "pull", f"{image}:1", check=False).returncode == 1
        running.run("docker", "pull", "app:1")
        assert running.json("GET", "/images/app:1/json")["Id"] == running.json("GET", "/images/busybox/json")["Id"]  # fmt: skip


def test_the_disk_is_looked_at_by_the_new_policy(running: Machine) -> None:
    """At once: what has lain longer than it may from now on goes."""
    reload(running, {})
    left = running.data_root / "partial" / ("5" * 64)
    left.parent.mkdir(mode=0o700, exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (0, time.time() - 48 * 3600))
    reload(running, {"ketch": {"gc": {"partial-hours": 24, "interval": 3600}}})
    deadline = time.monotonic() + 60
    while left.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_live_restore_is_what_the_last_reload_says() -> None:
    """Switched off while the daemon runs: its end stops the containers, in the time that it was given."""
    with tempfile.TemporaryDirectory(prefix="ketch-settings-") as name:
        daemon = Machine(Path(name) / "m")
        try:
            daemon.start()
            import_busybox(daemon)
            daemon.run(KETCH, "run", "-d", "--init", "--name", "one", "busybox", "sleep", "3600")
            reload(daemon, {"live-restore": False, "shutdown-timeout": 60})
            assert daemon.stop() == 0
            daemon.start()
            assert states_of(daemon) == {"/one": "exited"}
        finally:
            daemon.close()
