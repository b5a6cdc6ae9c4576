"""One build's steps: key, cache, the step itself, what it leaves. Called by the solver once for each node."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ketch_wire.faults import EngineFailure, Fault
from ketchd import tracepoint
from ketchd.build import explain, keys, snapshot
from ketchd.build.cache import BuildCache, Cached
from ketchd.build.context import Context
from ketchd.build.downloads import Download, fetched
from ketchd.build.explain import Past
from ketchd.build.keys import Inputs
from ketchd.build.ops import BaseOp, CopyOp, Graph, MetaOp, Node, NoteOp, RunOp, StageOp, WorkdirOp
from ketchd.build.performing import Limits, Performer, Roots
from ketchd.build.progress import Channel
from ketchd.build.runner import RunFailed
from ketchd.build.snapshot import Snapshot
from ketchd.build.solver import Flights, Output
from ketchd.build.stages import Base
from ketchd.layers.store import LayerStore
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest
from ketchd.model.imageconfig import time_ns

tracepoint.declare("build.step-done", "build.step-recorded")


class Holds(Protocol):
    """What a step needs of a lease."""

    def add(self, kind: Any, key: object) -> None:
        """Keep the thing from the garbage collector."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all builds of this ketchd share."""

    layers: LayerStore
    workers: WorkerPool
    cache: BuildCache
    performer: Performer
    flights: Flights[Cached]
    stage: Any


@dataclass(slots=True)
class Job:
    """One build. channels: one for each node, in order. foreign: images that a `from` names. sources: images of --cache-from.

    epoch: SOURCE_DATE_EPOCH in seconds, None for none. uncached: --no-cache. missed: nodes that the cache had nothing for, and
    those that need one of them.
    """

    graph: Graph
    context: Context
    lease: Holds
    channels: Sequence[Channel]
    foreign: Mapping[str, Base]
    sources: Sequence[Base] = ()
    past: Sequence[Past] = ()
    limits: Limits = field(default_factory=Limits)
    epoch: int | None = None
    uncached: bool = False
    remove: bool = True
    failed: int | None = None
    used: list[str] = field(default_factory=list)
    keys: dict[int, str] = field(default_factory=dict)
    missed: set[int] = field(default_factory=set)


