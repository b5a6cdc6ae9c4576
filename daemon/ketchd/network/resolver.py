"""The embedded DNS server: one per user-defined network, on the gateway's address, reached as 127.0.0.11 from its containers.

Authoritative for containers (an AAAA question about one gets an empty answer, not an error); everything else goes to the
servers that the container asked for, or the host's, as it came, by the protocol it came by. A stranger gets nothing. Names of
containers are answered at once, however many questions wait for servers that do not answer; of those one container has its share.
Source: RFC 1035; RFC 4074 for why the empty answer matters; moby libnetwork/resolver.go for the limits.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ketchd.network.names import TTL_SECONDS, NameTable

_SERVERS_TRIED, _WAIT_SECONDS = 3, 4.0
_WAITING, _WAITING_PER_CONTAINER = 1024, 256
_NOT_FOR_ME = (
    dns.rcode.Rcode.SERVFAIL,
    dns.rcode.Rcode.NOTIMP,
    dns.rcode.Rcode.REFUSED,
)  # as in glibc, res_send.c
_PLAIN_DATAGRAM, _LARGEST_DATAGRAM = 512, 1232
_TCP_IDLE_SECONDS, _TCP_CLIENTS = 10.0, 256


def answer(query: dns.message.Message, table: NameTable, container_id: str) -> dns.message.Message | None:
    """What we know ourselves about the question; None when it is for somebody else. Pure.

    Several addresses of one name are put on the wire in any order (dnspython shuffles them).
    """
    if query.opcode() != 0 or len(query.question) != 1:
        return _failed(query, dns.rcode.Rcode.NOTIMP)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True)
    if question.rdclass != dns.rdataclass.IN:
        return None
    if question.rdtype == dns.rdatatype.PTR:
        if (target := table.name_of(container_id, name)) is None:
            return None
        try:
            return _answered(query, [target + "."], dns.rdatatype.PTR)
        except dns.exception.DNSException:  # a container may be called what no DNS name can be
            return _failed(query, dns.rcode.Rcode.NXDOMAIN)
    addresses = table.addresses(container_id, name)
    if addresses is not None:
        shown = addresses if question.rdtype == dns.rdatatype.A else []
        return _answered(query, shown, dns.rdatatype.A)
    if not table.may_ask_outside(container_id):
        return _failed(query, dns.rcode.Rcode.NXDOMAIN)
    return None


def _answered(
    query: dns.message.Message, texts: Sequence[str], kind: dns.rdatatype.RdataType
) -> dns.message.Message:
    response = dns.message.make_response(query, recursion_available=True)
    if texts:
        name = query.question[0].name
        response.answer.append(
            dns.rrset.from_text_list(name, TTL_SECONDS, dns.rdataclass.IN, kind, list(texts))
        )
    return response


def _failed(query: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(code)
    return response


class Resolver:
    """The DNS server of one network. table: gives the names as they are now. host_servers: the host's servers as they are now."""

    def __init__(
        self, network_id: str, gateway: str, table: Callable[[], NameTable], host_servers: Callable[[], list[str]], log: Any
    ) -> None:  # fmt: skip
        self._network_id = network_id
        self.gateway = gateway
        self._table = table
        self._host_servers = host_servers
        self._log = log
        self._waiting: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self.udp_port = 0
        self.tcp_port = 0

    async def start(self) -> None:
        """Listen on ports that the packet rules lead port 53 to: the host's own port 53 may be somebody else's. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._datagram), local_addr=(self.gateway, 0)
        )
        self.udp_port = self._transport.get_extra_info("sockname")[1]
        self._server = await asyncio.start_server(self._stream, self.gateway, 0, limit=1 << 17)
        self.tcp_port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more; questions under way are dropped. May be called twice."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _datagram(self, wire: bytes, peer: tuple[str, int]) -> None:
        container_id = self._table().asker(self._network_id, peer[0])
        if container_id is None or (query := _question(wire)) is None:
            return
        if (own := answer(query, self._table(), container_id)) is not None:
            self._send(own.to_wire(max_size=_room(query), prefer_truncation=True), peer)
        elif self._may_wait(container_id):

            async def reply() -> None:
                self._send(await self._ask_outside(query, wire, container_id, stream=False), peer)

            task = asyncio.get_running_loop().create_task(reply())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, response: bytes, peer: tuple[str, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(response, peer)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        container_id = self._table().asker(self._network_id, writer.get_extra_info("peername")[0])
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients += 1
        try:
            while container_id is not None and self._clients <= _TCP_CLIENTS:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    length = struct.unpack("!H", await reader.readexactly(2))[0]
                    wire = await reader.readexactly(length)
                if (query := _question(wire)) is None:
                    break
                if (own := answer(query, self._table(), container_id)) is not None:
                    response = own.to_wire(max_size=65535, prefer_truncation=True)
                elif self._may_wait(container_id):
                    response = await self._ask_outside(query, wire, container_id, stream=True)
                else:
                    break
                writer.write(struct.pack("!H", len(response)) + response)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the client went away, or had nothing more to ask
        finally:
            self._clients -= 1
            self._tasks.discard(task)
            writer.close()

    def _may_wait(self, container_id: str) -> bool:
        return (
            self._waiting.total() < _WAITING and self._waiting[container_id] < _WAITING_PER_CONTAINER
        )  # fmt: skip

    async def _ask_outside(
        self, query: dns.message.Message, wire: bytes, container_id: str, *, stream: bool
    ) -> bytes:
        """What the first server says that takes the question; else what the last one said, or that none answered."""
        said: bytes | None = None
        servers = self._table().servers(container_id) or self._host_servers()
        self._waiting[container_id] += 1
        try:
            for server in servers[:_SERVERS_TRIED]:
                try:
                    async with asyncio.timeout(_WAIT_SECONDS):
                        said = await (_by_stream if stream else _by_datagram)(wire, server)
                except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self._log.debug(
                        "a DNS server does not answer", server=server, reason=str(error) or "timed out"
                    )
                    continue
                if len(said) < 4 or said[3] & 0xF not in _NOT_FOR_ME:
                    return said
        finally:
            self._waiting[container_id] -= 1
            if not self._waiting[container_id]:
                del self._waiting[container_id]
        return _failed(query, dns.rcode.Rcode.SERVFAIL).to_wire() if said is None else said


def _question(wire: bytes) -> dns.message.Message | None:
    """The message in `wire`; None for what is no question."""
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    return None if query.flags & dns.flags.QR else query


def _room(query: dns.message.Message) -> int:
    """Bytes that the asker takes in one datagram, as far as no link between us cuts it. Source: RFC 6891, 6.2.5."""
    return min(max(query.payload, _PLAIN_DATAGRAM), _LARGEST_DATAGRAM) if query.edns >= 0 else _PLAIN_DATAGRAM


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """From asyncio."""
        self._received(data, (addr[0], addr[1]))


async def _by_datagram(wire: bytes, server: str) -> bytes:
    """The server's answer to the question in `wire`, which keeps its id. Ours is a new one, from a new port (RFC 5452)."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
        await loop.sock_connect(channel, (server, 53))
        number = secrets.token_bytes(2)
        await loop.sock_sendall(channel, number + wire[2:])
        while True:
            received = await loop.sock_recv(channel, 65535)
            if received[:2] == number and len(received) >= 12 and _same_question(received, wire):
                return wire[:2] + received[2:]


async def _by_stream(wire: bytes, server: str) -> bytes:
    reader, writer = await asyncio.open_connection(server, 53)
    try:
        writer.write(struct.pack("!H", len(wire)) + wire)
        await writer.drain()
        length = struct.unpack("!H", await reader.readexactly(2))[0]
        return await reader.readexactly(length)
    finally:
        writer.close()


def _same_question(response: bytes, query: bytes) -> bool:
    """Whether the answer repeats the question, letter case aside; servers that leave it out are believed by id and port."""
    if response[4:6] == b"\0\0":
        return True
    end = _question_end(query)
    return response[12:end].lower() == query[12:end].lower()


def _question_end(wire: bytes) -> int:
    offset = 12
    while offset < len(wire) and wire[offset]:
        offset += wire[offset] + 1
    return offset + 5
