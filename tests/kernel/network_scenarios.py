"""What test_network.py has happen in a network namespace of its own: real bridges, real rules, guests as containers."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import structlog

from ketch_testing.netns import Guest, ask_udp, get
from ketch_wire.faults import EngineFailure, Forbidden, NotFound, Unavailable
from ketchd.catalogue.database import Catalogue
from ketchd.kernel.process import start_time
from ketchd.network.addresses import Pool, parse_pool
from ketchd.network.definition import show
from ketchd.network.inside import configure
from ketchd.network.leases import EndpointLease, inside, routes
from ketchd.network.networks import DefaultBridge, Networks

BRIDGE = "ktt-weird.0"
LOG = structlog.get_logger()


@asynccontextmanager
async def networks(
    path: Path | None = None, *, bridge: str = BRIDGE, pools: Sequence[Pool] = (), **settings: Any
) -> AsyncIterator[Networks]:
    """Started networks over a catalogue, ended afterwards. settings: of the default bridge."""
    with tempfile.TemporaryDirectory() as directory:
        catalogue = Catalogue(path or Path(directory) / "catalogue.sqlite")
        made = Networks(catalogue, DefaultBridge(bridge, **settings), pools=pools, log=LOG)
        try:
            await made.start()
            await made.restore([])
            yield made
        finally:
            await made.close()
            catalogue.close()


class Container:
    """A guest with an endpoint."""

    def __init__(self, guest: Guest, lease: EndpointLease, records: list[dict[str, Any]]) -> None:
        self.guest = guest
        self.lease = lease
        self.records = records
        self.sockets: list[socket.socket] = []


async def contain(
    rooms: Networks, name: str, *published: tuple[str, str, int], proto: str = "tcp", **given: Any
) -> Container:
    """A guest called `name` on a network, with published ports (host ip, host port, container port)."""
    guest = await Guest.start()
    lease = rooms.reserve(name, **given)
    bindings = [
        {"proto": proto, "host_ip": ip, "host_port": port, "container_port": inner}
        for ip, port, inner in published
    ]
    reserved = (
        rooms.reserve_ports(bindings, endpoint_name=name, endpoint_id=lease.endpoint_id) if bindings else []
    )
    records = [one.to_record() for one in reserved]
    await rooms.connect(lease, guest.pid)
    if records:
        await rooms.publish(lease, records)
    await guest.configure(rooms.netlink_messages(lease))
    made = Container(guest, lease, records)
    made.sockets = [one.socket for one in reserved]
    return made


def output(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def left() -> list[str]:
    """Links but the loopback, and nft tables."""
    links = [line.split()[0] for line in output("ip", "-br", "link").splitlines()]
    return [one for one in links if one != "lo"] + output("nft", "list", "tables").splitlines()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the kernel or a watcher is about to do. Raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  (nothing tells us)
            await asyncio.sleep(0.01)


def rules_are_there(port: str) -> bool:
    """Whether the chains have their rules and `port` is published."""
    table = ("inet", f"ketch-{BRIDGE}")
    published = output("nft", "list", "map", *table, "ports")
    return port in published and "jump publish" in output("nft", "list", "chain", *table, "prerouting")


async def connects() -> None:
    """An endpoint reaches its gateway, its neighbour and the outside; everything is gone at the end."""
    async with networks() as rooms:
        first, second = await contain(rooms, "a"), await contain(rooms, "b")
        assert first.lease.address != second.lease.address
        await second.guest.ask("serve", port=80, name="b")
        assert await first.guest.ask("get", host=second.lease.address, port=80) == f"b {first.lease.address}"
        assert get(second.lease.address, 80) == f"b {second.lease.gateway}"
        shown = await first.guest.ask("run", command=["ip", "-br", "addr"])
        assert "eth0" in shown and first.lease.address in shown and "fe80" not in shown, shown
        assert first.lease.mac in await first.guest.ask("run", command=["ip", "link"])
        assert f"default via {first.lease.gateway}" in await first.guest.ask("run", command=["ip", "route"])
        for one in (first, second):
            await one.guest.close()
            await rooms.release(one.lease.container_id)
            await rooms.release(one.lease.container_id)
    assert left() == [], left()


async def publishes() -> None:
    """A published port is reached from loopback, by every host address, from outside, from containers, from itself."""
    async with networks() as rooms:
        web = await contain(rooms, "web", ("", "8080", 80), ("127.0.0.1", "8081", 80))
        other = await contain(rooms, "other")
        outside = await _outside()
        await web.guest.ask("serve", port=80, name="web")
        gateway = web.lease.gateway
        assert get("127.0.0.1", 8080) == f"web {gateway}"
        assert get("127.0.0.1", 8081) == f"web {gateway}"
        assert get("10.99.0.1", 8080) == "web 10.99.0.1"
        assert get(gateway, 8080) == f"web {gateway}"
        assert await outside.ask("get", host="10.99.0.1", port=8080) == "web 10.99.0.2"
        assert await other.guest.ask("get", host=gateway, port=8080) == f"web {gateway}"
        assert await web.guest.ask("get", host=gateway, port=8080) == f"web {gateway}"
        assert (await outside.ask("get", host="10.99.0.1", port=8081, timeout=0.5)).startswith("error")
        await outside.ask("run", command=["ip", "route", "add", "172.16.0.0/12", "via", "10.99.0.1"])
        assert (await outside.ask("get", host=web.lease.address, port=80, timeout=0.5)).startswith("error")
        await outside.ask("serve", port=90, name="outside")
        assert await web.guest.ask("get", host="10.99.0.2", port=90) == "outside 10.99.0.1"
        shown = [(one["host_ip"], one["host_port"]) for one in web.records]
        assert shown == [("0.0.0.0", 8080), ("::", 8080), ("127.0.0.1", 8081)], shown
        begun = time.monotonic()
        assert "refused" in get("::1", 8080) and time.monotonic() - begun < 1
        await rooms.release("web")
        for one in web.sockets:
            one.close()
        assert get("127.0.0.1", 8080).startswith("error")
        await rooms.release("other")


async def _outside() -> Guest:
    """A neighbour of the host at 10.99.0.2."""
    guest = await Guest.start()
    output("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", str(guest.pid))
    output("ip", "addr", "add", "10.99.0.1/24", "dev", "up0")
    output("ip", "link", "set", "up0", "up")
    for command in ("ip link set lo up", "ip addr add 10.99.0.2/24 dev eth0", "ip link set eth0 up"):
        await guest.ask("run", command=command.split())
    return guest


async def publishes_udp() -> None:
    """Datagrams find their way, and back from the address they were sent to."""
    async with networks() as rooms:
        server = await contain(rooms, "dns", ("", "5300", 53), proto="udp")
        await server.guest.ask("serve_udp", port=53, name="dns")
        assert ask_udp("127.0.0.1", 5300) == f"dns {server.lease.gateway}".encode()
        await rooms.release("dns")


async def reapplies() -> None:
    """Rules that somebody flushes come back, published ports with them; those of one chain, and one element, as well."""
    async with networks() as rooms:
        web = await contain(rooms, "web", ("127.0.0.1", "8080", 80))
        await web.guest.ask("serve", port=80, name="web")
        for command in (["flush", "ruleset"], ["flush", "table", "inet", f"ketch-{BRIDGE}"]):
            output("nft", *command)
            await until(lambda: rules_are_there("8080"))
            assert get("127.0.0.1", 8080).startswith("web"), command
        before = output("nft", "list", "table", "inet", f"ketch-{BRIDGE}")
        for chain in ("guard", "publish", "prerouting", "output", "postrouting", "forward", "inward"):
            output("nft", "flush", "chain", "inet", f"ketch-{BRIDGE}", chain)
            await until(lambda: output("nft", "list", "table", "inet", f"ketch-{BRIDGE}") == before)
        await rooms.release((await contain(rooms, "third", ("", "8083", 80))).lease.container_id)
        fourth = await contain(rooms, "fourth", ("", "8084", 80))
        before = output("nft", "list", "table", "inet", f"ketch-{BRIDGE}")
        for words in (
            ("delete", "element", "ports", f"{{ tcp . 127.0.0.1 . 8080 : {web.lease.address} . 80 }}"),
            ("delete", "element", "bridges", f'{{ "{BRIDGE}" }}'),
            ("delete", "element", "subnets", f"{{ {rooms.find('bridge').subnet} }}"),
            ("flush", "map", "ports_any"),
        ):
            verb, what, name, *elements = words
            output("nft", verb, what, "inet", f"ketch-{BRIDGE}", name, *elements)
            await until(lambda: output("nft", "list", "table", "inet", f"ketch-{BRIDGE}") == before)
        assert rooms._upkeep._firewall._shows_ports
        await rooms.release(fourth.lease.container_id)
        output("nft", "flush", "ruleset")
        second = await contain(rooms, "second", ("127.0.0.1", "8082", 80))
        await second.guest.ask("serve", port=80, name="second")
        assert get("127.0.0.1", 8082).startswith("second")
        await rooms.release("web")
        await rooms.release("second")


async def restores() -> None:
    """A ketchd that was killed finds its bridge, its endpoints and its ports again, and takes away what belongs to nobody."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        catalogue = Catalogue(path)
        killed = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await killed.start()
        await killed.restore([])
        web = await contain(killed, "web", ("127.0.0.1", "8080", 80))
        lost = await contain(killed, "lost")
        await killed.create({"Name": "back", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}]}})
        killed.reserve("web", network="back", address="10.77.0.9")  # it was about to be connected
        await web.guest.ask("serve", port=80, name="web")
        await killed._upkeep.look_away()  # as the kernel does at a kill -9
        await killed._naming.close()
        killed._instance.close()
        catalogue.close()
        catalogue = Catalogue(path)
        again = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await again.start()
        assert get("127.0.0.1", 8080).startswith("web")  # before restore as well
        await again.restore(
            [{"container_id": "web", "endpoint": web.lease.to_record(), "published": web.records}]
        )
        assert get("127.0.0.1", 8080).startswith("web")
        links = output("ip", "-br", "link")
        assert web.lease.link in links and lost.lease.link not in links, links
        assert again.reserve("web", network="back", address="10.77.0.9").address == "10.77.0.9"
        third = await contain(again, "third")
        assert third.lease.address not in (web.lease.address, lost.lease.address)
        await again.close()
        assert any(BRIDGE in one for one in left())  # a container runs: all of it stays
        catalogue.close()
        catalogue = Catalogue(path)
        last = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await last.start()
        await last.restore([])
        await last.close()
        catalogue.close()
        assert left() == [], left()
        killed._thread.shutdown()


