"""The state of a build after a step, and the image config it amounts to. Pure.

Source: image-spec config.md; history lines as dockerd's classic builder writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ketchd.build.ops import BaseOp, CopyOp, MetaOp, Node, RunOp, WorkdirOp
from ketchd.model.digest import Digest
from ketchd.model.times import rfc3339

_FIELDS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "StopTimeout",
    "ArgsEscaped", "Healthcheck", "OnBuild", "Shell",
)  # fmt: skip
_GO_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node's end leaves. layers: diff IDs base first. history: entries as the config holds them, the base's included.

    chain: names all that led here, for keys. created_ns: of the newest step. base_id: the image it began with, "" for scratch.
    """

    layers: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    author: str = ""
    architecture: str = "amd64"
    os: str = "linux"
    variant: str = ""
    chain: str = ""
    created_ns: int = 0
    base_id: str = ""
    image_id: str = ""

    @property
    def short_id(self) -> str:
        """The 12 hex digits of ` ---> …`; "" for scratch."""
        return self.image_id[7:19]

    @property
    def platform(self) -> str:
        """`linux/amd64`."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def of_base(op: BaseOp, chain: str) -> Snapshot:
    """The state after FROM an image, which has that image's own ID."""
    base = op.base
    if base is None:
        return Snapshot(architecture=op.architecture, os=op.os, variant=op.variant, chain=chain)
    return Snapshot(
        layers=base.layers, history=base.history, config=base.config, author=base.author, architecture=base.architecture,
        os=base.os, variant=base.variant, chain=chain, base_id=base.image_id, image_id=base.image_id,
    )  # fmt: skip


def after(
    before: Snapshot,
    node: Node,
    *,
    chain: str,
    created_ns: int,
    layer: str | None,
    content: str = "",
) -> Snapshot:
    """The state after a step that made `layer` (None: an empty one) at `created_ns`. content: as history names a COPY's sources."""
    entry: dict[str, Any] = {"created": rfc3339(created_ns), "created_by": created_by(node, content)}
    if node.author:
        entry["author"] = node.author
    if layer is None:
        entry["empty_layer"] = True
    changed = replace(
        before, layers=before.layers if layer is None else (*before.layers, layer), history=(*before.history, entry),
        config=node.config, author=node.author, chain=chain, created_ns=created_ns,
    )  # fmt: skip
    return replace(changed, image_id=str(Digest.of(image_config(changed))))


def with_layers(state: Snapshot, layers: Sequence[str]) -> Snapshot:
    """The same state of other layers, as many."""
    changed = replace(state, layers=tuple(layers))
    return replace(changed, image_id=str(Digest.of(image_config(changed))))


def created_by(node: Node, content: str = "") -> str:
    """The history line of a step."""
    shell = " ".join(node.shell)
    match node.op:
        case RunOp() as op:
            args = f"|{len(op.args)} {' '.join(op.args)} " if op.args else ""
            return args + " ".join(op.argv)
        case CopyOp() as op:
            chown = f"--chown={op.chown} " if op.chown else ""
            return f"{shell} #(nop) {op.keyword} {chown}{content} in {op.shown_destination} "
        case WorkdirOp() as op:
            return f"{shell} #(nop) {op.comment}"
        case MetaOp() as op:
            return f"{shell} #(nop)  {op.comment}"
    return node.text


def image_config(state: Snapshot) -> bytes:
    """The config JSON: top-level keys sorted, as Docker writes them, the rest in the order of its structs."""
    document: dict[str, Any] = {"architecture": state.architecture}
    if state.author:
        document["author"] = state.author
    document["config"] = {name: state.config[name] for name in _FIELDS if state.config.get(name)}
    document["created"] = rfc3339(state.created_ns)
    document["history"] = list(state.history)
    document["os"] = state.os
    document["rootfs"] = {"type": "layers", "diff_ids": list(state.layers)}
    if state.variant:
        document["variant"] = state.variant
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES)
    return text.encode("utf-8", "replace")
