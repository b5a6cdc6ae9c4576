"""The json-file log: lines in, entries out, rotated by size. Written by the shim alone, so ketchd may be away.

On disk: PATH (newest), PATH.1 … older, compressed PATH.1.gz … if asked; one JSON object a line: {"log", ["encoding",] "stream",
["attrs",] "time"}, in that order (`ketchd.containers.logformat` relies on it). A line longer than 16 KiB becomes several entries, of
which the last alone ends with a newline. In text, bytes that are no UTF-8 are written as lone surrogates (\\udc80 … \\udcff), from
which a reader gets the very bytes back; what is no text at all is written as base64, with "encoding": escapes would be four times as
long as it. Source: Docker's json-file driver.
"""

from __future__ import annotations

import binascii
import os
import time

from ketchd.shim.logarchive import Archiver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ketchd.shim.loop import Loop

LINE_LIMIT = 16 * 1024
_PLAIN = bytes(byte for byte in range(0x20, 0x80) if byte not in b'"\\') + b"\n"
# The backslash first: the other escapes bring backslashes of their own.
_ESCAPES = {0x5C: b"\\\\"} | {byte: b"\\u%04x" % byte for byte in range(0x20) if byte != 0x0A}
_ESCAPES |= {0x08: b"\\b", 0x09: b"\\t", 0x0C: b"\\f", 0x0D: b"\\r", 0x22: b'\\"'}
_HEAD = b'{"log":"'
# What text does not hold, but for one here and there: control characters without tab, line ends and colours' escape.
_TEXT = bytes(byte for byte in range(256) if byte >= 0x20 or byte in b"\t\n\r\f\b\x1b")
_FEW, _SAMPLE, _BINARY_FROM = 16, 2048, 512
_SCRATCH = ".gz.new"


def escape(text: bytes) -> bytes:
    """`text` as the inside of a JSON string, but for newlines, which stay."""
    special = text.translate(None, _PLAIN)
    if not special:
        return text
    for kind, escaped in _ESCAPES.items():
        if kind in special:
            text = text.replace(bytes((kind,)), escaped)
    if not special.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            text = text.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace")
    return text


def encode_lines(lines: bytes, stream: bytes, stamp: bytes, attrs: bytes = b"") -> bytes:
    """Entries of whole lines: `lines` ends with a newline and is not empty. attrs: `"attrs":{…},` or nothing."""
    tail = b'\\n","stream":"' + stream + b'",' + attrs + b'"time":"' + stamp + b'"}\n'
    return _HEAD + escape(lines)[:-1].replace(b"\n", tail + _HEAD) + tail


def encode_piece(piece: bytes, stream: bytes, stamp: bytes, attrs: bytes = b"") -> bytes:
    """The entry of a piece without a newline."""
    return _HEAD + escape(piece) + b'","stream":"' + stream + b'",' + attrs + b'"time":"' + stamp + b'"}\n'


def has_long_line(lines: bytes) -> bool:
    """Whether a line of `lines` (which ends with a newline) reaches the limit. Looks at few places, not at every line."""
    start, end = 0, len(lines)
    while end - start > LINE_LIMIT:
        newline = lines.rfind(b"\n", start, start + LINE_LIMIT)
        if newline < 0:
            return True
        start = newline + 1
    return False


def is_binary(chunk: bytes) -> bool:
    """Whether `chunk` is no text in any language or encoding: more than one byte of sixteen is a control character.

    Its beginning is looked at. A few lines are text, whatever they hold.
    """
    sample = chunk[:_SAMPLE]
    return len(chunk) >= _BINARY_FROM and len(sample.translate(None, _TEXT)) * _FEW > len(sample)


def encode_binary(pieces: list[bytes], stream: bytes, stamp: bytes, attrs: bytes = b"") -> bytes:
    """An entry for each of `pieces`, which are not empty."""
    tail = b'","encoding":"base64","stream":"' + stream + b'",' + attrs + b'"time":"' + stamp + b'"}\n'
    encoded = [binascii.b2a_base64(piece, newline=False) for piece in pieces]
    return _HEAD + (tail + _HEAD).join(encoded) + tail


def cut_lines(lines: bytes, stream: bytes, stamp: bytes, attrs: bytes = b"") -> bytes:
    """`encode_lines` for lines of any length and content."""
    binary = is_binary(lines)
    if not binary and not has_long_line(lines):
        return encode_lines(lines, stream, stamp, attrs)
    pieces = []
    for line in lines[:-1].split(b"\n"):
        start = 0
        while len(line) - start >= LINE_LIMIT:
            pieces.append(line[start : start + LINE_LIMIT])
            start += LINE_LIMIT
        pieces.append(line[start:] + b"\n")
    if binary:
        return encode_binary(pieces, stream, stamp, attrs)
    return b"".join(
        [
            encode_lines(piece, stream, stamp, attrs)
            if piece.endswith(b"\n")
            else encode_piece(piece, stream, stamp, attrs)
            for piece in pieces
        ]
    )


def cut_pieces(chunk: bytes, stream: bytes, stamp: bytes, attrs: bytes = b"") -> tuple[bytes, bytes]:
    """(entries, what is left) of a chunk without a newline, in pieces of LINE_LIMIT."""
    whole = len(chunk) - len(chunk) % LINE_LIMIT
    pieces = [chunk[start : start + LINE_LIMIT] for start in range(0, whole, LINE_LIMIT)]
    if not pieces:
        return b"", chunk
    if is_binary(chunk):
        return encode_binary(pieces, stream, stamp, attrs), chunk[whole:]
    return b"".join([encode_piece(piece, stream, stamp, attrs) for piece in pieces]), chunk[whole:]


