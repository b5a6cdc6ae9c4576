"""COPY, ADD and WORKDIR as jobs of a layer worker: headers are rewritten, bytes copied once, from the context's tar into the layer.

No file of the context is ever made. The destination is looked up in the step's root, mounted read-only for the job.
Source: Dockerfile reference, COPY and ADD; moby builder/dockerfile/copy.go.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ketch_wire.faults import Fault, InvalidInput
from ketchd.build.contenthash import TarContext, opened_source, select_all
from ketchd.build.copybytes import from_bytes, from_source, linked, unpack, unpack_fd
from ketchd.build.layerdraft import Draft, nothing
from ketchd.build.members import Member, Selected, clean_source
from ketchd.build.roottree import RootTree, mounted
from ketchd.layers.tarheaders import REGULAR, Entry
from ketchd.layers.tarwrite import TarWriter
from ketchd.layers.worker import JobPort


def copy(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Job. arguments: place, root (layers TOP FIRST), detached (the root gives owners only), source (see opened_source) or None,
    sources, exclude, keyword, destination, chown, chmod, owned, unpack, files [[name, text]],
    downloads [{path, name, mtime, unpack}].

    Returns what LayerFile.seal does. Raises NotFound, InvalidInput.
    """
    with mounted(arguments["root"], port) as root:
        owner = root.owner(arguments["chown"]) if arguments["chown"] else None
        output = Draft(None if arguments["detached"] else root, owner, arguments["chmod"])
        opened: list[Any] = []
        try:
            if arguments["source"] is None or not arguments["sources"]:
                _fill(output, arguments, [], None, opened)
                return output.write(arguments["place"])
            with opened_source(arguments["source"], port) as tree:
                selected = select_all(
                    tree, arguments["sources"], tuple(arguments["exclude"]), arguments["keyword"]
                )
                _fill(output, arguments, selected, tree, opened)
                facts = output.write(arguments["place"])
                output.members.clear()
                return facts
        finally:
            for one in opened:
                one.close()


def _fill(
    output: Draft,
    arguments: dict[str, Any],
    selected: list[Selected],
    tree: TarContext | RootTree | None,
    opened: list[Any],
) -> None:
    keyword, destination = arguments["keyword"], arguments["destination"]
    count = len(selected) + len(arguments["files"]) + len(arguments["downloads"])
    if count == 0:
        raise InvalidInput(f"{keyword} failed: no source files were specified")
    if count > 1 and not destination.endswith("/"):
        raise InvalidInput(
            f"When using {keyword} with more than one source file, the destination must be a directory and end with a /"
        )
    target = _target(output, destination)
    into = destination.endswith("/") or output.is_directory(target)
    try:
        for one in selected:
            assert tree is not None
            if one.is_directory:
                _directory(output, target, one, tree, arguments["owned"])
            elif not (arguments["unpack"] and unpack(output, target, one, tree, arguments, opened)):
                path = f"{target}/{one.name}".lstrip("/") if into else target
                for member in one.members:
                    _member(output, path, member, tree, arguments["owned"])
        for name, text in arguments["files"]:
            content = text.encode("utf-8", "surrogateescape")
            entry = Entry(b"", REGULAR, 0o644, size=len(content), stored=len(content))
            path = f"{target}/{name}".lstrip("/") if into else target
            output.put(path, output.dressed(entry, owned=False), from_bytes(content))
        for one in arguments["downloads"]:
            _download(output, target, into, one, arguments, opened)
    except Fault as fault:
        raise type(fault)(f"{keyword} failed: {fault.message}") from None


def _target(output: Draft, destination: str) -> str:
    """The destination relative to the root, the links of the root below followed."""
    path = destination.strip("/")
    return output.root.follow(path) if output.root is not None else path


def _directory(output: Draft, target: str, one: Selected, tree: TarContext | RootTree, owned: bool) -> None:
    """The directory's contents; the destination stays as it is, or is a new directory, 0755."""
    if target:
        output.make_parents(target)
        output.keep_or_make(target)
    for member in one.members:
        if member.relative:
            _member(output, f"{target}/{member.relative}".lstrip("/"), member, tree, owned)


def _member(output: Draft, path: str, member: Member, tree: TarContext | RootTree, owned: bool) -> None:
    entry = output.dressed(member.entry, owned=owned)
    if entry.type != REGULAR:
        output.put(path, entry, nothing)
        return
    shared = entry.offset in tree.index.hard if isinstance(tree, TarContext) else entry.offset != 0
    output.put(
        path,
        replace(entry, stored=entry.size),
        linked(output, entry.offset, member, tree) if shared else from_source(tree, member),
    )


def _download(
    output: Draft,
    target: str,
    into: bool,
    one: dict[str, Any],
    arguments: dict[str, Any],
    opened: list[Any],
) -> None:
    fd = os.open(one["path"], os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    try:
        if one["unpack"] and unpack_fd(output, target, fd, 0, size, arguments, opened):
            return
    finally:
        os.close(fd)

    def write(writer: TarWriter, entry: Entry) -> None:
        source = os.open(one["path"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            writer.add(entry, source=source)
        finally:
            os.close(source)

    entry = Entry(b"", REGULAR, 0o600, size=size, stored=size, mtime_ns=one["mtime"] * 10**9)
    if into and not one["name"]:
        raise InvalidInput(f"cannot determine filename for source {one['url']}")
    output.put(
        f"{target}/{one['name']}".lstrip("/") if into else target, output.dressed(entry, owned=False), write
    )


def workdir(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Job. arguments: place, root, path. Makes the directory and what is missing above it; {"empty": True} when it is there."""
    with mounted(arguments["root"], port) as root:
        output = Draft(root, None, None)
        wanted = arguments["path"].strip("/")
        if not wanted or output.is_directory(wanted):
            return {"empty": True}
        target = _target(output, arguments["path"])
        try:
            output.make_parents(target)
            output.keep_or_make(target)
        except InvalidInput:
            raise InvalidInput(f"Cannot mkdir: {arguments['path']} is not a directory") from None
        return output.write(arguments["place"])


def extract(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Job. arguments: place (of kind "directory"), source, path, owned. A directory's contents come below `directory/`, a file below
    `file/`. Raises NotFound."""
    draft = Draft(None, None, None)
    with opened_source(arguments["source"], port) as tree:
        one = tree.named(clean_source(arguments["path"]))
        target = "directory" if one.is_directory else f"file/{one.name}"
        draft.keep_or_make("directory")
        for member in one.members:
            if member.relative or not one.is_directory:
                path = f"{target}/{member.relative}".rstrip("/")
                _member(draft, path, member, tree, arguments["owned"])
        facts = draft.write(arguments["place"])
        draft.members.clear()
    return facts