async def one_a_bridge() -> None:
    """Two ketchd with one bridge: the second says so; with another bridge it lives beside the first, on another subnet."""
    with tempfile.TemporaryDirectory() as directory:
        async with networks() as first:
            catalogue = Catalogue(Path(directory) / "second.sqlite")
            second = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
            try:
                await second.start()
                raise AssertionError("a second ketchd took the bridge")
            except EngineFailure as fault:
                assert BRIDGE in fault.message
            await second.close()
            beside = Networks(catalogue, DefaultBridge("ktt-other"), log=LOG)
            await beside.start()
            await beside.restore([])
            assert beside.gateway() and beside.gateway() != first.gateway()
            await beside.close()
            catalogue.close()
            assert first.instance in output("nft", "list", "tables")
    assert left() == [], left()


async def without_a_default_bridge() -> None:
    """Any number of ketchd has no default bridge: each keeps its own networks and ports, also when the other starts and ends."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "first.sqlite"
        async with networks(path, bridge="none") as first:
            assert first.ids().keys() == {"host", "none"}
            made, _ = await first.create({"Name": "shop"})
            web = await contain(first, "web", ("127.0.0.1", "8080", 80), network="shop", names=["web"])
            await web.guest.ask("serve", port=80, name="web")
            async with networks(bridge="none") as second:
                other, _ = await second.create({"Name": "shop"})
                links = output("ip", "-br", "link")
                assert made.link in links and other.link in links and made.subnet != other.subnet
                assert get("127.0.0.1", 8080).startswith("web")
            assert get("127.0.0.1", 8080).startswith("web")
            assert await asked(web, "web") == ("NOERROR", [web.lease.address])
            await first.release("web")
            name = first.instance
        async with networks(path, bridge="none") as again:
            assert again.instance == name and again.find("shop").link in output("ip", "-br", "link")
    assert left() == [], left()


async def lets_nobody_through_loopback() -> None:
    """route_localnet on the bridge does not open the host's 127.0.0.1 to containers."""
    async with networks() as rooms:
        attacker = await contain(rooms, "attacker")
        server = socket.create_server(("127.0.0.1", 7000))
        try:
            mac = Path(f"/sys/class/net/{BRIDGE}/address")
            assert not mac.exists() or mac
            for command in (
                ["ip", "route", "del", "local", "127.0.0.0/8", "table", "local"],
                ["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"],
                ["ip", "route", "add", "127.0.0.1/32", "via", attacker.lease.gateway, "dev", "eth0"],
                ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"],
            ):
                await attacker.guest.ask("run", command=command)
            assert (await attacker.guest.ask("get", host="127.0.0.1", port=7000, timeout=0.5)).startswith(
                "error"
            )
        finally:
            server.close()
        await rooms.release("attacker")