class Steps:
    """Carries out the nodes of one job; `execute` is what the solver calls."""

    def __init__(self, shop: Workshop, job: Job) -> None:
        self._shop = shop
        self._job = job

    async def execute(self, node: Node, done: Mapping[int, Snapshot]) -> Snapshot:
        """The state after `node`. Raises Fault with the place; RunFailed as dockerd words it."""
        channel = self._job.channels[node.index]
        if node.number:
            channel.say(f"Step {node.number}/{self._job.graph.steps} : {node.text}", "\n")
        try:
            state = await self._carry_out(node, done, channel)
        except BaseException as error:
            if self._job.failed is None and isinstance(error, Exception):
                self._job.failed = node.index
            if isinstance(error, RunFailed):
                channel.say(f"{node.place}\n")
            elif isinstance(error, Fault):
                raise node.place.located(error) from error
            raise
        if not self._job.missed.isdisjoint(node.needs):
            self._job.missed.add(node.index)
        if not isinstance(node.op, NoteOp):
            channel.say(f" ---> {state.short_id}\n")
        if node.stage_end and state.image_id:
            channel.message({"aux": {"ID": state.image_id}})
        channel.close()
        return state

    async def _carry_out(self, node: Node, done: Mapping[int, Snapshot], channel: Channel) -> Snapshot:
        if isinstance(node.op, NoteOp):
            return Snapshot()
        if isinstance(node.op, BaseOp | StageOp) and node.op.triggers:
            plural = "" if node.op.triggers == 1 else "s"
            channel.say(f"# Executing {node.op.triggers} build trigger{plural}\n")
        if isinstance(node.op, BaseOp):
            base = node.op.base
            image = base.image_id if base else ""
            for layer in base.layers if base else ():
                self._job.lease.add("layer", layer)
            return snapshot.of_base(node.op, keys.digest(["from", image]))
        assert node.parent is not None
        before = done[node.parent]
        if isinstance(node.op, StageOp):
            return before
        if isinstance(node.op, MetaOp):
            return await self._config_step(node, before, channel)
        return await self._layer_step(node, before, done, channel)

    # -- steps that change the config alone

    async def _config_step(self, node: Node, before: Snapshot, channel: Channel) -> Snapshot:
        inputs = keys.inputs(node, before.chain, before.layers, before.platform)
        assert inputs is not None
        key = keys.key(inputs)
        cached = self._find(node, before, key, inputs, "", channel)
        if cached is None:
            self._say_why(node, inputs, channel)
            cached = Cached(key, time.time_ns(), None, "", inputs)
            self._shop.cache.store(cached, parent=before.chain, description=node.text)
        return self._after(before, node, cached)

    # -- steps that make a layer

    async def _layer_step(
        self, node: Node, before: Snapshot, done: Mapping[int, Snapshot], channel: Channel
    ) -> Snapshot:
        job = self._job
        inputs = keys.inputs(node, before.chain, before.layers, before.platform)
        assert inputs is not None
        roots = self._roots(before, done)
        async with AsyncExitStack() as undo:
            downloads = await self._download(node, undo)
            cheap = self._cheap_key(node, inputs, roots)
            label = ""
            if (
                cheap is not None
                and not job.uncached
                and (meant := self._shop.cache.aliased(cheap)) is not None
            ):
                known = self._shop.cache.find(meant)
                if known is not None:
                    return self._hit(node, before, known, channel)
            label = await self._add_contents(node, inputs, roots, downloads)
            key = keys.key(inputs)
            cached = self._find(node, before, key, inputs, label, channel)
            if cached is None:
                if isinstance(node.op, CopyOp) and node.op.sources and "files" not in inputs:
                    inputs["files"] = (await self._measure(node.op, roots, files=True))["files"]
                self._say_why(node, inputs, channel)
                cached = await self._perform(node, before, roots, key, inputs, label, downloads, channel)
            if cheap is not None:
                self._shop.cache.alias(cheap, cached.key)
        return self._after(before, node, cached)

    def _roots(self, before: Snapshot, done: Mapping[int, Snapshot]) -> Roots:
        digests = {index: tuple(map(Digest, state.layers)) for index, state in done.items()}
        images = {name: tuple(map(Digest, base.layers)) for name, base in self._job.foreign.items()}
        return Roots(tuple(map(Digest, before.layers)), digests, images)

    def _cheap_key(self, node: Node, inputs: Inputs, roots: Roots) -> str | None:
        """A COPY --from's key by the layers that it copies from, before anybody looks into them."""
        op = node.op
        if not isinstance(op, CopyOp):
            return None
        source = roots.source(op.from_node, op.from_image)
        return (
            None
            if source is None
            else keys.key({**inputs, "from": keys.layers_name([str(one) for one in source])})
        )

    async def _download(self, node: Node, undo: AsyncExitStack) -> list[Download]:
        if not isinstance(node.op, CopyOp):
            return []
        return [
            await undo.enter_async_context(fetched(url, self._shop.stage, node.op.checksum))
            for url in node.op.urls
        ]

    async def _add_contents(
        self, node: Node, inputs: Inputs, roots: Roots, downloads: Sequence[Download]
    ) -> str:
        """Put the digests of what the step reads into its inputs; what history calls a COPY's sources."""
        op = node.op
        if isinstance(op, RunOp):
            await self._add_binds(op, inputs, roots)
            return ""
        if not isinstance(op, CopyOp):
            return ""
        labels = [f"file:{keys.digest([name, text])}" for name, text in op.files]
        labels += [f"file:{one.sha256}" for one in downloads]
        content: list[Any] = [*labels, *[[one.name, one.mtime] for one in downloads]]
        if op.sources:
            found = await self._measure(op, roots, files=False)
            labels.insert(0, found["label"])
            content.append(found["content"])
            if "files" in found:
                inputs["files"] = found["files"]
        inputs["content"] = keys.digest(content)
        return labels[0] if len(labels) == 1 else "multi:" + keys.digest(labels)

    async def _measure(self, op: CopyOp, roots: Roots, *, files: bool) -> dict[str, Any]:
        source = roots.source(op.from_node, op.from_image)
        if source is None:
            return await self._job.context.measure(
                list(op.sources), list(op.exclude), op.keyword, files=files
            )
        return await self._shop.performer.measure(op, source)

    async def _add_binds(self, op: RunOp, inputs: Inputs, roots: Roots) -> None:
        content: list[str] = []
        for mount in op.mounts:
            if mount.type != "bind":
                continue
            source = roots.source(mount.from_node, mount.from_image)
            if source is None:
                found = await self._job.context.measure([mount.source], [], "RUN", files=False)
                content.append(found["content"])
            else:
                content.append(keys.digest([[str(one) for one in source], mount.source]))
        if content:
            inputs["content"] = keys.digest(content)

    async def _perform(
        self, node: Node, before: Snapshot, roots: Roots, key: str, inputs: Inputs, label: str, downloads: Sequence[Download],
        channel: Channel,
    ) -> Cached:  # fmt: skip
        shop, job = self._shop, self._job
        op = node.op
        running = uuid.uuid4().hex[:12]

        async def perform(output: Output) -> Cached:
            layer: Digest | None
            keep = partial(job.lease.add, "layer")
            if isinstance(op, RunOp):
                layer = await shop.performer.run(op, node.place, roots, job.context, job.limits, output, keep)
            elif isinstance(op, CopyOp):
                layer = await shop.performer.copy(op, roots, job.context, downloads, keep)
            else:
                assert isinstance(op, WorkdirOp)
                layer = await shop.performer.workdir(op, roots, keep)
            tracepoint.reach("build.step-done")
            made = Cached(key, time.time_ns(), None if layer is None else str(layer), label, inputs)
            shop.cache.store(made, parent=before.chain, description=node.text)
            tracepoint.reach("build.step-recorded")
            return made

        if isinstance(op, RunOp):
            channel.say(f" ---> Running in {running}\n")
        shared = f"{key}:{uuid.uuid4().hex}" if job.uncached else key
        cached, _ = await shop.flights.share(shared, perform, channel.output)
        if cached.layer is not None:
            job.lease.add("layer", cached.layer)
            if not shop.layers.has(Digest(cached.layer)):
                raise EngineFailure("the step's layer was pruned before the build could use it: build again")
        if isinstance(op, RunOp) and job.remove:
            channel.say(f" ---> Removed intermediate container {running}\n")
        return cached

    # -- the cache

    def _find(
        self, node: Node, before: Snapshot, key: str, inputs: Inputs, label: str, channel: Channel
    ) -> Cached | None:
        """The kept result, also one out of a --cache-from image."""
        job = self._job
        self._job.keys[node.index] = key
        if job.uncached:
            return None
        cached = self._shop.cache.find(key) or self._from_images(node, before, key, inputs, label)
        if cached is not None:
            self._note_hit(node, cached, channel)
        return cached

    def _hit(self, node: Node, before: Snapshot, cached: Cached, channel: Channel) -> Snapshot:
        self._note_hit(node, cached, channel)
        return self._after(before, node, cached)

    def _note_hit(self, node: Node, cached: Cached, channel: Channel) -> None:
        channel.say(" ---> Using cache\n")
        self._job.keys[node.index] = cached.key
        self._job.used.append(cached.key)
        if cached.layer is not None:
            self._job.lease.add("layer", cached.layer)

    def _from_images(
        self, node: Node, before: Snapshot, key: str, inputs: Inputs, label: str
    ) -> Cached | None:
        """An image whose history and layers begin as this build's did, and go on with just this step."""
        wanted = snapshot.created_by(node, label)
        said = [str(entry.get("created_by", "")) for entry in before.history]
        for image in self._job.sources:
            history = image.history
            if len(history) <= len(said) or image.layers[: len(before.layers)] != before.layers:
                continue
            if [str(entry.get("created_by", "")) for entry in history[: len(said)]] != said:
                continue
            entry = history[len(said)]
            if entry.get("created_by") != wanted:
                continue
            has_layer = not entry.get("empty_layer")
            if has_layer and len(image.layers) <= len(before.layers):
                continue
            layer = image.layers[len(before.layers)] if has_layer else None
            created = time_ns(entry.get("created")) or 0
            if layer is not None and not self._shop.layers.has(Digest(layer)):
                continue
            cached = Cached(key, created, layer, label, inputs)
            self._shop.cache.store(cached, parent=before.chain, description=node.text)
            return cached
        return None

    def _say_why(self, node: Node, inputs: Inputs, channel: Channel) -> None:
        """Why the cache has nothing for the step: what differs from the last build of the same thing, when that is worth a line."""
        job = self._job
        follows = not job.missed.isdisjoint(node.needs)
        job.missed.add(node.index)
        if job.uncached or follows:
            return
        earlier = [one for one in job.graph.nodes if one.stage == node.stage and one.index < node.index]
        lines = [one.text for one in job.graph.nodes if one.stage == node.stage]
        past = explain.find_past(job.past, node.stage, node.text, len(earlier), lines)
        # What a layer is made on is the base's files until a step changes files; a config is made on every step before it.
        harmless = BaseOp | StageOp if isinstance(node.op, MetaOp) else BaseOp | StageOp | MetaOp
        first = all(isinstance(one.op, harmless) for one in earlier)
        reason = explain.why(past, node.text, inputs, any_past=bool(job.past), after_base=first)
        if reason:
            channel.say(f" ---> Cache miss: {reason}\n")

    def _after(self, before: Snapshot, node: Node, cached: Cached) -> Snapshot:
        epoch = self._job.epoch
        return snapshot.after(
            before, node, chain=keys.follow(before.chain, cached.key), layer=cached.layer,
            created_ns=cached.created_ns if epoch is None else epoch * 10**9, content=cached.content,
        )  # fmt: skip
