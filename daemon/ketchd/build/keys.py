"""Cache keys: what a step's result depends on, as data, and its digest. Pure.

The same inputs that make the key are kept beside the result, so that a later miss can be explained by what differs. A step's
file system is named by its diff IDs: a layer that came out the same lets everything after it come from the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ketchd.build.ops import CopyOp, MetaOp, MountOp, Node, RunOp, WorkdirOp

VERSION = 1
Inputs = dict[str, Any]


def digest(value: Any) -> str:
    """64 hex digits of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def layers_name(layers: Sequence[str]) -> str:
    """One name for a chain of diff IDs; "" for scratch."""
    return digest(list(layers)) if layers else ""


def key(inputs: Inputs) -> str:
    """The cache key of a step with these inputs. `files` explains, the key has `content` for it."""
    return digest({name: value for name, value in inputs.items() if name != "files"})


def inputs(node: Node, chain: str, layers: Sequence[str], platform: str) -> Inputs | None:
    """What the definition of a step says that its result depends on; None when it has no result of its own.

    chain: the key of everything before, for steps that change the config alone. layers: the parent's diff IDs. What is dear
    (contents) is added by whoever reads it.
    """
    op = node.op
    # Not the line: `LABEL a b` is `LABEL a=b`.
    common: Inputs = {"v": VERSION, "platform": platform}
    match op:
        case MetaOp():
            return {
                **common, "kind": "config", "chain": chain, "comment": op.comment, "config": digest(dict(node.config)),
                "author": node.author,
            }  # fmt: skip
        case WorkdirOp():
            return {**common, "kind": "workdir", "root": layers_name(layers), "path": op.path}
        case RunOp():
            return {
                **common, "kind": "run", "root": layers_name(layers), "command": list(op.argv), "script": op.script,
                "env": list(op.env), "args": list(op.args), "cwd": op.cwd, "user": op.user, "network": op.network,
                "hosts": [host.partition(":")[0] for host in op.extra_hosts],
                "mounts": [_mount(mount) for mount in op.mounts],
            }  # fmt: skip
        case CopyOp():
            return {
                **common, "kind": op.keyword.lower(), "root": "" if _stands_alone(op) else layers_name(layers),
                "sources": list(op.sources), "urls": list(op.urls), "destination": op.destination, "chown": op.chown,
                "chmod": op.chmod, "exclude": list(op.exclude), "link": op.link, "unpack": [op.unpack, op.unpack_urls],
                "heredocs": digest([list(item) for item in op.files]), "foreign": op.from_node is not None or bool(op.from_image),
            }  # fmt: skip
    return None


def _stands_alone(op: CopyOp) -> bool:
    """Whether what lies below changes nothing: `--link`, and no name that `/etc/passwd` or `/etc/group` there would explain."""
    return op.link and all(part.isdigit() for part in op.chown.split(":") if part)


def _mount(mount: MountOp) -> list[Any]:
    """A cache's content, a secret's and its owner do not count; a bind's content is added under `content`."""
    if mount.type == "bind":
        return ["bind", mount.target, mount.writable]
    if mount.type == "tmpfs":
        return ["tmpfs", mount.target, mount.size]
    if mount.type == "cache":
        return ["cache", mount.target, mount.writable]
    return [mount.type, mount.target, mount.id]


def follow(chain: str, step_key: str) -> str:
    """The chain's name after a step."""
    return digest([chain, step_key])


def lineage(names: Sequence[str], file: str, first: str) -> str:
    """Which builds are the same build over time: by the first tag's repository, else by file and base."""
    return digest(["lineage", names[0] if names else "", "" if names else file, "" if names else first])


def twin(file: str, first: str) -> str:
    """Where builds of like files meet, whatever they are called: by file and base."""
    return digest(["twin", file, first])


def changed_files(
    before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """(changed, added, removed) paths, each sorted."""
    changed = sorted(path for path in after if path in before and before[path] != after[path])
    added = sorted(path for path in after if path not in before)
    removed = sorted(path for path in before if path not in after)
    return changed, added, removed
