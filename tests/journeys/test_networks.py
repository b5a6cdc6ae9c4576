"""Networks and volumes as the docker CLI and docker-py use them, and as they are after a kill -9 of ketchd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.machine import Machine, free_port
from ketch_testing.netns import get
from ketch_testing.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed"),
]


def docker(machine: Machine, *words: str, check: bool = True) -> str:
    """What the CLI prints, both streams."""
    done = machine.run("docker", *words, check=check)
    return (done.stdout + done.stderr).strip()


def inspect(machine: Machine, what: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker(machine, what, "inspect", name))[0]
    return found


def serve(text: str) -> list[str]:
    """A command that answers `text` on port 80."""
    return ["sh", "-c", f"while true; do echo -n {text} | nc -l -p 80; done"]


def answer(port: int) -> str:
    """What is served there, as soon as the container's program listens; it answers one at a time."""
    said: list[str] = []

    def answers() -> bool:
        said.append(get("127.0.0.1", port))
        return not said[-1].startswith("error")

    until(answers)
    return said[-1]


def ports_of(bridge: str) -> list[str]:
    """The links in a bridge."""
    return os.listdir(f"/sys/class/net/{bridge}/brif")


def test_names_on_a_user_network(machine: Machine) -> None:
    """Found by name and alias on the network, not from outside of it; a network in use stays."""
    docker(machine, "network", "create", "--label", "purpose=test", "shop")
    try:
        docker(
            machine,
            "run",
            "-d",
            "--name",
            "db",
            "--network",
            "shop",
            "--network-alias",
            "data",
            "busybox",
            *serve("db"),
        )
        for name in ("db", "data", "db.shop"):
            shown = docker(
                machine, "run", "--rm", "--network", "shop", "busybox", "nslookup", name, "127.0.0.11"
            )
            assert (
                inspect(machine, "container", "db")["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
                in shown
            )
        outside = docker(machine, "run", "--rm", "busybox", "ping", "-c1", "-W1", "db", check=False)
        assert "bad address" in outside
        refused = docker(machine, "network", "rm", "shop", check=False)
        assert 'network shop has active endpoints (name:"db"' in refused
        assert "shop" in docker(machine, "network", "ls", "--filter", "label=purpose=test")
        assert inspect(machine, "network", "shop")["Containers"].popitem()[1]["Name"] == "db"
    finally:
        docker(machine, "rm", "-f", "db", check=False)
        docker(machine, "network", "rm", "shop")
    assert "network shop not found" in docker(machine, "network", "rm", "shop", check=False)


def test_links_on_a_user_network(machine: Machine) -> None:
    """`--link NAME:ALIAS`: found by the alias by who has the link, and by nobody else; so with `network connect --link`."""
    docker(machine, "network", "create", "shop")
    lookup = ["nslookup", "store", "127.0.0.11"]
    try:
        docker(machine, "run", "-d", "--name", "db", "--network", "shop", "busybox", "sleep", "1000")
        address = inspect(machine, "container", "db")["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
        linked = ["--network", "shop", "--link", "db:store"]
        assert address in docker(machine, "run", "--rm", *linked, "busybox", *lookup)
        assert address not in docker(
            machine, "run", "--rm", "--network", "shop", "busybox", *lookup, check=False
        )
        docker(machine, "run", "-d", "--name", "late", "busybox", "sleep", "1000")
        docker(machine, "network", "connect", "--link", "db:store", "shop", "late")
        machine.kill()
        machine.start()
        assert address in docker(machine, "exec", "late", *lookup)
        shown = inspect(machine, "container", "late")["NetworkSettings"]["Networks"]["shop"]["Links"]
        assert shown == ["db:store"]
        for words, said in (
            (("--network", "host"), "host type networking can't be used with links"),
            (("--network", "container:db"), "container type network can't be used with links"),
        ):
            refused = docker(machine, "create", *words, "--link", "db:store", "busybox", check=False)
            assert said in refused, refused
    finally:
        docker(machine, "rm", "-f", "db", "late", check=False)
        docker(machine, "network", "rm", "shop")


def test_connect_and_disconnect(machine: Machine) -> None:
    """A running container joins and leaves; what it published goes on being published; after a restart it is as it was."""
    port = free_port()
    docker(machine, "network", "create", "--subnet", "10.213.7.0/24", "back")
    try:
        docker(machine, "run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", *serve("web"))
        docker(machine, "network", "connect", "--ip", "10.213.7.77", "--alias", "www", "back", "web")
        again = docker(machine, "network", "connect", "back", "web", check=False)
        assert "endpoint with name web already exists in network back" in again
        lookup = ["run", "--rm", "--network", "back", "busybox", "nslookup", "www", "127.0.0.11"]
        assert "10.213.7.77" in docker(machine, *lookup)
        assert "nameserver 127.0.0.11" in docker(machine, "exec", "web", "cat", "/etc/resolv.conf")
        docker(machine, "exec", "web", "sh", "-c", "echo 10.5.5.5 mine >> /etc/hosts")
        default = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        docker(machine, "network", "disconnect", "bridge", "web")
        hosts = docker(machine, "exec", "web", "cat", "/etc/hosts")
        assert "10.5.5.5 mine" in hosts and "10.213.7.77\t" in hosts and default not in hosts
        assert answer(port) == "web"
        machine.kill()
        machine.start()
        assert answer(port) == "web" and "10.213.7.77" in docker(machine, *lookup)
        docker(machine, "restart", "-t", "0", "web")
        networks = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]
        assert networks.keys() == {"back"} and networks["back"]["IPAddress"] == "10.213.7.77"
        assert networks["back"]["Aliases"] == ["www"]
        old = machine.json("GET", "/v1.44/containers/web/json")  # before 1.45 they end in the short id
        assert old["NetworkSettings"]["Networks"]["back"]["Aliases"] == ["www", old["Id"][:12]]
        assert inspect(machine, "container", "web")["NetworkSettings"]["Networks"]["back"]["Aliases"] == [
            "www"
        ]
        docker(machine, "rename", "web", "front")
        lookup[lookup.index("www")] = "front"
        assert "10.213.7.77" in docker(machine, *lookup)
    finally:
        docker(machine, "rm", "-f", "web", "front", check=False)
        docker(machine, "network", "rm", "back")


def test_who_leads_outside(machine: Machine) -> None:
    """Default route and published ports follow the networks of a running container at once, by priority and name, past internal
    ones and a kill -9."""
    port = free_port()
    for words in (("--internal", "inner"), ("first",), ("second",), ("third",)):
        docker(machine, "network", "create", *words)
    try:
        docker(
            machine, "run", "-d", "--name", "web", "--network", "inner", "-p", f"{port}:80", "busybox", *serve("web")
        )  # fmt: skip

        def leads_by() -> str:
            networks = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]
            route = docker(machine, "exec", "web", "ip", "route")
            table = ("inet", f"ketch-{machine.bridge}")
            rules = machine.run("nft", "list", "map", *table, "ports_any").stdout
            name = next((n for n, at in networks.items() if f"default via {at['Gateway']} " in route), "")
            if name:
                assert f"{port} : {networks[name]['IPAddress']} . 80" in rules and answer(port) == "web"
            shown = docker(machine, "ps", "--filter", "name=web", "--format", "{{.Ports}}")
            assert (f":{port}->80/tcp" in shown) is (str(port) in rules) is bool(name)
            return name

        assert leads_by() == ""
        docker(machine, "network", "connect", "second", "web")
        assert leads_by() == "second"
        docker(machine, "network", "connect", "first", "web")
        assert leads_by() == "first"
        docker(machine, "network", "connect", "--gw-priority", "1", "third", "web")
        assert leads_by() == "third"
        machine.kill()
        machine.start()
        assert leads_by() == "third"
        docker(machine, "network", "disconnect", "third", "web")
        assert leads_by() == "first"
        docker(machine, "network", "connect", "--gw-priority", "-1", "third", "web")
        docker(machine, "network", "disconnect", "first", "web")
        assert leads_by() == "second"
        machine.kill()
        machine.start()
        assert leads_by() == "second"
        for name in ("second", "third"):
            docker(machine, "network", "disconnect", name, "web")
        assert leads_by() == ""
    finally:
        docker(machine, "rm", "-f", "web", check=False)
        for name in ("inner", "first", "second", "third"):
            docker(machine, "network", "rm", name)