class JsonLog:
    """One container's log. Appends; a failing disk loses lines, never the container.

    attrs: a JSON object that every entry carries, b"" for none. compressor: the loop on which rotated files are compressed
    when nothing else is to be done, None to leave them plain.
    """

    def __init__(
        self, path: str, max_size: int, max_files: int, attrs: bytes = b"", compressor: Loop | None = None
    ) -> None:
        self._path = path
        self._max_size = max_size
        self._max_files = max(1, max_files)
        self._attrs = b'"attrs":' + attrs + b"," if attrs else b""
        self._compressor = compressor
        self._archiver: Archiver | None = None
        self._archived = 0
        self._rest: dict[bytes, bytes] = {}
        self._second = -1
        self._stamp = ""
        self._fd = -1
        self._size = 0
        self._is_cut = False  # the file ends amid an entry, for which the disk had no room
        self._open()
        self._archive_next()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
        # a crash cut the last entry: it must not spoil the next
        self._is_cut = bool(self._size) and os.pread(self._fd, 1, self._size - 1) != b"\n"

    def now(self) -> bytes:
        """RFC 3339 with nanoseconds."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return b"%s.%09dZ" % (self._stamp.encode(), nanoseconds)

    def write(self, stream: bytes, chunk: bytes) -> None:
        """Log what complete lines `chunk` brings; the rest waits for its newline."""
        rest = self._rest.get(stream)
        if rest:
            chunk = rest + chunk
        cut = chunk.rfind(b"\n") + 1
        stamp = self.now()
        if cut:
            self._append(cut_lines(chunk[:cut] if cut < len(chunk) else chunk, stream, stamp, self._attrs))
            chunk = chunk[cut:]
        if len(chunk) >= LINE_LIMIT:
            entries, chunk = cut_pieces(chunk, stream, stamp, self._attrs)
            self._append(entries)
        self._rest[stream] = chunk

    def finish(self, stream: bytes) -> None:
        """The stream has ended: its last line has no newline."""
        rest = self._rest.pop(stream, b"")
        if rest and is_binary(rest):
            self._append(encode_binary([rest], stream, self.now(), self._attrs))
        elif rest:
            self._append(encode_piece(rest, stream, self.now(), self._attrs))

    def close(self) -> None:
        """Finish both streams; what is not compressed yet stays plain until the next run. May be called twice."""
        for stream in list(self._rest):
            self.finish(stream)
        self._compressor = None
        if self._archiver is not None:
            self._archiver.close()
            self._archiver = None
            _remove(self._path + _SCRATCH)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entries: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()  # a rotation that failed
            while self._max_size and self._size + len(entries) > self._max_size:
                room = self._max_size - self._size
                cut = entries.find(b"\n", max(0, room - 1)) + 1 if room > 0 else 0
                if cut == len(entries):
                    break
                self._write(entries[:cut])
                entries = entries[cut:]
                self._rotate()
            self._write(entries)
        except OSError:
            return  # no space, or the directory is gone: the container must go on

    def _write(self, entries: bytes) -> None:
        if self._is_cut and entries:
            self._size += os.write(self._fd, b"\n")
            self._is_cut = False
        view = memoryview(entries)
        while view:
            try:
                written = os.write(self._fd, view)
            except OSError:
                done = len(entries) - len(view)
                self._is_cut = done > 0 and entries[done - 1] != 0x0A
                raise
            self._size += written
            view = view[written:]

    def _rotate(self) -> None:
        """PATH becomes PATH.1 and so on; a reader that follows sees another inode at PATH."""
        fd, self._fd = self._fd, -1  # whatever happens now, nothing is written to what gets its number next
        os.close(fd)
        if self._max_files == 1:
            os.unlink(self._path)
        else:
            for number in range(self._max_files - 1, 1, -1):
                self._move(f"{self._path}.{number - 1}", f"{self._path}.{number}")
            os.rename(self._path, f"{self._path}.1")
            if self._archiver is not None:
                self._archived += 1
        self._open()
        self._archive_next()

    @staticmethod
    def _move(old: str, new: str) -> None:
        """A rotated file, plain or compressed, takes the place of the next older one, plain or compressed."""
        for ending, other in (("", ".gz"), (".gz", "")):
            try:
                os.rename(old + ending, new + ending)
            except FileNotFoundError:
                continue
            _remove(new + other)

    # compressing

    def _archive_next(self) -> None:
        """Begin with the oldest rotated file that is plain, unless one is under way."""
        if self._compressor is None or self._archiver is not None:
            return
        for number in range(self._max_files - 1, 0, -1):
            try:
                self._archiver = Archiver(f"{self._path}.{number}", self._path + _SCRATCH)
            except OSError:
                continue
            self._archived = number
            self._compressor.later(0, self._archive_step)
            return

    def _archive_step(self) -> None:
        archiver, compressor = self._archiver, self._compressor
        if archiver is None or compressor is None:
            return
        try:
            if not archiver.step():
                compressor.later(0, self._archive_step)
                return
            if self._archived < self._max_files:  # else it was rotated out meanwhile
                archiver.publish(f"{self._path}.{self._archived}")
            else:
                _remove(self._path + _SCRATCH)
        except OSError:
            _remove(self._path + _SCRATCH)  # no space: it stays plain
            compressor = None
        archiver.close()
        self._archiver = None
        if compressor is not None:
            self._archive_next()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