DROPPING = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }"


def passages() -> int:
    """How many rules of ours stand in another program's chain."""
    return output("nft", "list", "chain", "ip", "filter", "FORWARD").count(f"ketch:{BRIDGE}")


async def through_a_drop_policy() -> None:
    """Another program's FORWARD chain that drops by default lets our containers through, and is as before at the end."""
    output("nft", DROPPING)
    async with networks() as rooms:
        web = await contain(rooms, "web", ("", "8080", 80))
        await web.guest.ask("serve", port=80, name="web")
        outside = await _outside()
        assert await outside.ask("get", host="10.99.0.1", port=8080) == "web 10.99.0.2"
        output("nft", "flush", "chain", "ip", "filter", "FORWARD")
        await until(lambda: passages() == 2)
        assert await outside.ask("get", host="10.99.0.1", port=8080) == "web 10.99.0.2"
        await rooms.release("web")
    assert passages() == 0


async def through_a_later_drop_policy() -> None:
    """The other program may start after us. Our own change of its chain is no reason to change it again."""
    async with networks() as rooms:
        web = await contain(rooms, "web", ("", "8080", 80))
        await web.guest.ask("serve", port=80, name="web")
        outside = await _outside()
        output("nft", DROPPING)
        await until(lambda: passages() == 2)
        assert await outside.ask("get", host="10.99.0.1", port=8080) == "web 10.99.0.2"
        before = output("nft", "-a", "list", "chain", "ip", "filter", "FORWARD")
        output("nft", "add", "chain", "ip", "filter", "OTHER")
        output("nft", "delete", "chain", "ip", "filter", "OTHER")
        await until(lambda: rooms._upkeep._watches[0].is_idle)
        handles = [line.split("handle")[1] for line in before.splitlines() if "comment" in line]
        after = output("nft", "-a", "list", "chain", "ip", "filter", "FORWARD")
        assert all(handle in after for handle in handles), (before, after)
        await rooms.release("web")
    assert passages() == 0


def question(name: str, kind: str = "A") -> str:
    """A DNS question as hex."""
    return dns.message.make_query(name, kind).to_wire().hex()


async def asked(who: Container, name: str, kind: str = "A", *, by: str = "ask_udp") -> tuple[str, list[str]]:
    """What the container's resolver answers: (response code, addresses). A datagram may be lost: it is sent again, as libc does."""
    for _ in range(10):
        received = await who.guest.ask(by, host="127.0.0.11", port=53, payload=question(name, kind))
        if received != "error timed out":
            break
    response = dns.message.from_wire(bytes.fromhex(received))
    found = [item.to_text() for rrset in response.answer for item in rrset]
    return dns.rcode.to_text(response.rcode()), found


