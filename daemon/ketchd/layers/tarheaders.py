"""Tar headers of every kind that images hold: ustar, PAX and GNU, read and written. Pure, sans-IO.

Read: feed it a buffer that holds the whole uncompressed tar (an mmap); it yields entries with where their data lies.
Source: POSIX pax(1) interchange format; GNU tar manual, "Basic Tar Format"; image-spec layer.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ketch_wire.faults import InvalidInput

BLOCK = 512
ENTRY_LIMIT = 2_000_000  # some 500 bytes of memory each
NAME_LIMIT = 65_536
_EXTENDED_LIMIT = 16 << 20
_ID_LIMIT = 0xFFFF_FFFE  # the last means "do not change" to chown(2)
_TIME_LIMIT = (1 << 55) * 1_000_000_000  # beyond what any filesystem keeps, within what Python takes
_XATTR = b"SCHILY.xattr."
_XATTR_LIMIT = 128 << 10
# name mode uid gid size mtime checksum type link magic (uname gname) major minor prefix
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_ZERO = bytes(BLOCK)
REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


@dataclass(slots=True)
class Entry:
    """One member. name, link: bytes as stored, PAX and GNU long forms applied. type: one of the constants above.
    offset: where its data begins in the tar; stored: data bytes there; size: the file's size.
    sparse: (offset, length) pieces of the file that `stored` holds in order, or None for a plain file. mtime_ns: since the epoch."""

    name: bytes
    type: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    offset: int = 0
    stored: int = 0
    sparse: list[tuple[int, int]] | None = None


def bad(why: str) -> InvalidInput:
    """The fault of a tar that cannot be read."""
    return InvalidInput(f"invalid tar: {why}")


def shown(text: bytes) -> str:
    """The beginning of a name for a message, in quotes, on one line."""
    whole = text[:80].decode(errors="replace")
    return '"' + "".join(character if character.isprintable() else "\ufffd" for character in whole) + '"'


def number(raw: bytes) -> int:
    """A numeric field: octal text, or GNU base-256. Raises InvalidInput."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value if not raw[0] & 0x40 else value - (1 << (8 * len(raw) - 1))
    text = raw.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise bad(f"number field {shown(raw[:12])}") from None


def _numeric(raw: bytes) -> int:
    """`number`, fast for what nearly every header holds."""
    try:
        return int(raw.rstrip(b"\0 "), 8)
    except ValueError:
        return number(raw)


