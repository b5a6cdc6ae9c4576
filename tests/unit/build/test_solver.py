"""The solver, shared steps, the queue and the order of output, with steps that only count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from ketchd.build import instructions, lexer, plan, stages
from ketchd.build.ops import Graph, Node
from ketchd.build.progress import Progress
from ketchd.build.queue import BuildQueue
from ketchd.build.solver import Flights, Output, solve
from ketchd.build.stages import Base, Options

BASE = Base("sha256:" + "a" * 64, ())
PARALLEL = (
    "FROM busybox AS a\nRUN a\nFROM busybox AS b\nRUN b\nFROM busybox AS unused\nRUN unused\n"
    "FROM busybox\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
)


def graph(text: str) -> Graph:
    """The plan of `text`."""
    source = lexer.read(text)
    return plan.make_graph(
        stages.split(source, instructions.parse(source), Options()), Options(), {("busybox", ""): BASE}
    )


class Counting:
    """Steps that note when they begin and end."""

    def __init__(self, hold: Mapping[str, asyncio.Event] | None = None) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self._hold = hold or {}

    async def execute(self, node: Node, done: Mapping[int, str]) -> str:
        assert all(need in done for need in node.needs)
        self.began.append(node.text)
        try:
            if node.text in self._hold:
                await self._hold[node.text].wait()
        except asyncio.CancelledError:
            self.cancelled.append(node.text)
            raise
        if node.text == "RUN fail":
            raise ValueError("as asked")
        self.ended.append(node.text)
        return node.text


async def test_each_needed_step_once() -> None:
    """What the target needs, nothing else, nothing twice."""
    steps = Counting()
    done = await solve(graph(PARALLEL), steps.execute)

    assert sorted(steps.began) == sorted(steps.ended) and "RUN unused" not in steps.began
    assert sorted(done.values()) == sorted(steps.ended)


async def test_stages_run_side_by_side() -> None:
    """Two stages whose steps wait for one another would never end one after the other."""
    both = [asyncio.Event(), asyncio.Event()]

    async def execute(node: Node, done: Mapping[int, str]) -> str:
        if node.text in ("RUN a", "RUN b"):
            mine = 0 if node.text == "RUN a" else 1
            both[mine].set()
            await both[1 - mine].wait()
        return node.text

    async with asyncio.timeout(10):
        await solve(graph(PARALLEL), execute)


async def test_a_failure_cancels_the_others() -> None:
    """The fault itself is raised, what runs beside it is cancelled and waited for, what needs it never begins."""
    never = asyncio.Event()
    steps = Counting({"RUN other": never})
    with pytest.raises(ValueError, match="as asked"):
        await solve(
            graph(
                "FROM busybox AS a\nRUN other\nFROM busybox AS b\nRUN fail\nFROM busybox\nCOPY --from=a / /\nCOPY --from=b / /\n"
            ),
            steps.execute,
        )

    assert steps.cancelled == ["RUN other"]
    assert not [text for text in steps.began if text.startswith("COPY")]


async def no_output(stream: int, content: bytes) -> None:
    """Nobody listens."""


def sink(into: list[bytes]) -> Output:
    """An output that keeps what it gets."""

    async def output(stream: int, content: bytes) -> None:
        into.append(content)

    return output


async def test_equal_steps_are_shared() -> None:
    """One carries it out, both get the result and all of the output."""
    flights: Flights[str] = Flights()
    go_on, begun, calls = asyncio.Event(), asyncio.Event(), []

    async def perform(output: Output) -> str:
        calls.append(1)
        await output(1, b"early")
        begun.set()
        await go_on.wait()
        await output(1, b"late")
        return "layer"

    heard: list[list[bytes]] = [[], []]
    first = asyncio.create_task(flights.share("k", perform, sink(heard[0])))
    await begun.wait()
    second = asyncio.create_task(flights.share("k", perform, sink(heard[1])))
    await wait_for(lambda: len(heard[1]) == 1)
    go_on.set()

    assert [await first, await second] == [("layer", False), ("layer", True)]
    assert heard == [[b"early", b"late"], [b"early", b"late"]]
    assert len(calls) == 1 and len(flights) == 0


async def test_a_shared_step_outlives_the_build_that_began_it() -> None:
    """Cancelled by its first build, whose things it needs, it goes on for the second; left by both, it is cancelled."""
    flights: Flights[str] = Flights()
    go_on, begun, cancelled = asyncio.Event(), asyncio.Event(), []

    async def perform(output: Output) -> str:
        begun.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return "layer"

    first = asyncio.create_task(flights.share("k", perform, no_output))
    await begun.wait()
    second = asyncio.create_task(flights.share("k", perform, no_output))
    await asyncio.sleep(0)
    for _ in range(3):
        first.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert cancelled == [] and not first.done()
    go_on.set()
    assert await second == ("layer", True)
    with pytest.raises(asyncio.CancelledError):
        await first

    go_on.clear()
    begun.clear()
    both = [asyncio.create_task(flights.share("k", perform, no_output)) for _ in range(2)]
    await begun.wait()
    for one in both:
        one.cancel()
    assert [type(one) for one in await asyncio.gather(*both, return_exceptions=True)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]
    assert cancelled == [1] and len(flights) == 0
    cancelled.clear()

    go_on.clear()
    begun.clear()
    last = asyncio.create_task(flights.share("k", perform, no_output))
    await begun.wait()
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert cancelled == [1] and len(flights) == 0


async def test_a_failing_shared_step_fails_for_all() -> None:
    """And the next one tries again."""
    flights: Flights[str] = Flights()

    async def perform(output: Output) -> str:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(
        *(flights.share("k", perform, no_output) for _ in range(2)), return_exceptions=True
    )

    assert [str(result) for result in results] == ["no", "no"] and len(flights) == 0


async def wait_for(condition: Callable[[], bool]) -> None:
    """Until the loop has come so far."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0)