class Upstream(asyncio.DatagramProtocol):
    """A DNS server that answers 9.9.9.9 to everything."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "9.9.9.9"))
        self.transport.sendto(response.to_wire(), addr)


async def names() -> None:
    """Containers of a user-defined network find each other by name, alias and short id, through 127.0.0.11; others do not."""
    async with networks() as rooms:
        await asyncio.get_running_loop().create_datagram_endpoint(Upstream, local_addr=("127.0.0.1", 53))
        rooms._naming._host_resolv_conf = lambda: "nameserver 127.0.0.1\n"
        made, warning = await rooms.create({"Name": "Shop"})
        other, _ = await rooms.create({"Name": "other"})
        assert warning == "" and made.link == f"br-{made.id[:12]}" and made.subnet != other.subnet
        web = await contain(rooms, "web", network="Shop", names=["web", "frontend"])
        db = await contain(rooms, "db", network="Shop", names=["db", "data"])
        twin = await contain(rooms, "twin", network="Shop", names=["twin", "data"])
        stranger = await contain(rooms, "stranger", network="other", names=["stranger"])
        assert await asked(web, "db") == ("NOERROR", [db.lease.address])
        assert await asked(web, "DB.shop.") == ("NOERROR", [db.lease.address])
        assert await asked(web, "db", "AAAA") == ("NOERROR", [])
        assert sorted((await asked(web, "data"))[1]) == sorted([db.lease.address, twin.lease.address])
        reverse = ".".join(reversed(db.lease.address.split("."))) + ".in-addr.arpa"
        assert await asked(web, reverse, "PTR") == ("NOERROR", ["db.Shop."])
        assert await asked(web, "example.com") == ("NOERROR", ["9.9.9.9"])
        assert await asked(web, "stranger") == ("NOERROR", ["9.9.9.9"])
        assert await asked(web, "db", by="ask_tcp_dns") == ("NOERROR", [db.lease.address])
        await db.guest.ask("serve", port=80, name="db")
        assert await web.guest.ask("get", host=db.lease.address, port=80) == f"db {web.lease.address}"
        assert (await stranger.guest.ask("get", host=db.lease.address, port=80, timeout=0.5)).startswith(
            "error"
        )
        await db.guest.ask("serve_udp", port=53, name="own server")  # port 53 is the container's own
        assert await asked(db, "web") == ("NOERROR", [web.lease.address])
        rooms.rename("db", lambda _: ["database"])
        assert await asked(web, "database") == ("NOERROR", [db.lease.address])
        await rooms.release("db")
        assert await asked(web, "database") == ("NOERROR", ["9.9.9.9"])
        try:
            await rooms.remove(made)
            raise AssertionError("a network in use was removed")
        except Forbidden:
            pass
        for one in (web, twin, stranger):
            await rooms.release(one.lease.container_id)
        await rooms.remove(made)
        assert made.link not in output("ip", "-br", "link")
        assert rooms.ids().keys() == {"bridge", "host", "none", "other"}
    assert left() == [], left()


class Picky(asyncio.DatagramProtocol):
    """A DNS server that refuses everything, or answers one name alone and leaves all others waiting."""

    def __init__(self, only: str = "") -> None:
        self.only = only
        self.seen = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.seen += 1
        query = dns.message.from_wire(data)
        name = query.question[0].name
        response = dns.message.make_response(query)
        if not self.only:
            response.set_rcode(dns.rcode.Rcode.REFUSED)
            self.transport.sendto(response.to_wire(), addr)
        elif name.to_text() == self.only:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "9.9.9.9"))
            self.transport.sendto(response.to_wire(), addr)


async def names_in_a_storm() -> None:
    """A container that floods the server with questions nobody answers takes no names from itself, and nothing from others.

    A server that refuses a question is not the last that is asked.
    """
    loop = asyncio.get_running_loop()
    picky, refusing = Picky("other.example."), Picky()
    await loop.create_datagram_endpoint(lambda: picky, local_addr=("127.0.0.1", 53))
    await loop.create_datagram_endpoint(lambda: refusing, local_addr=("127.0.0.9", 53))
    async with networks() as rooms:
        rooms._naming._host_resolv_conf = lambda: "nameserver 127.0.0.1\n"
        await rooms.create({"Name": "shop"})
        noisy = await contain(rooms, "noisy", network="shop", names=["noisy"])
        calm = await contain(rooms, "calm", network="shop", names=["calm"])
        storm = (
            "import socket\n"
            "peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for _ in range(1200): peer.sendto(bytes.fromhex('{question('void.example')}'), ('127.0.0.11', 53))\n"
        )
        for _ in range(6):  # more than a socket's buffer holds at once
            await noisy.guest.ask("run", command=["python3", "-c", storm])
        assert picky.seen >= 100
        assert await asked(noisy, "calm") == ("NOERROR", [calm.lease.address])
        assert await asked(calm, "noisy", by="ask_tcp_dns") == ("NOERROR", [noisy.lease.address])
        assert await asked(calm, "other.example") == ("NOERROR", ["9.9.9.9"])
        for servers, expected in (
            ("nameserver 127.0.0.9\nnameserver 127.0.0.1\n", ("NOERROR", ["9.9.9.9"])),
            ("nameserver 127.0.0.9\n", ("REFUSED", [])),
        ):
            rooms._naming._host_resolv_conf = lambda servers=servers: servers
            assert await asked(calm, "other.example") == expected
        await rooms.release("noisy")
        await rooms.release("calm")


async def internal_stays_inside() -> None:
    """A container on an internal network reaches its neighbours and nothing else."""
    async with networks() as rooms:
        await rooms.create({"Name": "vault", "Internal": True})
        outside = await _outside()
        await outside.ask("serve", port=90, name="outside")
        safe = await contain(rooms, "safe", network="vault", names=["safe"])
        guard = await contain(rooms, "guard", network="vault", names=["guard"])
        await guard.guest.ask("serve", port=80, name="guard")
        assert await safe.guest.ask("get", host=guard.lease.address, port=80) == f"guard {safe.lease.address}"
        assert await asked(safe, "guard") == ("NOERROR", [guard.lease.address])
        assert (await asked(safe, "example.com"))[0] == "NXDOMAIN"
        await safe.guest.ask("run", command=["ip", "route", "add", "default", "via", safe.lease.gateway])
        assert (await safe.guest.ask("get", host="10.99.0.2", port=90, timeout=0.5)).startswith("error")
        await rooms.release("safe")
        await rooms.release("guard")


async def several_networks() -> None:
    """A running container joins a second network and leaves it again; names and routes follow."""
    async with networks() as rooms:
        await rooms.create({"Name": "front"})
        await rooms.create(
            {"Name": "back", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24", "IPRange": "10.77.0.128/25"}]}}
        )
        web = await contain(rooms, "web", ("127.0.0.1", "8080", 80), network="front", names=["web"])
        db = await contain(rooms, "db", network="back", names=["db"])
        await db.guest.ask("serve", port=80, name="db")
        await web.guest.ask("serve", port=80, name="web")
        assert db.lease.address == "10.77.0.128" and db.lease.gateway == "10.77.0.1"
        second = rooms.reserve(
            "web", network="back", address="10.77.0.9", position=1, default_route=False, names=["web", "www"]
        )
        await rooms.connect(second, web.guest.pid)
        arguments = {"pid": web.guest.pid, "start_time": start_time(web.guest.pid)}
        inside_messages = inside([second], loopback=False) + routes([web.lease, second])
        configure({**arguments, "messages": inside_messages}, None)
        assert await asked(web, "db") == ("NOERROR", [db.lease.address])
        assert await asked(db, "www") == ("NOERROR", ["10.77.0.9"])
        assert await web.guest.ask("get", host=db.lease.address, port=80) == "db 10.77.0.9"
        await rooms.disconnect(web.lease)
        left_over = rooms.lead_by("web", second.network_id)
        assert left_over[0].default_route
        configure({**arguments, "messages": routes(left_over)}, None)
        await rooms.publish(left_over[0], web.records)
        assert get("127.0.0.1", 8080) == "web 10.77.0.1"
        assert await asked(web, "db") == ("NOERROR", [db.lease.address])
        await rooms.release("web")
        await rooms.release("db")
    assert left() == [], left()


async def neighbours_do_not_reach_loopback() -> None:
    """route_localnet inside, which the DNS answers need, does not open a container's 127.0.0.1 to its neighbours."""
    async with networks() as rooms:
        await rooms.create({"Name": "shop"})
        victim = await contain(rooms, "victim", network="shop", names=["victim"])
        attacker = await contain(rooms, "attacker", network="shop", names=["attacker"])
        await victim.guest.ask("serve", port=7000, name="secret", host="127.0.0.1")
        for command in (
            f"ip neigh replace {victim.lease.gateway} lladdr {victim.lease.mac} dev eth0",
            "ip route add 127.0.0.1/32 via "
            + victim.lease.gateway
            + " dev eth0 src "
            + attacker.lease.address
            + " table 7",
            "ip rule add pref 1 to 127.0.0.1 lookup 7",
            "ip rule add pref 2 lookup local",
            "ip rule del pref 0",
        ):
            await attacker.guest.ask("run", command=command.split())
        assert (await attacker.guest.ask("get", host="127.0.0.1", port=7000, timeout=0.7)).startswith("error")
        output("nft", "delete", "table", "bridge", f"ketch-{BRIDGE}")
        Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0")
        assert (
            await attacker.guest.ask("get", host="127.0.0.1", port=7000) == f"secret {attacker.lease.address}"
        )
        await rooms.release("victim")
        await rooms.release("attacker")


