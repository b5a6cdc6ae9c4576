"""What a node of the build graph does, as data: everything expanded, nothing decided later. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ketchd.build.lexer import Place
from ketchd.build.stages import Base


@dataclass(frozen=True, slots=True)
class NoteOp:
    """A step that only speaks: ARG before the first FROM."""


@dataclass(frozen=True, slots=True)
class BaseOp:
    """FROM an image; base None is scratch."""

    name: str
    base: Base | None
    architecture: str = "amd64"
    os: str = "linux"
    variant: str = ""
    triggers: int = 0


@dataclass(frozen=True, slots=True)
class StageOp:
    """FROM an earlier stage: its state goes on. The node's parent is that stage's last node. triggers: ONBUILD steps that follow."""

    triggers: int = 0


@dataclass(frozen=True, slots=True)
class MetaOp:
    """A change of the config alone. comment: what history says after `#(nop) `."""

    comment: str


@dataclass(frozen=True, slots=True)
class WorkdirOp:
    """WORKDIR: the directory is made when it is not there. path: absolute, clean."""

    path: str
    comment: str


@dataclass(frozen=True, slots=True)
class MountOp:
    """One --mount of a RUN. source: path inside `from_node`'s or `from_image`'s root, or the context's. size: bytes, 0 for no limit."""

    type: str
    target: str
    source: str = "/"
    from_node: int | None = None
    from_image: str = ""
    writable: bool = False
    id: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    sharing: str = "shared"
    required: bool = False


@dataclass(frozen=True, slots=True)
class RunOp:
    """RUN. argv: with the shell. args: `NAME=value` of build arguments in scope; proxies: environment that no key knows.
    script: a heredoc that begins with `#!`, run as a file."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    args: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    network: str = "default"
    extra_hosts: tuple[str, ...] = ()
    mounts: tuple[MountOp, ...] = ()
    script: str = ""


@dataclass(frozen=True, slots=True)
class CopyOp:
    """COPY or ADD. destination: absolute, clean, with a trailing slash when it must be a directory.
    chmod: None to keep modes. files: heredocs as (name, content). from_node, from_image: "" and None for the context.
    unpack: local archives are unpacked."""

    keyword: str
    sources: tuple[str, ...]
    destination: str
    shown_destination: str
    urls: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    from_node: int | None = None
    from_image: str = ""
    chown: str = ""
    chmod: int | None = None
    exclude: tuple[str, ...] = ()
    link: bool = False
    unpack: bool = False
    unpack_urls: bool = False
    checksum: str = ""


Op = NoteOp | BaseOp | StageOp | MetaOp | WorkdirOp | RunOp | CopyOp


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the graph. needs: nodes that must be done first; parent: the one whose state it changes.

    number: as in `Step n/m`, 0 for ONBUILD triggers. config: the image config's `config` after the step. stage_end: the last
    node of its stage. shell: what history begins `#(nop)` lines with.
    """

    index: int
    stage: int
    op: Op
    place: Place
    text: str
    number: int
    needs: tuple[int, ...] = ()
    parent: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    author: str = ""
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    stage_end: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes in Dockerfile order (a node comes after all that it needs), and the one whose state is the image."""

    nodes: tuple[Node, ...]
    target: int
    steps: int
    unconsumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
