"""The build journey: a context and a Dockerfile become an image with names.

context → queue → lexer → instructions → stages → base images → plan, a graph → solver → recorded, with its names. Failed, cancelled or
killed: no image and no name of it; the layers of steps that were done stay in the cache.
Source: Engine API, ImageBuild; the output is dockerd's classic builder's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure, Fault, InvalidInput, NotFound, Unsupported
from ketchd import tracepoint
from ketchd.build import explain, instructions, keys, lexer, plan, snapshot, stages
from ketchd.build.cache import Cached
from ketchd.build.context import Context, Memo, receive, tar_of
from ketchd.build.downloads import fetched
from ketchd.build.explain import Past
from ketchd.build.ops import Graph
from ketchd.build.performing import Limits, Performer
from ketchd.build.progress import Progress
from ketchd.build.queue import BuildQueue
from ketchd.build.runner import StepRunner as RunsSteps
from ketchd.build.schedule import needed
from ketchd.build.snapshot import Snapshot
from ketchd.build.solver import Flights, solve
from ketchd.build.stages import Base, Dockerfile, Options, Wanted
from ketchd.build.steps import Job, Steps, Workshop
from ketchd.content.leases import Lease
from ketchd.engine.images import announce
from ketchd.engine.platforms import image_for
from ketchd.engine.pull import pull
from ketchd.engine.rooms import Rooms
from ketchd.engine.steprunner import StepRunner
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.tokens import Credentials

tracepoint.declare("build.registered", "build.tagged")

Send = Callable[..., Awaitable[None]]
Bases = dict[tuple[str, str], Base]
_HUB_KEY = "https://index.docker.io/v1/"
_GIT_PREFIXES = ("git://", "git@", "ssh://", "github.com/")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a client asks for. tags: with a tag each. dockerfile: its path in the context, "" for the default.

    registries: X-Registry-Config, host -> credentials. epoch: SOURCE_DATE_EPOCH in seconds.
    """

    tags: tuple[Reference, ...] = ()
    dockerfile: str = ""
    remote: str = ""
    options: Options = field(default_factory=Options)
    limits: Limits = field(default_factory=Limits)
    cache_from: tuple[str, ...] = ()
    registries: Mapping[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    quiet: bool = False


class Builder:
    """Builds images, some at a time. One for the life of ketchd."""

    def __init__(self, rooms: Rooms, *, at_once: int = 0, runner: RunsSteps | None = None) -> None:
        self._rooms = rooms
        self._stage = rooms.data_root / "stage"
        self.cache = rooms.cache
        for path in self.cache.unowned():
            rooms.trash.take(path)
        performer = Performer(
            rooms.layers, rooms.workers, self.cache, runner or StepRunner(rooms), self._stage, rooms.trash
        )
        self._shop = Workshop(
            rooms.layers, rooms.workers, self.cache, performer, Flights[Cached](), self._stage
        )
        self._memo = Memo()
        self.queue = BuildQueue(at_once or max(2, os.cpu_count() or 1))

    async def build(self, request: BuildRequest, body: AsyncIterable[bytes], send: Send) -> Digest:
        """The image's ID. send: takes messages of Docker's progress stream.

        Raises InvalidInput (the Dockerfile, a name), RunFailed, Fault. A client that is gone: cancelled or ConnectionError.
        """
        quiet = _Quiet(send) if request.quiet else None
        try:
            async with self._context(request, body) as context:
                text, name = await context.dockerfile(request.dockerfile)
                source = lexer.read(text, name)
                dockerfile = stages.split(source, instructions.parse(source), request.options)
                stages.target_index(dockerfile, request.options.target)
                tell = quiet.keep if quiet else send

                async def waiting(ahead: int) -> None:
                    await tell({"stream": f"Build queued: {ahead} ahead of it\n"})

                async with self.queue.turn(waiting), self._rooms.leases.hold() as lease:
                    image_id = await self._build(request, context, dockerfile, lease, tell)
        except Fault:
            if quiet:
                await quiet.give()
            raise
        if quiet:
            await send({"stream": f"{image_id}\n"})
        return image_id

    @asynccontextmanager
    async def _context(self, request: BuildRequest, body: AsyncIterable[bytes]) -> AsyncIterator[Context]:
        async with AsyncExitStack() as undo:
            chunks = body
            if request.remote:
                async for _ in body:
                    pass
                chunks = await self._remote(request, undo)
            yield await undo.enter_async_context(
                receive(self._stage, chunks, self._rooms.workers, self._memo)
            )

    async def _remote(self, request: BuildRequest, undo: AsyncExitStack) -> AsyncIterable[bytes]:
        url = request.remote
        if url.startswith(_GIT_PREFIXES) or url.partition("#")[0].partition("?")[0].endswith(".git"):
            raise Unsupported(f"a git repository as build context is not supported: {url}")
        if not url.lower().startswith(("http://", "https://")):
            raise InvalidInput(f"unable to prepare context: remote {url!r} is no URL")
        got = await undo.enter_async_context(fetched(url, self._stage))
        if got.media_type.startswith("text/"):
            name = request.dockerfile or "Dockerfile"
            return _pieces_of(tar_of(name, await asyncio.to_thread(got.path.read_bytes)))
        return _read_file(got.path)

    async def _build(
        self, request: BuildRequest, context: Context, dockerfile: Dockerfile, lease: Lease, send: Send
    ) -> Digest:
        bases = await self._bases(request, dockerfile, lease, send)
        graph = plan.make_graph(dockerfile, request.options, bases)
        lineage = keys.lineage(
            [f"{tag.repository}" for tag in request.tags],
            dockerfile.source.file,
            dockerfile.stages[0].opening.text,
        )
        twin = keys.twin(dockerfile.source.file, dockerfile.stages[0].opening.text)
        lines = [(node.stage, node.text) for node in graph.nodes if node.stage >= 0]
        progress = Progress(send)
        job = Job(
            graph=graph,
            context=context,
            lease=lease,
            channels=[progress.channel() for _ in graph.nodes],
            foreign={name: base for (name, platform), base in bases.items() if not platform},
            sources=self._cache_sources(request),
            past=() if request.no_cache else self._past(lineage, twin, lines),
            limits=request.limits,
            epoch=request.epoch,
            uncached=request.no_cache,
            remove=request.remove,
        )
        for warning in graph.warnings:
            await send({"stream": f"[Warning] {warning}\n"})
        skipped = {node.index for node in graph.nodes} - needed(graph)
        for index in skipped:
            job.channels[index].close()
        states = await self._solve(graph, Steps(self._shop, job), job, progress)
        state = states[graph.target]
        if job.used:
            self.cache.touch(job.used)
        steps = [
            (node.stage, node.text, job.keys.get(node.index, "")) for node in graph.nodes if node.stage >= 0
        ]
        for name in (lineage, twin):
            self.cache.remember_build(name, steps)
        if graph.unconsumed:
            names = " ".join(graph.unconsumed)
            await send({"stream": f"[Warning] One or more build-args [{names}] were not consumed\n"})
        if request.epoch is not None and state.image_id:
            base = next((base.layers for base in bases.values() if base.image_id == state.base_id), ())
            state = await self._clamped(state, len(base), request.epoch, lease)
            await send({"aux": {"ID": state.image_id}})
        return await self._finish(request, state, lease, send)

    async def _clamped(self, state: Snapshot, count: int, epoch: int, lease: Lease) -> Snapshot:
        """The image with no file of its own layers, those after the first `count`, younger than the epoch.

        Steps and their keys know nothing of it, so that the cache serves builds of any epoch.
        """
        made = list(state.layers[:count])
        for layer in state.layers[count:]:
            key = keys.digest(["clamped", layer, epoch])
            found = self.cache.aliased(key)
            if found is not None:
                lease.add("layer", found)
            if found is None or not self._rooms.layers.has(Digest(found)):
                keep = partial(lease.add, "layer")
                found = str(await self._rooms.layers.clamped(Digest(layer), epoch, keep=keep))
                self.cache.alias(key, found)
            made.append(found)
        return snapshot.with_layers(state, made) if tuple(made) != state.layers else state

    def _past(self, lineage: str, twin: str, lines: list[tuple[int, str]]) -> list[Past]:
        """The last build of the same name, else the last of the same Dockerfile; none when there is neither."""
        past = self.cache.last_build(lineage)
        if past:
            return past
        past = self.cache.last_build(twin)
        return past if explain.is_same_file(past, lines) else []

    async def _solve(self, graph: Graph, steps: Steps, job: Job, progress: Progress) -> dict[int, Snapshot]:
        """The graph carried out while its output is sent: a client that is gone ends it."""
        pumping = asyncio.create_task(progress.pump())
        solving = asyncio.create_task(solve(graph, steps.execute))
        try:
            await asyncio.wait({pumping, solving}, return_when=asyncio.FIRST_COMPLETED)
            if solving.done() and solving.exception() is None:
                return solving.result()
            if pumping.done():
                pumping.result()
            return await solving
        finally:
            for task in (solving, pumping):
                task.cancel()
            await asyncio.wait({pumping, solving})
            if not (pumping.done() and not pumping.cancelled() and pumping.exception()):
                await progress.drain(job.failed)

    async def _finish(self, request: BuildRequest, state: Snapshot, lease: Lease, send: Send) -> Digest:
        """Register and name the image; the stream's last lines."""
        rooms = self._rooms
        if not state.image_id:
            raise InvalidInput("No image was generated. Is your Dockerfile empty?")
        image_id = Digest(state.image_id)
        lease.add("image", image_id)
        lease.add("blob", image_id)
        is_known = rooms.images.has(image_id)
        ready = None if is_known else await rooms.images.prepare(snapshot.image_config(state))
        with rooms.catalogue.transaction(durable=True):
            if ready is not None:
                base = Digest(state.base_id) if state.base_id else None
                rooms.images.record(
                    ready, parent=base if base is not None and rooms.images.has(base) else None
                )
            tracepoint.reach("build.registered")
            for tag in request.tags:
                if rooms.images.find_name(tag) != image_id:
                    rooms.images.tag(tag, image_id)
        tracepoint.reach("build.tagged")
        for tag in request.tags:
            announce(rooms, image_id, "tag", tag.familiar())
        await send({"stream": f"Successfully built {image_id.short}\n"})
        for tag in request.tags:
            await send({"stream": f"Successfully tagged {tag.familiar()}\n"})
        return image_id

    # -- images that a build stands on

    async def _bases(self, request: BuildRequest, dockerfile: Dockerfile, lease: Lease, send: Send) -> Bases:
        """Every image that FROM and `from` name, pulled where needed, several at once."""
        found: Bases = {}
        target = stages.target_index(dockerfile, request.options.target)
        while wanted := stages.survey(dockerfile, target, found)[1]:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        (one, group.create_task(self._base(request, one, lease, send))) for one in wanted
                    ]
            except BaseExceptionGroup as errors:
                raise _first(errors) from None
            for one, task in tasks:
                found[one.name, one.platform] = task.result()
        return found

    async def _base(self, request: BuildRequest, wanted: Wanted, lease: Lease, send: Send) -> Base:
        """The image, pulled where needed; its layers are kept from now on, even when somebody removes it."""
        images = self._rooms.images
        platform_text = wanted.platform or request.options.platform
        host = Platform.host(os.uname().machine)
        try:
            platform = Platform.parse(platform_text, host) if platform_text else None
            reference = Reference.parse(wanted.name)
        except InvalidInput as error:
            raise wanted.place.fault(f'failed to parse stage name "{wanted.name}": {error.message}') from None
        image_id = self._local(wanted.name)
        is_name = image_id is None or images.find_name(reference) == image_id
        if image_id is not None and platform is not None:
            image_id = self._for_platform(wanted.name, platform)
        if image_id is None or (request.pull and is_name):
            credentials = Credentials.read(_login(request.registries, reference))
            try:
                image_id = await pull(self._rooms, reference, credentials, send, platform=platform)
            except Fault as fault:
                before = f"invalid from flag value {wanted.name}: " if wanted.by_flag else ""
                raise wanted.place.located(fault, before) from fault
        record = images.get(image_id)
        config = record.config
        lease.add("image", image_id)
        for layer in record.layers:
            lease.add("layer", layer)
        return Base(
            image_id=str(image_id),
            layers=tuple(str(layer) for layer in record.layers),
            config=config.raw.get("config") or {},
            history=tuple(config.raw.get("history") or ()),
            architecture=config.architecture,
            os=config.os,
            variant=config.variant,
            author=config.author,
        )

    def _local(self, name: str) -> Digest | None:
        try:
            return self._rooms.images.resolve(name)
        except NotFound:
            return None

    def _for_platform(self, name: str, platform: Platform) -> Digest | None:
        try:
            return image_for(self._rooms, name, platform).id
        except NotFound:
            return None

    def _cache_sources(self, request: BuildRequest) -> list[Base]:
        """The --cache-from images that are here; one that is not is no fault, as in dockerd."""
        found = []
        for name in request.cache_from:
            try:
                record = self._rooms.images.get(self._rooms.images.resolve(name))
                history = tuple(record.config.raw.get("history") or ())
            except (NotFound, InvalidInput):
                continue
            found.append(Base(str(record.id), tuple(str(layer) for layer in record.layers), history=history))
        return found


class _Quiet:
    """`q=1`: what would have been said, kept for the case of a failure."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kept: list[dict[str, Any]] = []

    async def keep(self, *messages: dict[str, Any]) -> None:
        self._kept += messages
        del self._kept[:-4096]

    async def give(self) -> None:
        kept, self._kept = self._kept, []
        if kept:
            await self._send(*kept)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return EngineFailure("cancelled")


def _login(registries: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
    """The credentials for the image's registry out of X-Registry-Config."""
    wanted = (
        (_HUB_KEY, "docker.io", "index.docker.io") if reference.domain == "docker.io" else (reference.domain,)
    )
    for key, value in registries.items():
        bare = key.partition("://")[2] or key
        if (key in wanted or bare.rstrip("/") in wanted or bare.partition("/")[0] in wanted) and isinstance(
            value, dict
        ):
            return value
    return {}


async def _pieces_of(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := await asyncio.to_thread(file.read, 1 << 20):
            yield piece