async def networks_come_back() -> None:
    """User-defined networks are there again after a restart, with their subnets and names; a bridge without record goes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path) as rooms:
            made, _ = await rooms.create({"Name": "shop", "Labels": {"a": "b"}})
        assert left() == [], left()
        stray = "br-0123456789ab"
        output("ip", "link", "add", stray, "type", "bridge")
        output("ip", "link", "set", stray, "alias", f"ketch:{BRIDGE}:0123456789ab")
        output("ip", "link", "add", "mine", "type", "bridge")
        async with networks(path) as rooms:
            again = rooms.find("shop")
            assert (again.id, again.subnet, again.labels) == (made.id, made.subnet, {"a": "b"})
            links = output("ip", "-br", "link")
            assert again.link in links and stray not in links and "mine" in links


async def forgets_connections() -> None:
    """A peer that keeps its source port reaches the new container on a port, not the dead one."""
    async with networks() as rooms:
        first = await contain(rooms, "first", ("", "5300", 53), proto="udp")
        await first.guest.ask("serve_udp", port=53, name="first")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(3)
            peer.connect(("127.0.0.1", 5300))
            peer.send(b"?")
            assert peer.recv(100).startswith(b"first")
            await rooms.release("first")
            for one in first.sockets:
                one.close()
            await first.guest.close()
            second = await contain(rooms, "second", ("", "5300", 53), proto="udp")
            await second.guest.ask("serve_udp", port=53, name="second")
            assert second.lease.address != first.lease.address
            peer.send(b"?")
            assert peer.recv(100).startswith(b"second")
        await rooms.release("second")


async def forgets_what_nobody_answered() -> None:
    """A peer that goes on sending while the container is away reaches it when it is back: by one host address, and by all."""
    async with networks() as rooms:
        for host_ip in ("", "127.0.0.1"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.settimeout(0.1)
                peer.sendto(b"?", ("127.0.0.1", 5300))  # tracked by now, as a flow to the host itself
                server = await contain(rooms, "server", (host_ip, "5300", 53), proto="udp")
                await server.guest.ask("serve_udp", port=53, name="server")

                def answered(peer: socket.socket = peer) -> bool:
                    peer.sendto(b"?", ("127.0.0.1", 5300))
                    try:
                        return peer.recv(100).startswith(b"server")
                    except TimeoutError:
                        return False

                async with asyncio.timeout(20):
                    await until(answered)
            await rooms.release("server")
            for one in server.sockets:
                one.close()
            await server.guest.close()


async def leads_no_port_to_another() -> None:
    """What a container published before it left its last network does not lead to who gets its address next."""
    async with networks() as rooms:
        await rooms.create({"Name": "shop", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}]}})
        first = await contain(rooms, "first", ("127.0.0.1", "8080", 80), network="shop")
        await rooms.disconnect(first.lease)
        second = await contain(rooms, "second", network="shop", address=first.lease.address)
        await second.guest.ask("serve", port=80, name="second")
        assert get(second.lease.address, 80).startswith("second")
        assert get("127.0.0.1", 8080, timeout=0.5).startswith("error")
        again = rooms.reserve("first", network="shop")
        await rooms.connect(again, first.guest.pid)
        await rooms.publish(again, first.records)
        await first.guest.configure(rooms.netlink_messages(again))
        await first.guest.ask("serve", port=80, name="first")
        assert get("127.0.0.1", 8080).startswith("first")
        await rooms.release("first")
        await rooms.release("second")


async def heals_the_bridge() -> None:
    """A bridge that somebody deleted is made again at once, with its address and the containers on it, names included.

    So are an address that somebody took from it, and a container's link; a bridge that was set down is up again.
    """
    async with networks() as rooms:
        gateway = rooms.gateway()
        made, _ = await rooms.create({"Name": "shop"})
        old = await contain(rooms, "old", ("", "8081", 80))
        await old.guest.ask("serve", port=80, name="old")
        shop, till = [await contain(rooms, one, network="shop", names=[one]) for one in ("shop", "till")]
        await shop.guest.ask("serve", port=80, name="shop")

        def whole(bridge: str, links: list[str]) -> bool:
            inside = output("ip", "-br", "link", "show", "master", bridge)
            shown = output("ip", "addr", "show", bridge)
            return (
                all(one in inside for one in links) and "inet " in shown and ",UP" in shown.partition(">")[0]
            )

        def mac(bridge: str) -> str:
            return output("ip", "-br", "link", "show", bridge).split()[2]

        for bridge, links in ((BRIDGE, [old.lease.link]), (made.link, [shop.lease.link, till.lease.link])):
            before = mac(bridge)
            for command in (
                ("link", "del", bridge),
                ("addr", "flush", "dev", bridge),
                ("link", "set", links[0], "nomaster"),
                ("link", "set", bridge, "down"),
            ):
                output("ip", *command)
                await until(lambda bridge=bridge, links=links: whole(bridge, links))
                await until(lambda: rooms._upkeep._watches[1].is_idle)
                assert mac(bridge) == before
                assert get("127.0.0.1", 8081) == f"old {gateway}"
                assert await asked(till, "shop") == ("NOERROR", [shop.lease.address])
                seen = await till.guest.ask("get", host=shop.lease.address, port=80)
                assert seen == f"shop {till.lease.address}"
        output("ip", "link", "del", BRIDGE)
        web = await contain(rooms, "web", ("", "8080", 80))
        await web.guest.ask("serve", port=80, name="web")
        assert get("127.0.0.1", 8080) == f"web {gateway}"
        assert get("127.0.0.1", 8081) == f"old {gateway}"
        for one in ("web", "old", "shop", "till"):
            await rooms.release(one)


async def heals_at_its_start() -> None:
    """A bridge that was deleted while ketchd was down is there again, with the containers that run on it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path) as rooms:
            web = await contain(rooms, "web", ("127.0.0.1", "8080", 80))
            await web.guest.ask("serve", port=80, name="web")
        output("ip", "link", "del", BRIDGE)
        catalogue = Catalogue(path)
        again = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await again.start()
        await again.restore(
            [{"container_id": "web", "endpoint": web.lease.to_record(), "published": web.records}]
        )
        assert get("127.0.0.1", 8080).startswith("web")
        await again.release("web")
        await again.close()
        catalogue.close()
    assert left() == [], left()


