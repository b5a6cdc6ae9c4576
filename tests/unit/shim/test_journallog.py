"""The journald log, with a journal that the test is: fields, pieces of long lines, files for what no datagram holds, a stuck one."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketchd.shim import journallog
from ketchd.shim.journallog import JournalLog, field
from ketchd.shim.jsonlog import JsonLog


class Journal:
    """A datagram socket that reads the native protocol."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(self.path)
        self.channel.setblocking(False)

    def messages(self) -> list[dict[str, bytes]]:
        found = []
        while True:
            try:
                data, rights, _, _ = self.channel.recvmsg(1 << 20, 64)
            except BlockingIOError:
                return found
            for _, _, content in rights:
                (fd,) = array.array("i", content[:4])
                data = os.pread(fd, 1 << 22, 0)
                os.close(fd)
            found.append(_fields(data))


def _fields(data: bytes) -> dict[str, bytes]:
    """Source: systemd, "Native Journal Protocol"."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, sign, value = line.partition(b"=")
        if not sign:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[name.decode()] = value
        data = rest
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "socket")
    yield made
    made.channel.close()


def test_a_line_is_a_message_with_dockers_fields(journal: Journal) -> None:
    log = JournalLog(journal.path, {"CONTAINER_NAME": "web", "IMAGE_NAME": "busybox"}, None)
    log.write(b"stdout", b"one\ntw")
    log.write(b"stdout", b"o\n\n")
    log.write(b"stderr", b"bad \xff\n")
    log.close()

    messages = journal.messages()
    assert [one["MESSAGE"] for one in messages] == [b"one", b"two", b"", b"bad \xff"]
    assert [one["PRIORITY"] for one in messages] == [b"6", b"6", b"6", b"3"]
    assert all(one["CONTAINER_NAME"] == b"web" and one["IMAGE_NAME"] == b"busybox" for one in messages)
    assert all("CONTAINER_PARTIAL_MESSAGE" not in one for one in messages)


def test_a_long_line_is_several_partial_messages(journal: Journal) -> None:
    log = JournalLog(journal.path, {}, None)
    text = os.urandom(25_000).replace(b"\n", b"x")
    log.write(b"stdout", text[:10_000])
    log.write(b"stdout", text[10_000:] + b"\nshort\n")
    log.write(b"stdout", b"y" * 16_384)
    log.close()

    messages = journal.messages()
    assert messages[0]["MESSAGE"] + messages[1]["MESSAGE"] == text and len(messages[0]["MESSAGE"]) == 16_384
    assert [one.get("CONTAINER_PARTIAL_MESSAGE") for one in messages] == [b"true", None, None, b"true"]
    assert [one.get("CONTAINER_PARTIAL_LAST") for one in messages] == [b"false", b"true", None, b"false"]
    assert [one.get("CONTAINER_PARTIAL_ORDINAL") for one in messages] == [b"1", b"2", None, b"1"]
    names = [one.get("CONTAINER_PARTIAL_ID") for one in messages]
    assert names[0] == names[1] != names[3] and len(names[0] or b"") == 64


def test_what_no_datagram_holds_goes_in_a_sealed_file(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = JournalLog(journal.path, {"LABEL": "x" * 9_000_000}, None)
    log.write(b"stdout", b"line\n")
    log.close()

    (message,) = journal.messages()
    assert message["MESSAGE"] == b"line" and message["LABEL"] == b"x" * (len(message["LABEL"])) != b""


def test_a_value_with_newlines_carries_its_length() -> None:
    assert field(b"A", b"b") == b"A=b\n"
    assert field(b"A", b"b\nc") == b"A\n" + struct.pack("<Q", 3) + b"b\nc\n"


def test_a_journal_that_is_stuck_is_waited_for_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the copy that `logs` reads has every line."""
    monkeypatch.setattr(journallog, "PATIENCE_SECONDS", 0.01)
    cache = tmp_path / "json.log"
    log = JournalLog(journal.path, {}, JsonLog(str(cache), 0, 1))
    for number in range(3000):
        log.write(b"stdout", b"%d\n" % number)
    taken = journal.messages()
    log.write(b"stdout", b"again\n")
    log.close()

    assert 0 < len(taken) < 3000
    assert [one["MESSAGE"] for one in journal.messages()] == [b"again"]
    assert len(cache.read_bytes().splitlines()) == 3001


def test_without_a_journal_lines_are_lost_and_nothing_else(tmp_path: Path) -> None:
    log = JournalLog(str(tmp_path / "nobody"), {}, None)
    log.write(b"stdout", b"x\n")
    log.close()
    log.close()
