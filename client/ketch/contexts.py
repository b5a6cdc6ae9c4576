"""Where a build's context comes from: a directory, standard input, or an address; and which Dockerfile goes with it. Acting.

Source: docker/cli cli/command/image/build/context.go.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from ketch.buildcontext import ContextTar
from ketch.faults import CommandFailed, why
from ketch.ignorefile import BadPattern, Ignore, compile_pattern, read_lines
from ketch.tarwriting import BLOCK, header

DEFAULT = "Dockerfile"
CHUNK = 256 * 1024
PREPARE = "unable to prepare context: "
_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


class Context(NamedTuple):
    """What is sent: the tar's parts, and the Dockerfile's path in it. `release` after the build."""

    parts: Iterable[bytes]
    dockerfile: str
    release: Callable[[], None] = lambda: None


def open_context(place: str, dockerfile: str) -> Context:
    """The context that PATH | URL | - and --file name. Raises CommandFailed."""
    if place == "-":
        if dockerfile == "-":
            raise CommandFailed("invalid argument: can't use stdin for both build context and dockerfile")
        return from_stream(sys.stdin.buffer, dockerfile)
    if is_git(place):
        return _from_git(place, dockerfile)
    if place.startswith(("http://", "https://")):
        return _from_address(place, dockerfile)
    return from_directory(place, dockerfile)


def from_directory(root: str, dockerfile: str, release: Callable[[], None] = lambda: None) -> Context:
    """A directory. The Dockerfile may lie outside, or come from standard input (`-`)."""
    if not os.path.isdir(root):
        if os.path.exists(root):
            raise CommandFailed(f"{PREPARE}context must be a directory: {os.path.abspath(root)}")
        raise CommandFailed(f'{PREPARE}path "{root}" not found')
    root = os.path.realpath(root)
    name, added = _dockerfile(root, dockerfile)
    lines = _ignore_lines(root, name if added is None else "")
    extra: dict[str, bytes] = {}
    if added is not None:
        # The same name for the same content: it must not keep steps from the cache.
        name = f".dockerfile.{hashlib.sha256(added).hexdigest()[:20]}"
        extra[name] = added
    try:
        ignore = Ignore(lines)
    except BadPattern as error:
        raise CommandFailed(f"error checking context: {error}") from error
    kept = [f"!{path}" for path in (".dockerignore", name) if path not in extra and ignore.ignores(path)]
    ignore.patterns += [compile_pattern(line) for line in kept]
    out: frozenset[str] = frozenset()
    if extra:
        # The engine reads it as well: what is only there for the build must not be copied.
        content = "".join(f"{line}\n" for line in [*lines, ".dockerignore", name])
        extra[".dockerignore"] = content.encode("utf-8", "surrogateescape")
        out = frozenset({".dockerignore"})
    return Context(ContextTar(root, ignore, extra, out), name, release)


def _dockerfile(root: str, given: str) -> tuple[str, bytes | None]:
    """The path within the context, or the content of a Dockerfile that is not in it."""
    if given == "-":
        return "", sys.stdin.buffer.read()
    path = given or os.path.join(root, DEFAULT)
    if not given and not os.path.lexists(path) and os.path.lexists(os.path.join(root, DEFAULT.lower())):
        path = os.path.join(root, DEFAULT.lower())
    if not os.path.isabs(path) and not os.path.exists(path):
        path = os.path.join(root, path)
    path = os.path.abspath(path)
    try:
        real = os.path.join(os.path.realpath(os.path.dirname(path), strict=True), os.path.basename(path))
        os.stat(real)
    except OSError as error:
        raise CommandFailed(
            f"{PREPARE}unable to evaluate symlinks in Dockerfile path: lstat {path}: {why(error)}"
        ) from error
    inside = os.path.relpath(real, root)
    if inside.startswith("../"):
        try:
            with open(path, "rb") as file:
                return "", file.read()
        except OSError as error:
            raise CommandFailed(f"unable to open Dockerfile: open {path}: {why(error)}") from error
    return inside, None


def _ignore_lines(root: str, dockerfile: str) -> list[str]:
    for name in (f"{dockerfile}.dockerignore" if dockerfile else "", ".dockerignore"):
        try:
            if name:
                with open(os.path.join(root, name), encoding="utf-8", errors="surrogateescape") as file:
                    return read_lines(file.read())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CommandFailed(f"error reading .dockerignore: {why(error)}") from error
        except BadPattern as error:
            raise CommandFailed(f"error checking context: {error}") from error
    return []


def from_stream(stream: BinaryIO, dockerfile: str, release: Callable[[], None] = lambda: None) -> Context:
    """A tar as it comes, compressed or not; or a Dockerfile alone, of which a context of one file is made."""
    start = stream.read(BLOCK)
    if is_archive(start):
        return Context(_rest(start, stream), dockerfile or DEFAULT, release)
    if dockerfile:
        raise CommandFailed(
            f"{PREPARE}ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"
        )
    content = start + stream.read()
    if not content.strip():
        raise CommandFailed(f"{PREPARE}the Dockerfile cannot be empty")
    parts = (
        header(DEFAULT.encode(), b"0", 0o644, len(content), 0),
        content + bytes(-len(content) % BLOCK),
        bytes(2 * BLOCK),
    )
    return Context(parts, DEFAULT, release)


def is_archive(start: bytes) -> bool:
    """Whether a file that begins so is a tar, or compressed."""
    return start.startswith(_MAGICS) or start[257:262] == b"ustar"


def _rest(start: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield start
    while part := stream.read(CHUNK):
        yield part


def is_git(place: str) -> bool:
    """Whether an address is a git repository. Source: moby builder/remotecontext/urlutil."""
    bare = place.partition("#")[0]
    return place.startswith(("git://", "github.com/", "git@")) or (
        place.startswith(("http://", "https://")) and bare.endswith(".git")
    )


def _from_address(address: str, dockerfile: str) -> Context:
    import urllib.error
    import urllib.request

    try:
        answer = urllib.request.urlopen(address, timeout=60)
    except urllib.error.HTTPError as error:
        raise CommandFailed(
            f"{PREPARE}unable to download remote context {address}: failed to GET {address} with status {error.code}"
        ) from error
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{PREPARE}unable to download remote context {address}: {error}") from error
    return from_stream(answer, dockerfile, answer.close)


def _from_git(address: str, dockerfile: str) -> Context:
    """A clone, without its `.git`'s history being deeper than needed. `#ref[:directory]` behind the address."""
    import subprocess
    import tempfile

    repository, _, rest = address.partition("#")
    reference, _, directory = rest.partition(":")
    if repository.startswith("github.com/"):
        repository = f"https://{repository}"
    if shutil.which("git") is None:
        raise CommandFailed(
            f"{PREPARE}unable to find 'git': install the package git to build from a repository"
        )
    place = tempfile.mkdtemp(prefix="ketch-git-")

    def release() -> None:
        shutil.rmtree(place, ignore_errors=True)

    commands = [
        ["init", "-q"],
        ["remote", "add", "origin", repository],
        ["fetch", "-q", "--depth", "1", "origin", "--", reference or "HEAD"],
        ["checkout", "-q", "FETCH_HEAD"],
        ["submodule", "update", "-q", "--init", "--recursive", "--depth=1"],
    ]
    try:
        for command in commands:
            done = subprocess.run(
                ["git", *command],
                cwd=place,
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode:
                said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
                raise CommandFailed(
                    f"{PREPARE}unable to 'git clone' to temporary context directory: {command[0]}: {said}"
                )
        root = os.path.realpath(os.path.join(place, directory.lstrip("/")))
        if root != os.path.realpath(place) and not root.startswith(os.path.realpath(place) + "/"):
            raise CommandFailed(f"{PREPARE}subdirectory {directory!r} is outside of the repository")
        # Named within the clone, not within the directory where the command was typed.
        inside = (
            os.path.join(root, dockerfile) if dockerfile and not os.path.isabs(dockerfile) else dockerfile
        )
        return from_directory(root, inside, release)
    except BaseException:
        release()
        raise
