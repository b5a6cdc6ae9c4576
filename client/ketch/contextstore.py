"""docker's store of contexts, below the configuration directory: what one client writes, the other reads. Acting.

contexts/meta/SHA256-OF-NAME/meta.json: `{"Name", "Metadata": {"Description"}, "Endpoints": {"docker": {"Host", "SkipTLSVerify"}}}`;
contexts/tls/SHA256-OF-NAME/docker/{ca,cert,key}.pem, 0600 in directories of 0700. An archive has `meta.json` and `tls/docker/…`.
Source: docker/cli cli/context/store.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ketch.faults import CommandFailed, why
from ketch.replacing import replace_file

DOCKER = "docker"
NAME_PATTERN = "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"
ARCHIVE_LIMIT = 10 << 20

# Endpoint -> file name -> content.
TlsFiles = dict[str, dict[str, bytes]]


class Stored(NamedTuple):
    """One context. meta: the whole of its meta.json, with what we do not know in it."""

    meta: dict[str, Any]
    tls: TlsFiles

    @property
    def name(self) -> str:
        """As the user calls it."""
        return str(self.meta.get("Name") or "")

    @property
    def description(self) -> str:
        """What the user wrote of it."""
        found = self.meta.get("Metadata")
        return str(found.get("Description") or "") if isinstance(found, dict) else ""

    def docker(self) -> tuple[str, bool]:
        """(host, whether the engine's certificate is not looked at). Raises CommandFailed where there is no such endpoint."""
        try:
            found = self.meta["Endpoints"][DOCKER]
            return str(found.get("Host") or ""), bool(found.get("SkipTLSVerify"))
        except (KeyError, TypeError, AttributeError):
            raise CommandFailed("cannot find docker endpoint in context") from None


def check_name(name: str) -> None:
    """Raises CommandFailed for what may not be the name of a stored context. Pure."""
    if not name:
        raise CommandFailed("context name cannot be empty")
    if name == "default":
        raise CommandFailed('"default" is a reserved context name')
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise CommandFailed(
            f'context name "{name}" is invalid, names are validated against regexp "{NAME_PATTERN}"'
        )


class ContextStore:
    """The contexts below `DIRECTORY/contexts`, which need not be there."""

    def __init__(self, config_directory: str) -> None:
        self._root = os.path.join(config_directory, "contexts")

    def meta_directory(self, name: str) -> str:
        """Where the meta.json of the context `name` lies."""
        return os.path.join(self._root, "meta", _number(name))

    def tls_directory(self, name: str) -> str:
        """Where its certificates lie, in a directory for each endpoint."""
        return os.path.join(self._root, "tls", _number(name))

    def has(self, name: str) -> bool:
        """Whether there is one called so."""
        return os.path.exists(os.path.join(self.meta_directory(name), "meta.json"))

    def read(self, name: str) -> Stored:
        """Raises CommandFailed when it is not there or cannot be read."""
        path = os.path.join(self.meta_directory(name), "meta.json")
        try:
            meta = _read_meta(path)
        except FileNotFoundError:
            raise CommandFailed(
                f'context "{name}": context not found: open {path}: no such file or directory'
            ) from None
        except OSError as error:
            raise CommandFailed(f'context "{name}": open {path}: {why(error)}') from error
        except ValueError as error:
            raise CommandFailed(f'context "{name}": parsing {path}: {error}') from error
        return Stored(meta, self._read_tls(name))

    def names(self) -> list[str]:
        """Of all contexts, 2 before 10. Raises CommandFailed when one cannot be read."""
        found = []
        root = os.path.join(self._root, "meta")
        try:
            numbers = os.listdir(root)
        except FileNotFoundError:
            return []
        for number in numbers:
            path = os.path.join(root, number, "meta.json")
            try:
                found.append(str(_read_meta(path).get("Name") or ""))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise CommandFailed(f"open {path}: {why(error)}") from error
            except ValueError as error:
                raise CommandFailed(f"parsing {path}: {error}") from error
        return sorted(found, key=natural)

    def write(self, stored: Stored) -> None:
        """Make or replace one; never is it without its certificates, so that nobody reaches the engine without them.

        Raises OSError; the one that was there is there still.
        """
        root = self.tls_directory(stored.name)
        for endpoint, files in stored.tls.items():
            os.makedirs(self._root, 0o755, exist_ok=True)
            directory = os.path.join(root, endpoint)
            for made in (os.path.dirname(root), root, directory):
                os.makedirs(made, 0o700, exist_ok=True)
            for name, content in files.items():
                replace_file(os.path.join(directory, name), content, 0o600)
        directory = self.meta_directory(stored.name)
        os.makedirs(directory, 0o755, exist_ok=True)
        replace_file(os.path.join(directory, "meta.json"), _written_meta(stored), 0o644)
        _remove_others(root, stored.tls)

    def remove(self, name: str) -> None:
        """With its certificates; one that is not there is removed already."""
        _remove(self.meta_directory(name))
        _remove(self.tls_directory(name))

    def _read_tls(self, name: str) -> TlsFiles:
        root = self.tls_directory(name)
        found: TlsFiles = {}
        if os.path.isdir(root):
            for endpoint in sorted(os.listdir(root)):
                directory = os.path.join(root, endpoint)
                if os.path.isdir(directory):
                    found[endpoint] = dict(_files_of(directory))
        return found


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _remove_others(root: str, kept: TlsFiles) -> None:
    """What lies below `root` and is not among `kept`."""
    if not kept:
        _remove(root)
        return
    for endpoint in os.listdir(root):
        directory = os.path.join(root, endpoint)
        if endpoint not in kept:
            _remove(directory)
            continue
        for name in os.listdir(directory):
            if name not in kept[endpoint]:
                _remove(os.path.join(directory, name))


def _number(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _read_meta(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        found = json.loads(file.read())
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _written_meta(stored: Stored) -> bytes:
    # What was typed and is no UTF-8 becomes an escape of JSON.
    return json.dumps(stored.meta, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace"
    )


def _files_of(directory: str) -> Iterator[tuple[str, bytes]]:
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                yield name, file.read()


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers in names are in the order of numbers. Pure."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]


def pack(stored: Stored) -> bytes:
    """One context as the archive that `context export` writes. Pure."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, mode: int, content: bytes | None) -> None:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            tar.addfile(entry, None if content is None else io.BytesIO(content))

        add("meta.json", 0o644, _written_meta(stored))
        add("tls", 0o700, None)
        for endpoint, files in stored.tls.items():
            add(f"tls/{endpoint}", 0o700, None)
            for name, content in files.items():
                add(f"tls/{endpoint}/{name}", 0o600, content)
    return buffer.getvalue()


def unpack(name: str, archive: bytes) -> Stored:
    """A context called `name` from a tar or zip. Raises CommandFailed for what is none. Pure."""
    if len(archive) > ARCHIVE_LIMIT:
        raise CommandFailed("read exceeds the defined limit")
    meta: dict[str, Any] | None = None
    tls: TlsFiles = {}
    for path, content in _unzipped(archive) if archive.startswith(b"PK\x03\x04") else _untarred(archive):
        if path == "meta.json":
            try:
                meta = json.loads(content)
            except ValueError as error:
                raise CommandFailed(f"parsing meta.json: {error}") from error
            if not isinstance(meta, dict):
                raise CommandFailed("parsing meta.json: not a JSON object")
            continue
        words = path.split("/")
        if words[0] != "tls" or "\\" in path or "" in words or set(words) & {".", ".."}:
            raise CommandFailed(f"{path}: unexpected context file")
        if len(words) != 3:
            raise CommandFailed("archive format is invalid")
        tls.setdefault(words[1], {})[words[2]] = content
    if meta is None:
        raise CommandFailed("invalid context: no metadata found")
    return Stored({**meta, "Name": name}, tls)


def _untarred(archive: bytes) -> Iterator[tuple[str, bytes]]:
    # docker's own archives end behind the last byte of their last file: neither its padding nor the end's blocks are there.
    try:
        with tarfile.open(fileobj=io.BytesIO(archive + bytes(2048)), mode="r:") as tar:
            size = 0
            for entry in tar:
                if entry.isreg():
                    size += entry.size  # of which a sparse file may have any
                    if size > ARCHIVE_LIMIT:
                        raise CommandFailed("read exceeds the defined limit")
                    file = tar.extractfile(entry)
                    assert file is not None
                    yield entry.name, file.read()
    except tarfile.TarError as error:
        raise CommandFailed(f"not a context's archive: {error}") from error


# What zipfile lets through of a damaged archive, and of one that it cannot read.
_DAMAGES = (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


def _unzipped(archive: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as found:
            if sum(entry.file_size for entry in found.infolist()) > ARCHIVE_LIMIT:
                raise CommandFailed("read exceeds the defined limit")
            for entry in found.infolist():
                if not entry.is_dir():
                    yield entry.filename, found.read(entry)
    except (zipfile.BadZipFile, *_DAMAGES) as error:
        raise CommandFailed(f"not a context's archive: {error}") from error
