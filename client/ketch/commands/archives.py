"""`save`, `load`, `export` and `import`: images and filesystems as tar files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from ketch.commands.registry import platform_object
from ketch.faults import CommandFailed, why
from ketch.http import Answer
from ketch.options import Command, Given
from ketch.progressview import show
from ketch.references import parse_name
from ketch.session import Session
from ketch.terminal import is_terminal

CHUNK = 1024 * 1024
OUTPUT = "-o, --output string  Write to a file, instead of STDOUT"


def save(session: Session, given: Given) -> int:
    """Write images as one tar."""
    query: dict[str, Any] = {"names": given.arguments}
    if given.text("platform"):
        query["platform"] = platform_object(given.text("platform"))
    if given.on("all-platforms"):
        query["allPlatforms"] = True
    target = _target(given.text("output"), "failed to save image")
    deliver(session.engine.request("GET", "/images/get", query), target)
    return 0


def export(session: Session, given: Given) -> int:
    """Write a container's filesystem as a tar."""
    target = _target(given.text("output"), "failed to export container")
    deliver(session.engine.request("GET", f"/containers/{given.arguments[0]}/export"), target)
    return 0


def _target(path: str, failed: str) -> str:
    """Where to write, checked before anything is asked of the engine; empty for standard output."""
    if not path:
        if is_terminal(1):
            raise CommandFailed("cowardly refusing to save to a terminal. Use the -o flag or redirect")
        return ""
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise CommandFailed(f"{failed}: invalid output path: stat {directory}: no such file or directory")
    if os.path.isdir(path):
        raise CommandFailed(f"{failed}: invalid output path: cannot write to a directory")
    return path


def deliver(answer: Answer, path: str) -> None:
    """An answer's body to a file, which appears when it is whole, or to standard output."""
    with answer:
        if not path:
            for part in answer.parts():
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            return
        if os.path.exists(path) and not os.path.isfile(path):
            # A device or a pipe is written, not replaced.
            with open(path, "wb") as file:
                file.writelines(answer.parts())
            return
        temporary = f"{path}.{os.getpid()}.part"
        try:
            with open(temporary, "xb") as file:
                file.writelines(answer.parts())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise CommandFailed(f"{error.filename or path}: {why(error)}") from error
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def load(session: Session, given: Given) -> int:
    """Read images from a tar."""
    path = given.text("input")
    if not path and is_terminal(0):
        raise CommandFailed("requested load from stdin, but stdin is empty")
    quiet = given.on("quiet") or not is_terminal(1)
    query: dict[str, Any] = {"quiet": quiet}
    if given.text("platform"):
        query["platform"] = platform_object(given.text("platform"))
    with _opened(path) as file:
        answer = session.engine.request(
            "POST",
            "/images/load",
            query,
            body=read_parts(file),
            headers={"Content-Type": "application/x-tar"},
        )
        if answer.headers.get("content-type", "").startswith("application/json"):
            show(session.engine.messages(answer), sys.stdout)
        else:
            deliver(answer, "")
    return 0


def import_(session: Session, given: Given) -> int:
    """Make an image of a filesystem's tar."""
    source = given.arguments[0]
    query: dict[str, Any] = {
        "fromSrc": "-",
        "message": given.text("message"),
        "changes": given.many("change"),
        "platform": session.platform(given),
    }
    if len(given.arguments) > 1:
        parse_name(given.arguments[1])
        query["repo"] = given.arguments[1]
    engine = session.engine
    if source.startswith(("http://", "https://", "ftp://")):
        query["fromSrc"] = source
        show(engine.messages(engine.request("POST", "/images/create", query)), sys.stdout)
        return 0
    with _opened("" if source == "-" else source) as file:
        answer = engine.request(
            "POST", "/images/create", query, body=read_parts(file), headers={"Content-Type": "text/plain"}
        )
        show(engine.messages(answer), sys.stdout)
    return 0


def _opened(path: str) -> BinaryIO:
    if not path:
        return open(0, "rb", closefd=False)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CommandFailed(f"open {path}: {why(error)}") from error


def read_parts(file: BinaryIO) -> Iterator[bytes]:
    """A file in large parts."""
    while part := file.read(CHUNK):
        yield part


COMMANDS = {
    "save": (
        Command(
            "[OPTIONS] IMAGE [IMAGE...]",
            f"""
--all-platforms  Save the image for every platform, or fail where one is not here
{OUTPUT}
--platform string  Save this platform's part alone, as "os[/arch[/variant]]"
""",
            (1, None),
        ),
        save,
    ),
    "export": (Command("[OPTIONS] CONTAINER", OUTPUT, (1, 1)), export),
    "load": (
        Command(
            "[OPTIONS]",
            """
-i, --input string  Read from a tar file, instead of STDIN
--platform string  Load this platform's part alone, as "os[/arch[/variant]]"
-q, --quiet  Do not show the progress
""",
        ),
        load,
    ),
    "import": (
        Command(
            "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
            """
-c, --change list  Apply a Dockerfile instruction to the image
-m, --message string  Commit message
--platform string  Platform, where the engine has several
""",
            (1, 2),
        ),
        import_,
    ),
}