def test_ports_without_a_network(machine: Machine) -> None:
    """A container on no network publishes nothing, also after a kill -9: its port is anybody's, and its own again with a network."""
    port = free_port()
    run = ["run", "-d", "-p", f"{port}:80", "-p", f"{port}:53/udp", "--name"]

    def shown() -> str:
        return docker(machine, "ps", "--filter", "name=web", "--format", "{{.Ports}}")

    try:
        docker(machine, *run, "web", "busybox", *serve("web"))
        assert answer(port) == "web"
        docker(machine, "network", "disconnect", "bridge", "web")
        assert shown() == "" and "refused" in get("127.0.0.1", port)
        docker(machine, *run, "other", "busybox", *serve("other"))
        assert answer(port) == "other"
        taken = docker(machine, "network", "connect", "bridge", "web", check=False)
        assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in taken
        assert inspect(machine, "container", "web")["NetworkSettings"]["Networks"] == {}
        assert docker(machine, "exec", "web", "ls", "/sys/class/net") == "lo" and answer(port) == "other"
        machine.kill()
        machine.start()
        assert shown() == "" and answer(port) == "other"
        docker(machine, "rm", "-f", "other")
        docker(machine, "network", "connect", "bridge", "web")
        assert answer(port) == "web" and f"0.0.0.0:{port}->80/tcp" in shown()
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.bind(("127.0.0.1", port))
        machine.kill()
        machine.start()
        taken = docker(machine, *run, "other", "busybox", "true", check=False)
        assert "port is already allocated" in taken and answer(port) == "web"
    finally:
        docker(machine, "rm", "-f", "web", "other", check=False)