def _check_sum(head: memoryview, field: bytes) -> None:
    """The sum of a header's bytes, its own field as spaces. Adler-32's lower half is that sum modulo 65521, and a hundred times
    as fast as adding; ancient tars added signed bytes."""
    stored = _numeric(field)
    if zlib.adler32(head) & 0xFFFF == (stored - 255 + sum(field)) % 65521:
        return
    others = bytes(head[:148]) + bytes(head[156:])
    if stored != sum(byte - 256 if byte > 127 else byte for byte in others) + 256:
        raise bad("header checksum is wrong")


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """`length key=value\\n` records. Raises InvalidInput."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position] != 0:
        space = data.find(b" ", position, position + 20)
        if space < 0 or not data[position:space].isdigit():
            raise bad("PAX record without a length")
        end = position + int(data[position:space])
        if end > len(data) or end <= space + 1 or data[end - 1] != 10:
            raise bad("PAX record with a wrong length")
        key, sign, value = data[space + 1 : end - 1].partition(b"=")
        if not sign:
            raise bad("PAX record without =")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # GNU's sparse format 0.0 repeats these two: the list is what 0.1 has in one record
            before = records.get(b"GNU.sparse.map")
            records[b"GNU.sparse.map"] = value if before is None else before + b"," + value
        elif value or key.startswith(_XATTR):
            records[key] = value
        else:
            records.pop(key, None)  # POSIX: an empty value takes the record back
        position = end
    return records


def _pax_time(text: bytes) -> int:
    if len(text) > 40:
        raise bad(f"PAX time {shown(text)}")
    negative = text.startswith(b"-")
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()):
        raise bad(f"PAX time {shown(text)}")
    value = int(whole) * 1_000_000_000 + int((fraction + b"000000000")[:9])
    return -value if negative else value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise bad(f"PAX {what} {shown(text)}")
    return int(text)


def entries(tar: bytes | memoryview, length: int) -> Iterator[Entry]:
    """The members in order. Raises InvalidInput; ends at the end-of-archive block or the end of the buffer."""
    position, count = 0, 0
    view = memoryview(tar)
    globals_: dict[bytes, bytes] = {}
    local: dict[bytes, bytes] = {}
    long_name = long_link = None
    kind = REGULAR
    while position + BLOCK <= length:
        fields = _FIELDS.unpack_from(view, position)
        head = view[position : position + BLOCK]
        if not fields[0][0] and head == _ZERO:
            return
        count += 1
        if count > ENTRY_LIMIT:
            raise bad(f"more than {ENTRY_LIMIT} entries")
        _check_sum(head, fields[6])
        kind = fields[7]
        size = _numeric(fields[4])
        if b"size" in local:
            size = _decimal(local[b"size"], "size")
        if size < 0:
            raise bad("negative size")
        data = position + BLOCK
        if kind in b"LKxg":
            if size > _EXTENDED_LIMIT or data + size > length:
                raise bad("extended header is too long or cut short")
            content = bytes(view[data : data + size])
            position = data + (size + BLOCK - 1) // BLOCK * BLOCK
            if kind == b"L":
                long_name = content.split(b"\0", 1)[0]
            elif kind == b"K":
                long_link = content.split(b"\0", 1)[0]
            elif kind == b"g":
                globals_.update(pax_records(content))
            else:
                local.update(pax_records(content))
            continue
        records = {**globals_, **local} if globals_ else local
        entry, position = _entry(view, length, fields, size, data, records, long_name, long_link)
        if local:
            local = {}
        long_name = long_link = None
        yield entry
    if kind in b"LKx":
        raise bad("cut short behind an extended header")
    if position < length and bytes(view[position:length]).strip(b"\0"):
        raise bad("cut short inside a header")


def _entry(
    tar: memoryview,
    length: int,
    fields: tuple[bytes, ...],
    size: int,
    data: int,
    records: dict[bytes, bytes],
    long_name: bytes | None,
    long_link: bytes | None,
) -> tuple[Entry, int]:
    """The member of a header's fields, and where the next header is."""
    name, mode, uid, gid, _, when, _, kind, link, magic, major, minor, prefix = fields
    name = name.split(b"\0", 1)[0]
    if prefix[0] and magic != b"ustar  \0" and magic[:5] == b"ustar":
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    if long_name is not None:
        name = long_name
    if kind in b"\x007":
        kind = DIRECTORY if records.get(b"path", name).endswith(b"/") else REGULAR
    stored = size if kind not in b"123456" else 0
    if data + stored > length:
        raise bad(f"data of {shown(name)} is cut short")
    entry = Entry(
        name,
        REGULAR if kind == b"S" else kind,
        _numeric(mode) & 0o7777,
        _numeric(uid),
        _numeric(gid),
        stored,
        _numeric(when) * 1_000_000_000,
        link.split(b"\0", 1)[0] if long_link is None else long_link,
        offset=data,
        stored=stored,
    )
    following = data + (stored + BLOCK - 1) // BLOCK * BLOCK
    if kind in b"34":
        entry.major, entry.minor = _numeric(major), _numeric(minor)
    if records:
        _apply_pax(entry, records)
    if kind == b"S":
        following = _old_sparse(tar, length, bytes(tar[data - BLOCK : data]), entry, data, stored)
    elif b"GNU.sparse.major" in records or b"GNU.sparse.map" in records or b"GNU.sparse.size" in records:
        _pax_sparse(tar, entry, records)
    if len(entry.name) > NAME_LIMIT or len(entry.link) > NAME_LIMIT:
        raise bad("a name is too long")
    if not 0 <= entry.uid <= _ID_LIMIT or not 0 <= entry.gid <= _ID_LIMIT:
        raise bad(f"owner of {shown(entry.name)} is out of range")
    if not -_TIME_LIMIT < entry.mtime_ns < _TIME_LIMIT:
        raise bad(f"time of {shown(entry.name)} is out of range")
    return entry, following


def _apply_pax(entry: Entry, records: dict[bytes, bytes]) -> None:
    xattrs = 0
    for key, value in records.items():
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"uid":
            entry.uid = _decimal(value, "uid")
        elif key == b"gid":
            entry.gid = _decimal(value, "gid")
        elif key == b"mtime":
            entry.mtime_ns = _pax_time(value)
        elif key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
            xattrs += len(key) + len(value)
    entry.name = records.get(b"GNU.sparse.name", entry.name)
    if xattrs > _XATTR_LIMIT:
        raise bad(f"attributes of {shown(entry.name)} are larger than {_XATTR_LIMIT} bytes")


def _old_sparse(tar: memoryview, length: int, head: bytes, entry: Entry, data: int, stored: int) -> int:
    """GNU's old sparse format: the map is in the header and in blocks after it. Returns where the next header is."""
    pieces: list[tuple[int, int]] = []
    block, at, many, more = head, 386, 4, head[482]
    while True:
        for index in range(many):
            raw = block[at + 24 * index : at + 24 * index + 24]
            if raw[:1] == b"\0":
                break
            pieces.append((number(raw[:12]), number(raw[12:24])))
        if not more:
            break
        if data + BLOCK > length:
            raise bad("sparse map is cut short")
        block, at, many = bytes(tar[data : data + BLOCK]), 0, 21
        more = block[504]
        data += BLOCK
    if data + stored > length:
        raise bad(f"data of {shown(entry.name)} is cut short")
    entry.offset, entry.size = data, number(head[483:495])
    _set_sparse(entry, pieces)
    return data + (stored + BLOCK - 1) // BLOCK * BLOCK