async def test_the_queue_is_fair_and_says_so() -> None:
    """In the order of arrival, at most `limit` at once; one that leaves makes no gap."""
    queue = BuildQueue(1)
    told: list[tuple[str, int]] = []
    order: list[str] = []
    gates = {name: asyncio.Event() for name in "abc"}

    def told_of(name: str) -> Callable[[int], Awaitable[None]]:
        async def tell(ahead: int) -> None:
            told.append((name, ahead))

        return tell

    async def build(name: str) -> None:
        async with queue.turn(told_of(name)):
            order.append(name)
            await gates[name].wait()

    tasks = {name: asyncio.create_task(build(name)) for name in "abc"}
    await wait_for(lambda: len(told) == 2)
    assert order == ["a"] and told == [("b", 1), ("c", 2)]
    tasks["b"].cancel()
    gates["a"].set()
    await wait_for(lambda: len(order) == 2)
    assert order == ["a", "c"]
    gates["c"].set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert queue.ahead == 0
    async with asyncio.timeout(10), queue.turn(told_of("d")):
        pass


def spoken(sent: list[dict[str, Any]]) -> str:
    """What a client prints."""
    return "".join(message["stream"] for message in sent)


async def test_output_stands_in_order() -> None:
    """Whoever speaks first: the first channel goes out, the others wait until it is closed."""
    sent: list[dict[str, Any]] = []

    async def send(*messages: dict[str, Any]) -> None:
        sent.extend(messages)

    progress = Progress(send)
    one, two, three = progress.channel(), progress.channel(), progress.channel()
    three.say("3")
    two.say("2")
    one.say("1")
    await progress.drain()
    assert spoken(sent) == "1"
    two.close()
    one.close()
    await progress.drain()
    assert spoken(sent) == "123"


async def test_after_a_failure_only_what_came_before_is_said() -> None:
    """Up to the failed step, unfinished ones before it included."""
    sent: list[dict[str, Any]] = []

    async def send(*messages: dict[str, Any]) -> None:
        sent.extend(messages)

    progress = Progress(send)
    channels = [progress.channel() for _ in range(3)]
    for number, channel in enumerate(channels):
        channel.say(str(number))
    await progress.drain(1)

    assert spoken(sent) == "01"


async def test_a_step_that_says_too_much_waits_for_its_turn() -> None:
    """Memory stays bounded although nobody reads."""

    async def send(*messages: dict[str, Any]) -> None:
        return None

    progress = Progress(send)
    first, second = progress.channel(), progress.channel()

    async def speak() -> None:
        for _ in range(100):
            await second.output(1, b"x" * 100_000)

    speaking = asyncio.create_task(speak())
    for _ in range(300):
        await asyncio.sleep(0)
    assert not speaking.done()
    first.close()
    pumping = asyncio.create_task(progress.pump())
    async with asyncio.timeout(10):
        await speaking
    pumping.cancel()


async def test_stderr_is_red_and_characters_are_whole() -> None:
    """A character cut by a read is put together again."""
    sent: list[dict[str, Any]] = []

    async def send(*messages: dict[str, Any]) -> None:
        sent.extend(messages)

    channel = Progress(send).channel()
    progress = Progress(send)
    channel = progress.channel()
    await channel.output(1, "ä".encode()[:1])
    await channel.output(1, "ä".encode()[1:])
    await channel.output(2, b"bad")
    await progress.drain()

    assert spoken(sent) == "ä\x1b[91mbad\x1b[0m"
