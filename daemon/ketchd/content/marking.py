"""Which content is live. Pure.

A node is ("image" | "layer" | "blob", key).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Node = tuple[str, str]


def live(roots: Iterable[Node], references: Mapping[Node, Iterable[Node]]) -> set[Node]:
    """Everything that can be reached from `roots`. `references`: what each node needs; cycles do no harm."""
    reached: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(references.get(node, ()))
    return reached
