"""Which steps may begin. Pure."""

from __future__ import annotations

from collections.abc import Collection

from ketchd.build.ops import Graph


def needed(graph: Graph) -> set[int]:
    """The nodes that the target's state depends on, and those that only speak."""
    found: set[int] = set()
    waiting = [graph.target]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(graph.nodes[index].needs)
    return found | {node.index for node in graph.nodes if node.stage < 0}


def ready(graph: Graph, done: Collection[int], begun: Collection[int], wanted: Collection[int]) -> list[int]:
    """The wanted nodes that have not begun and whose needs are all done, in Dockerfile order."""
    return [
        node.index
        for node in graph.nodes
        if node.index in wanted and node.index not in begun and all(need in done for need in node.needs)
    ]