def _pax_sparse(tar: memoryview, entry: Entry, records: dict[bytes, bytes]) -> None:
    """GNU's PAX sparse formats 0.0, 0.1 (map in the header) and 1.0 (map before the data)."""
    size = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", b""))
    if records.get(b"GNU.sparse.major") == b"1":
        text = bytes(tar[entry.offset : entry.offset + min(entry.stored, 4 * 1024 * 1024)])
        numbers: list[int] = []
        position, wanted = 0, 1
        while len(numbers) < wanted:
            end = text.find(b"\n", position)
            if end < 0:
                raise bad("sparse map is cut short")
            numbers.append(_decimal(text[position:end], "sparse map"))
            position = end + 1
            if len(numbers) == 1:
                wanted = 1 + 2 * numbers[0]
        skip = (position + BLOCK - 1) // BLOCK * BLOCK
        if skip > entry.stored:
            raise bad("sparse map is cut short")
        entry.offset += skip
        entry.stored -= skip
        numbers = numbers[1:]
    else:
        if b"GNU.sparse.map" not in records:
            raise bad("sparse file without a map")
        numbers = [_decimal(text, "sparse map") for text in records[b"GNU.sparse.map"].split(b",") if text]
        if len(numbers) % 2:
            raise bad("sparse map of odd length")
    entry.size = _decimal(size, "sparse size")
    _set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))


def _set_sparse(entry: Entry, pieces: list[tuple[int, int]]) -> None:
    position = 0
    for offset, length in pieces:
        if offset < position or offset + length > entry.size:
            raise bad(f"sparse map of {shown(entry.name)} is wrong")
        position = offset + length
    if sum(length for _, length in pieces) > entry.stored:
        raise bad(f"sparse map of {shown(entry.name)} is longer than its data")
    entry.sparse = pieces


def _octal(value: int, width: int) -> bytes | None:
    text = f"{value:0{width - 1}o}".encode()
    return text + b"\0" if value >= 0 and len(text) < width else None


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def header(entry: Entry) -> bytes:
    """`entry` as header blocks, PAX only where ustar cannot say it; the same bytes for the same entry, always.

    Raises InvalidInput for a name that `entries` would refuse.
    """
    if len(entry.name) > NAME_LIMIT:
        raise InvalidInput(
            f"/{entry.name[:80].decode(errors='replace')}… is nested too deep: its path is longer than {NAME_LIMIT} bytes"
        )
    records: dict[bytes, bytes] = {}
    name = entry.name + b"/" if entry.type == DIRECTORY and not entry.name.endswith(b"/") else entry.name
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    fields = {}
    for key, value, width in ((b"uid", entry.uid, 8), (b"gid", entry.gid, 8), (b"size", entry.stored, 12)):
        text = _octal(value, width)
        if text is None:
            records[key] = str(value).encode()
            text = _octal(0, width)
        fields[key] = text or b""
    when = _octal(seconds, 12)
    if when is None or fraction:
        sign = b"-" if entry.mtime_ns < 0 else b""
        whole, part = divmod(abs(entry.mtime_ns), 1_000_000_000)
        records[b"mtime"] = sign + f"{whole}.{part:09d}".rstrip("0").rstrip(".").encode()
        when = _octal(max(seconds, 0), 12) or b"0" * 11 + b"\0"
    if len(name) > 100 or not name.isascii():
        records[b"path"] = name
    if len(entry.link) > 100 or not entry.link.isascii():
        records[b"linkpath"] = entry.link
    for key in sorted(entry.xattrs):
        records[b"SCHILY.xattr." + key] = entry.xattrs[key]
    block = _ustar(
        name[:100], entry.type, fields, when, entry.mode, entry.link[:100], entry.major, entry.minor
    )
    if not records:
        return block
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    sizes = {b"uid": _octal(0, 8) or b"", b"gid": _octal(0, 8) or b"", b"size": _octal(len(body), 12) or b""}
    extended = _ustar(
        b"PaxHeaders.0/" + name.rsplit(b"/", 1)[-1][:80], b"x", sizes, b"0" * 11 + b"\0", 0o644, b"", 0, 0
    )
    return extended + body + bytes(-len(body) % BLOCK) + block


def _ustar(
    name: bytes,
    kind: bytes,
    fields: dict[bytes, bytes],
    when: bytes,
    mode: int,
    link: bytes,
    major: int,
    minor: int,
) -> bytes:
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = f"{mode & 0o7777:07o}\0".encode()
    block[108:116], block[116:124], block[124:136] = fields[b"uid"], fields[b"gid"], fields[b"size"]
    block[136:148] = when
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[329:337], block[337:345] = f"{major:07o}\0".encode(), f"{minor:07o}\0".encode()
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)