@pytest.mark.parametrize("point", ["disconnect.recorded", "disconnect.gone"])
def test_ports_of_a_killed_disconnect(machine: Machine, point: str) -> None:
    """Killed while a container leaves its last network: its port is free."""
    port = free_port()
    try:
        docker(machine, "run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", *serve("web"))
        with machine.killed_at(point):
            docker(machine, "network", "disconnect", "bridge", "web", check=False)
        assert "refused" in get("127.0.0.1", port)
        docker(machine, "run", "-d", "--name", "other", "-p", f"{port}:80", "busybox", *serve("other"))
        assert answer(port) == "other"
    finally:
        docker(machine, "rm", "-f", "web", "other", check=False)


@pytest.mark.parametrize("network", ["none", "host"])
def test_no_ports_without_an_endpoint(machine: Machine, network: str) -> None:
    """As dockerd shows it: not even exposed ones."""
    docker(machine, "run", "-d", "--name", "web", "--network", network, "--expose", "90", "-p", "80", "busybox", "sleep", "1000")  # fmt: skip
    try:
        assert inspect(machine, "container", "web")["NetworkSettings"]["Ports"] == {}
        assert docker(machine, "ps", "--filter", "name=web", "--format", "{{.Ports}}") == ""
    finally:
        docker(machine, "rm", "-f", "web")


def events_of(machine: Machine) -> list[str]:
    """What happened to networks so far."""
    told = docker(
        machine, "events", "--since", "1", "--until", "0s", "--filter", "type=network",
        "--filter", "event=connect", "--filter", "event=disconnect", "--format", "{{.Action}} {{.Actor.Attributes.name}}",
    )  # fmt: skip
    return told.splitlines()[-3:]


@pytest.mark.parametrize("point", ["disconnect.recorded", "disconnect.gone"])
def test_a_killed_disconnect(machine: Machine, point: str) -> None:
    """Killed while a container leaves a network: it has left it, and reaches the outside by the other one."""
    port = free_port()
    docker(machine, "network", "create", "shop")
    try:
        docker(machine, "run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", *serve("web"))
        docker(machine, "network", "connect", "shop", "web")
        with machine.killed_at(point):
            docker(machine, "network", "disconnect", "bridge", "web", check=False)
        networks = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]
        assert networks.keys() == {"shop"}
        assert events_of(machine) == ["connect bridge", "connect shop", "disconnect bridge"]
        inside = docker(machine, "exec", "web", "ip", "route")
        assert f"default via {networks['shop']['Gateway']} " in inside and answer(port) == "web"
        assert docker(machine, "exec", "web", "ls", "/sys/class/net").split() == ["eth1", "lo"]
        assert not ports_of(machine.bridge)
    finally:
        docker(machine, "rm", "-f", "web", check=False)
        docker(machine, "network", "rm", "shop")


def test_a_killed_connect(machine: Machine) -> None:
    """Killed right after a container joined a network: it is on it, its address works, and the event is told."""
    docker(machine, "network", "create", "shop")
    try:
        docker(machine, "run", "-d", "--name", "web", "busybox", *serve("web"))
        docker(machine, "network", "connect", "shop", "web")
        docker(machine, "network", "disconnect", "shop", "web")
        with machine.killed_at("connect.connected"):
            docker(machine, "network", "connect", "shop", "web", check=False)
        assert events_of(machine) == ["connect shop", "disconnect shop", "connect shop"]
        address = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
        until(lambda: get(address, 80) == "web")
    finally:
        docker(machine, "rm", "-f", "web", check=False)
        docker(machine, "network", "rm", "shop")