async def uses_a_bridge_of_others() -> None:
    """A network on a bridge that was there before serves whenever the bridge has an address, whoever takes and gives it."""
    output("ip", "link", "add", BRIDGE, "type", "bridge")
    async with networks() as rooms:
        for name in ("first", "again"):
            try:
                rooms.reserve("too early", "bridge")
                raise AssertionError("there is no address")
            except EngineFailure as fault:
                assert "has no IPv4 address to use" in fault.message
            output("ip", "addr", "add", "10.77.0.1/24", "dev", BRIDGE)
            await until(lambda: not rooms._bridges.broken)
            web = await contain(rooms, name, ("", "8080", 80))
            await web.guest.ask("serve", port=80, name=name)
            assert get("127.0.0.1", 8080) == f"{name} 10.77.0.1"
            for one in web.sockets:
                one.close()
            await rooms.release(name)
            output("ip", "addr", "del", "10.77.0.1/24", "dev", BRIDGE)
            await until(lambda: bool(rooms._bridges.broken))
    output("ip", "link", "del", BRIDGE)
    assert left() == [], left()


async def heals_with_what_runs() -> None:
    """A bridge that gets its address before ketchd knows what runs takes no port from anybody."""
    output("ip", "link", "add", BRIDGE, "type", "bridge")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path) as rooms:
            await rooms.create({"Name": "shop"})
            web = await contain(rooms, "web", ("127.0.0.1", "8080", 80), network="shop", names=["web"])
            await web.guest.ask("serve", port=80, name="web")
        catalogue = Catalogue(path)
        again = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await again.start()
        output("ip", "addr", "add", "10.77.0.1/24", "dev", BRIDGE)
        for _ in range(20):  # turns of the loop, and of the thread that would do something about it
            await again._run(lambda: None)
        assert get("127.0.0.1", 8080).startswith("web")
        await again.restore(
            [{"container_id": "web", "endpoint": web.lease.to_record(), "published": web.records}]
        )
        assert get("127.0.0.1", 8080).startswith("web")
        again.reserve("other", "bridge")
        for one in ("web", "other"):
            await again.release(one)
        await again.close()
        catalogue.close()
    output("ip", "link", "del", BRIDGE)
    assert left() == [], left()


