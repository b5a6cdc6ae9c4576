"""Why a step did not come from the cache: its inputs against those of the last build of the same thing. Pure.

Said once, where the first step missed: what comes after it follows from it. A first build has nothing to explain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ketchd.build.keys import Inputs, changed_files


@dataclass(frozen=True, slots=True)
class Past:
    """One step of the last build: its stage, its line's text, and its inputs (None when they are forgotten)."""

    stage: int
    text: str
    inputs: Inputs | None


def is_same_file(past: Sequence[Past], steps: Sequence[tuple[int, str]]) -> bool:
    """Whether a build of these (stage, line) was made of the same Dockerfile, perhaps for another target with other stages."""
    before, now = _by_stage((step.stage, step.text) for step in past), _by_stage(steps)
    both = before.keys() & now.keys()
    return bool(both) and all(before[stage] == now[stage] for stage in both)


def _by_stage(steps: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for stage, text in steps:
        found.setdefault(stage, []).append(text)
    return found


def find_past(
    past: Sequence[Past], stage: int, text: str, position: int, lines: Sequence[str] = ()
) -> Past | None:
    """The step of the last build that stands for this one: same line, else the same place in the stage.

    position: how many steps of the stage come before. lines: the stage's lines now; a past step that is still one of them stands
    for that one.
    """
    same_stage = [step for step in past if step.stage == stage]
    for step in same_stage:
        if step.text == text:
            return step
    if position < len(same_stage):
        there = same_stage[position]
        if there.text in lines:
            return None
        if there.text.split(None, 1)[0].upper() == text.split(None, 1)[0].upper():
            return there
    return None


def why(past: Past | None, text: str, inputs: Inputs, *, any_past: bool, after_base: bool) -> str:
    """The reason in a few words; "" when nothing like it was built here before.

    any_past: this thing was built here before; after_base: nothing but FROM stands before it.
    """
    if past is None:
        return "this step is new" if any_past else ""
    if past.inputs is None:
        return "its earlier result is no longer here"
    before = past.inputs
    if inputs.get("kind") == before.get("kind") == "config" and past.text != text:
        return f"instruction changed, it was {_shortened(past.text)}"
    for name, said in (
        ("kind", "instruction changed"), ("command", "command changed"), ("script", "command changed"), ("comment", "instruction changed"),
        ("sources", "sources changed"), ("destination", "destination changed"), ("path", "directory changed"),
        ("heredocs", "heredoc changed"), ("urls", "source URL changed"), ("chown", "owner changed"), ("chmod", "mode changed"),
        ("exclude", "excluded patterns changed"), ("platform", "platform changed"),
    ):  # fmt: skip
        if before.get(name) != inputs.get(name):
            return said
    moved = before.get("root") != inputs.get("root") or before.get("chain") != inputs.get("chain")
    if moved and after_base:
        return "base image changed"
    reason = _named(before, inputs, "args", "build argument") or _named(
        before, inputs, "env", "environment variable"
    )
    if reason:
        return reason
    if before.get("content") != inputs.get("content"):
        return _content(before.get("files") or {}, inputs.get("files") or {})
    for name, said in (
        ("cwd", "working directory changed"), ("user", "user changed"), ("network", "network mode changed"),
        ("hosts", "extra hosts changed"), ("mounts", "mounts changed"), ("config", "an earlier step changed the config"),
    ):  # fmt: skip
        if before.get(name) != inputs.get(name):
            return said
    if moved:
        return "an earlier step changed"
    if past.text != text:
        return "command changed"
    return "its earlier result is no longer here"


def _shortened(line: str) -> str:
    return line if len(line) <= 60 else line[:59] + "…"


def _named(before: Mapping[str, Any], after: Mapping[str, Any], field: str, what: str) -> str:
    old = dict(entry.partition("=")[::2] for entry in before.get(field) or ())
    new = dict(entry.partition("=")[::2] for entry in after.get(field) or ())
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            how = "added" if name not in old else "removed" if name not in new else "changed"
            return f"{what} {name} {how}"
    return ""


def _content(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    changed, added, removed = changed_files(before, after)
    for paths, how in ((changed, "changed"), (added, "added"), (removed, "removed")):
        if paths:
            count = len(changed) + len(added) + len(removed)
            more = f" and {count - 1} more" if count > 1 else ""
            return f"{paths[0]}{more} {how}"
    return "file contents changed"