def test_a_connect_killed_before_it_is_recorded(machine: Machine) -> None:
    """Killed when the default route and the port went by the new network already: they go by the old one, as is recorded."""
    port = free_port()
    for name in ("zzz", "aaa"):
        docker(machine, "network", "create", name)
    try:
        docker(machine, "run", "-d", "--name", "web", "--network", "zzz", "-p", f"{port}:80", "busybox", *serve("web"))  # fmt: skip
        with machine.killed_at("connect.led"):
            docker(machine, "network", "connect", "aaa", "web", check=False)
        networks = inspect(machine, "container", "web")["NetworkSettings"]["Networks"]
        assert networks.keys() == {"zzz"}
        assert f"default via {networks['zzz']['Gateway']} " in docker(machine, "exec", "web", "ip", "route")
        assert answer(port) == "web"
        assert docker(machine, "exec", "web", "ls", "/sys/class/net").split() == ["eth0", "lo"]
    finally:
        docker(machine, "rm", "-f", "web", check=False)
        for name in ("zzz", "aaa"):
            docker(machine, "network", "rm", name)


@pytest.mark.parametrize(
    ("network", "container", "force", "status", "words"),
    [
        ("none", "nobody", False, 404, "No such container: nobody"),
        ("none", "nobody", True, 404, "endpoint nobody not found"),
        ("nowhere", "nobody", False, 404, "No such container: nobody"),
        ("nowhere", "nobody", True, 404, "network nowhere not found"),
        ("none", "", False, 400, 'invalid name or ID supplied: ""'),
        ("none", "", True, 400, "invalid name: "),
    ],
)
def test_nobody_is_disconnected(
    machine: Machine, network: str, container: str, force: bool, status: int, words: str
) -> None:
    """dockerd's words: by force it looks for an endpoint of that name, without it for a container."""
    body = {"Container": container, "Force": force}
    answered, told = machine.request("POST", f"/networks/{network}/disconnect", body)
    assert (answered, json.loads(told)) == (status, {"message": words})
    if container:
        flags = ["-f"] if force else []
        assert docker(machine, "network", "disconnect", *flags, network, container, check=False) == (
            f"Error response from daemon: {words}"
        )


def test_a_connect_of_what_has_just_ended(machine: Machine) -> None:
    """Its end is not told yet, since its shim stands still: the container is not running, and is nowhere else afterwards."""
    docker(machine, "network", "create", "late")
    docker(machine, "run", "-d", "--name", "over", "busybox", "sleep", "1000")
    pid = int(docker(machine, "inspect", "-f", "{{.State.Pid}}", "over"))
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        full_id = inspect(machine, "container", "over")["Id"]
        said = docker(machine, "network", "connect", "late", "over", check=False)
    finally:
        os.kill(shim, signal.SIGCONT)
    assert said == f"Error response from daemon: container {full_id} is not running"
    docker(machine, "wait", "over")
    assert list(inspect(machine, "container", "over")["NetworkSettings"]["Networks"]) == ["bridge"]
    docker(machine, "rm", "over")
    docker(machine, "network", "rm", "late")


def test_a_killed_start_leaves_nothing(machine: Machine) -> None:
    """Killed at each point of a start: afterwards no link, no address, no port is anybody's who does not run."""
    port = free_port()
    for point in ("start.leased", "start.connected"):
        with machine.killed_at(point):
            docker(
                machine,
                "run",
                "-d",
                "--name",
                "cut",
                "-p",
                f"{port}:80",
                "busybox",
                *serve("cut"),
                check=False,
            )
        docker(machine, "rm", "-f", "cut", check=False)
        docker(machine, "run", "-d", "--name", "next", "-p", f"{port}:80", "busybox", *serve("next"))
        assert answer(port) == "next"
        docker(machine, "rm", "-f", "next")
        until(lambda: not ports_of(machine.bridge))


@pytest.mark.parametrize("point", ["network.bridged", "network.recorded", "network.forgotten"])
def test_a_killed_change_of_a_network(machine: Machine, point: str) -> None:
    """Killed while a network is made or removed: it is there whole, or nothing of it is."""
    cut = bridge = f"ktu{os.urandom(3).hex()}"
    option = f"com.docker.network.bridge.name={bridge}"
    with machine.killed_at(point):
        for words in (("create", "-o", option, cut), ("rm", cut)):
            machine.run("docker", "network", *words, check=False)
    listed = cut in docker(machine, "network", "ls", "--format", "{{.Name}}").split()
    assert Path(f"/sys/class/net/{bridge}").exists() is listed is (point == "network.recorded")
    told = docker(
        machine, "events", "--since", "1", "--until", "0s", "--filter", f"network={cut}", "--format", "{{.Action}}"
    )  # fmt: skip
    assert told.split() == {"network.recorded": ["create"], "network.forgotten": ["create", "destroy"]}.get(
        point, []
    )
    if listed:
        assert docker(machine, "run", "--rm", "--network", cut, "busybox", "echo", "runs") == "runs"
        docker(machine, "network", "rm", cut)