async def names_after_a_restart() -> None:
    """A client that asks from the same port for ever is answered by the next ketchd as well."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path) as rooms:
            await rooms.create({"Name": "shop"})
            web = await contain(rooms, "web", network="shop", names=["web"])
            assert await asked(web, "web", by="ask_on") == ("NOERROR", [web.lease.address])
        catalogue = Catalogue(path)
        again = Networks(catalogue, DefaultBridge(BRIDGE), log=LOG)
        await again.start()
        await again.restore([{"container_id": "web", "endpoint": web.lease.to_record(), "published": []}])
        again._forgetting.submit(lambda: None).result()
        assert await asked(web, "web", by="ask_on") == ("NOERROR", [web.lease.address])
        await again.release("web")
        await again.close()
        catalogue.close()
    assert left() == [], left()


async def many_of_one_name() -> None:
    """More addresses than one plain datagram has room for: cut short and said to be, whole by TCP, and as far as EDNS has room."""
    async with networks() as rooms:
        await rooms.create({"Name": "shop"})
        web = await contain(rooms, "web", network="shop", names=["web"])
        taken = {rooms.reserve(f"one{n}", network="shop", names=["many"]).address for n in range(60)}
        assert set((await asked(web, "many", by="ask_tcp_dns"))[1]) == taken
        for payload, whole, largest in ((0, False, 512), (1232, True, 1232)):
            query = dns.message.make_query("many", "A", use_edns=0 if payload else None, payload=payload)
            received = await web.guest.ask(
                "ask_udp", host="127.0.0.11", port=53, payload=query.to_wire().hex()
            )
            response = dns.message.from_wire(bytes.fromhex(received))
            assert len(received) // 2 <= largest and bool(response.flags & dns.flags.TC) is not whole
            assert ({one.to_text() for rrset in response.answer for one in rrset} == taken) is whole
        for name in ["web", *(f"one{n}" for n in range(60))]:
            await rooms.release(name)


async def subnets_out_of_pools() -> None:
    """Every network that asks for no subnet gets one of the pools, until there is none; the default one follows new pools,
    and where they have nothing for it, it alone is broken.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path) as rooms:
            assert rooms.find("bridge").subnet == "172.17.0.0/16"
        async with networks(path, pools=[parse_pool("10.9.0.0/25", 26)]) as rooms:
            made, _ = await rooms.create({"Name": "shop"})
            assert (rooms.find("bridge").subnet, made.subnet) == ("10.9.0.0/26", "10.9.0.64/26")
            try:
                await rooms.create({"Name": "none is left"})
                raise AssertionError("a subnet came from nowhere")
            except Unavailable:
                assert rooms.ids().keys() == {"bridge", "host", "none", "shop"}
        async with networks(path, pools=[parse_pool(made.subnet, 26)]) as rooms:
            await contain(rooms, "web", network="shop", names=["web"])
            await rooms.release("web")
            try:
                rooms.reserve("other", "bridge")
                raise AssertionError("the default network has a subnet from nowhere")
            except EngineFailure as fault:
                assert "could not find an available, non-overlapping IPv4 address pool" in fault.message
        async with networks(path) as rooms:
            assert (rooms.find("bridge").subnet, rooms.find("shop").subnet) == ("172.17.0.0/16", made.subnet)
    assert left() == [], left()


async def one_change_at_a_time() -> None:
    """A network that gets the bridge name of one that is just being removed has a bridge of its own; one removal of two is done,
    and one that cannot be recorded is not done at all.
    """
    async with networks() as rooms:
        body = {"Name": "first", "Options": {"com.docker.network.bridge.name": "ktt-shared"}}
        first, _ = await rooms.create(body)
        done = await asyncio.gather(
            rooms.remove(first), rooms.remove(first), rooms.create({**body, "Name": "second"}),
            rooms.create({**body, "Name": "third"}), return_exceptions=True,
        )  # fmt: skip
        assert done[0] is None and isinstance(done[1], NotFound) and isinstance(done[3], Forbidden), done
        second = rooms.find("second")
        assert f"ketch:{BRIDGE}:{second.id[:12]}" in output("ip", "link", "show", "ktt-shared")

        def full() -> None:
            raise EngineFailure("no space left on device")

        try:
            await rooms.remove(second, full)
            raise AssertionError("it is recorded, and so must its removal be")
        except EngineFailure:
            assert rooms.find("second") == second
        await contain(rooms, "web", network="second", names=["web"])
        await rooms.release("web")
    assert left() == [], left()


async def keeps_its_address_while_in_use() -> None:
    """--bip decides; while containers run the network stays as it is, and follows when they are gone."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        async with networks(path, bip="10.55.0.1/24") as rooms:
            assert rooms.gateway() == "10.55.0.1"
            web = await contain(rooms, "web")
            assert web.lease.address == "10.55.0.2"
        async with networks(path, bip="10.66.0.1/24") as rooms:
            assert rooms.gateway() == "10.55.0.1"
        async with networks(path, bip="10.66.0.1/24") as rooms:
            assert rooms.gateway() == "10.66.0.1"
            addresses = output("ip", "-br", "addr", "show", BRIDGE)
            assert "10.66.0.1/24" in addresses and "10.55" not in addresses
        async with networks(path) as rooms:
            assert rooms.gateway().startswith("172.")
    assert left() == [], left()


async def addresses_of_a_part() -> None:
    """--fixed-cidr and --default-gateway: with --bip, alone, and on a bridge that was there; dockerd's answers."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite"
        part: dict[str, Any] = {"fixed_cidr": "10.55.0.65/29", "default_gateway": "10.55.0.66"}
        async with networks(path, bip="10.55.0.1/24", **part) as rooms:
            found = [await contain(rooms, f"c{number}") for number in range(7)]
            assert [int(one.lease.address.rpartition(".")[2]) for one in found] == [
                64,
                65,
                67,
                68,
                69,
                70,
                71,
            ]
            with pytest.raises(Unavailable, match="no available IPv4 addresses"):
                rooms.reserve("one more")
            table = await found[0].guest.ask("run", command=["ip", "route"])
            assert "default via 10.55.0.66" in table and "10.55.0.0/24 dev eth0" in table
            config = show(rooms.find("bridge"), "")["IPAM"]["Config"]
            assert config == [{
                "Subnet": "10.55.0.0/24", "IPRange": "10.55.0.64/29", "Gateway": "10.55.0.1",
                "AuxiliaryAddresses": {"DefaultGatewayIPv4": "10.55.0.66"},
            }]  # fmt: skip
            for number in range(7):
                await rooms.release(f"c{number}")
            auxiliary = {"DefaultGatewayIPv4": "10.88.0.9"}
            ipam = {"Config": [{"Subnet": "10.88.0.0/24", "AuxiliaryAddresses": auxiliary}]}
            await rooms.create({"Name": "own", "IPAM": ipam})
            shop = await contain(rooms, "shop", network="own", names=["shop"])
            assert "default via 10.88.0.9" in await shop.guest.ask("run", command=["ip", "route"])
            assert await asked(shop, "shop") == ("NOERROR", [shop.lease.address])  # the bridge answers
            await rooms.release("shop")
            await rooms.remove(rooms.find("own"))
        async with networks(path, fixed_cidr="10.66.0.0/28") as rooms:
            assert (rooms.find("bridge").subnet, rooms.gateway()) == ("10.66.0.0/28", "10.66.0.1")
            assert (await contain(rooms, "web")).lease.address == "10.66.0.2"
        async with networks(
            path, bip="10.77.0.1/24", fixed_cidr="10.77.0.64/29", default_gateway="10.77.0.2"
        ) as rooms:
            kept = rooms.find("bridge")  # a container has an address there
            assert (kept.subnet, kept.ip_range, kept.auxiliary) == ("10.66.0.0/28", "", {})
        async with networks(path) as rooms:
            assert rooms.gateway().startswith("172.") and not rooms.find("bridge").ip_range
        for command in (
            "link add {} type bridge",
            "addr add 10.44.0.1/24 dev {}",
            "addr add 10.55.0.1/24 dev {}",
        ):
            output("ip", *command.format(BRIDGE).split())
        for _ in range(2):
            async with networks(path, **part) as rooms:
                assert (rooms.find("bridge").subnet, rooms.gateway()) == ("10.55.0.0/24", "10.55.0.1")
                assert (await contain(rooms, "web")).lease.address in ("10.55.0.64", "10.55.0.65")
                await rooms.release("web")
        for wrong, reason in (
            ({"fixed_cidr": "10.99.0.0/29"}, "fixed-cidr 10.99.0.0/29 is not in the subnet 10.44.0.0/24"),
            (
                {"default_gateway": "10.99.0.1"},
                "(DefaultGatewayIPv4:10.99.0.1) must belong to the master pool: 10.44.0.0/24",
            ),
        ):
            async with networks(path, **wrong) as rooms:
                with pytest.raises(EngineFailure, match=re.escape(reason)):
                    rooms.reserve("web")
        output("ip", "link", "delete", BRIDGE)
    assert left() == [], left()


async def speed() -> None:
    """Not a test: figures. Connect, publish one, publish a thousand."""
    async with networks() as rooms:
        guests = [await Guest.start() for _ in range(20)]
        times: dict[str, list[float]] = {
            "reserve": [],
            "connect": [],
            "publish": [],
            "configure": [],
            "first byte": [],
        }
        for number, guest in enumerate(guests):
            clock = [time.perf_counter()]
            lease = rooms.reserve(f"c{number}")
            clock.append(time.perf_counter())
            await rooms.connect(lease, guest.pid)
            clock.append(time.perf_counter())
            record = {"proto": "tcp", "host_ip": "0.0.0.0", "host_port": 9000 + number, "container_port": 80}
            await rooms.publish(lease, [record])
            clock.append(time.perf_counter())
            await guest.configure(rooms.netlink_messages(lease))
            clock.append(time.perf_counter())
            get(lease.address, 80)
            clock.append(time.perf_counter())
            for key, begin, end in zip(times, clock, clock[1:], strict=False):
                times[key].append((end - begin) * 1000)
        for key, found in times.items():
            found.sort()
            print(f"{key}: median {found[len(found) // 2]:.2f} ms, min {found[0]:.2f}, max {found[-1]:.2f}")
        lease = rooms.leases("c0")[0]
        records = [
            {"proto": "tcp", "host_ip": "0.0.0.0", "host_port": 20000 + n, "container_port": 80}
            for n in range(1000)
        ]
        begun = time.perf_counter()
        await rooms.publish(lease, records)
        print(f"publish 1000 ports: {(time.perf_counter() - begun) * 1000:.1f} ms")
        lease = rooms.leases("c1")[0]
        singles = []
        for n in range(100):
            begun = time.perf_counter()
            await rooms.publish(
                lease, [{"proto": "tcp", "host_ip": "0.0.0.0", "host_port": 30000 + n, "container_port": 80}]
            )
            singles.append((time.perf_counter() - begun) * 1000)
        singles.sort()
        print(f"publish one beside 1000: median {singles[50]:.2f} ms, max {singles[-1]:.2f}")
        begun = time.perf_counter()
        await rooms.release("c0")
        print(f"release of 1000 ports: {(time.perf_counter() - begun) * 1000:.1f} ms")
        for number in range(20):
            await guests[number].close()
        begun = time.perf_counter()
        for number in range(1, 20):
            await rooms.release(f"c{number}")
        print(f"release each: {(time.perf_counter() - begun) * 1000 / 19:.2f} ms")