def test_faults_of_ports_and_networks(machine: Machine) -> None:
    """dockerd's words."""
    port = str(free_port())
    docker(machine, "run", "-d", "--name", "first", "-p", f"{port}:80", "busybox", "sleep", "1000")
    try:
        taken = docker(machine, "run", "--rm", "-p", f"{port}:80", "busybox", "true", check=False)
        assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in taken
    finally:
        docker(machine, "rm", "-f", "first")
    assert "network nowhere not found" in docker(
        machine, "run", "--rm", "--network", "nowhere", "busybox", "true", check=False
    )
    alias = docker(machine, "run", "--rm", "--ip", "10.0.0.9", "busybox", "true", check=False)
    assert "user specified IP address is supported on user defined networks only" in alias
    assert "predefined bridge network" in docker(machine, "network", "create", "bridge", check=False)


def test_volumes(machine: Machine) -> None:
    """Kept between containers, filled from the image, gone when they may go; bind and tmpfs ones are mounted inside."""
    docker(machine, "volume", "create", "--label", "a=b", "data")
    docker(machine, "run", "--rm", "-v", "data:/d", "busybox", "sh", "-c", "echo kept > /d/file")
    assert docker(machine, "run", "--rm", "-v", "data:/d:ro", "busybox", "cat", "/d/file") == "kept"
    docker(machine, "run", "-d", "--name", "user", "-v", "data:/d", "busybox", "sleep", "1000")
    assert "volume is in use" in docker(machine, "volume", "rm", "data", check=False)
    docker(machine, "rm", "-f", "user")
    assert docker(machine, "volume", "ls", "-q", "--filter", "label=a=b") == "data"
    assert docker(machine, "run", "--rm", "-v", "filled:/etc", "busybox", "cat", "/etc/passwd").startswith(
        "root:"
    )
    assert "passwd" in docker(machine, "run", "--rm", "-v", "filled:/x", "busybox", "ls", "/x")
    options = ["-o", "type=none", "-o", "o=bind", "-o", f"device={machine.data_root}"]
    docker(machine, "volume", "create", *options, "bound")
    assert "catalogue.sqlite" in docker(machine, "run", "--rm", "-v", "bound:/x", "busybox", "ls", "/x")
    docker(machine, "volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "memory")
    assert "1024" in docker(machine, "run", "--rm", "-v", "memory:/x", "busybox", "df", "/x")
    docker(machine, "volume", "rm", "data", "filled", "bound", "memory")
    assert "no such volume" in docker(machine, "volume", "inspect", "data", check=False)
    docker(machine, "run", "--name", "anonymous", "-v", "/anonymous", "busybox", "true")
    assert len(docker(machine, "volume", "ls", "-q", "--filter", "dangling=false")) == 64
    docker(machine, "rm", "-v", "anonymous")
    assert docker(machine, "volume", "ls", "-q") == ""


def test_docker_py(machine: Machine) -> None:
    """The SDK's networks and volumes, as Testcontainers uses them."""
    sdk = pytest.importorskip("docker", reason="docker-py is not installed")
    client = sdk.DockerClient(base_url=f"unix://{machine.socket}")
    try:
        network = client.networks.create("sdk", labels={"org.testcontainers": "true"})
        box = client.containers.run(
            "busybox", ["sleep", "1000"], detach=True, network="sdk", ports={"80/tcp": None}
        )
        box.reload()
        assert network.id in {one.id for one in client.networks.list(filters={"label": "org.testcontainers"})}
        assert box.attrs["NetworkSettings"]["Networks"]["sdk"]["IPAddress"]
        assert int(box.attrs["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]) >= 1024
        network.reload()
        assert [one.id for one in network.containers] == [box.id]
        network.disconnect(box)
        network.connect(box, aliases=["again"])
        box.remove(force=True)
        assert client.networks.prune()["NetworksDeleted"] == ["sdk"]
        volume = client.volumes.create("sdk", labels={"k": "v"})
        assert [one.name for one in client.volumes.list(filters={"label": "k=v"})] == ["sdk"]
        volume.remove()
    finally:
        client.close()
