"""Carrying out a step that the cache does not have: a process, a copy or a directory becomes a published layer, or nothing does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ketch_wire.faults import InvalidInput
from ketch_wire.launch import ProcessPlan
from ketchd import tracepoint
from ketchd.build.cache import BuildCache
from ketchd.build.context import Context
from ketchd.build.downloads import Download
from ketchd.build.lexer import Place
from ketchd.build.ops import CopyOp, MountOp, RunOp, WorkdirOp
from ketchd.build.runmounts import RunMounts, strip_mount_points
from ketchd.build.runner import RunFailed, StepRunner
from ketchd.build.solver import Output
from ketchd.layers.endings import in_thread
from ketchd.layers.placing import remove_staged
from ketchd.layers.store import Keep, LayerStore, wire_mounts
from ketchd.layers.trash import Trash
from ketchd.layers.workers import WorkerPool
from ketchd.model.digest import Digest

tracepoint.declare("build.ran")


@dataclass(frozen=True, slots=True)
class Limits:
    """What RUN's processes may use. resources: HostConfig's names; ulimits: name -> (soft, hard); shm_size: bytes."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    ulimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shm_size: int = 0


@dataclass(frozen=True, slots=True)
class Roots:
    """The layers that a step stands on, base first, and those that its `from`s mean, by node or image name."""

    layers: tuple[Digest, ...]
    of_nodes: Mapping[int, tuple[Digest, ...]] = field(default_factory=dict)
    of_images: Mapping[str, tuple[Digest, ...]] = field(default_factory=dict)

    def source(self, node: int | None, image: str) -> tuple[Digest, ...] | None:
        """The layers to copy from; None is the context."""
        if node is not None:
            return self.of_nodes[node]
        return self.of_images[image] if image else None


class Performer:
    """Makes layers. Every method returns the published layer, None when nothing changed; failed or cancelled, nothing stays."""

    def __init__(
        self, layers: LayerStore, workers: WorkerPool, cache: BuildCache, runner: StepRunner, stage: Path,
        trash: Trash,
    ) -> None:  # fmt: skip
        self._layers = layers
        self._workers = workers
        self._cache = cache
        self._runner = runner
        self._stage = stage
        self._trash = trash

    async def run(
        self,
        op: RunOp,
        place: Place,
        roots: Roots,
        context: Context,
        limits: Limits,
        output: Output,
        keep: Keep,
    ) -> Digest | None:
        """RUN. keep: see LayerStore.publish. Raises RunFailed with the exit code, Fault."""
        work = self._stage / uuid.uuid4().hex
        mounts = RunMounts(self._cache, self._stage, partial(self._extract, roots, context, place))
        async with AsyncExitStack() as undo:
            undo.callback(self._trash.take, work)
            for part in ("upper", "work"):
                (work / part).mkdir(parents=True, mode=0o755)
            plans = await undo.enter_async_context(mounts.made(op.mounts, op.script, op.argv[0], place))
            process = ProcessPlan(
                argv=op.argv, env=_environment(op), cwd=op.cwd, user=op.user, rlimits=dict(limits.ulimits)
            )
            code = await self._runner.run(
                root_layers=roots.layers, upper=work / "upper", work=work / "work", process=process, network=op.network,
                extra_hosts=op.extra_hosts, output=output, mounts=plans, resources=limits.resources, shm_size=limits.shm_size,
            )  # fmt: skip
            if code != 0:
                raise RunFailed(f"The command '{' '.join(op.argv)}' returned a non-zero code: {code}", code)
            tracepoint.reach("build.ran")
            if plans:
                targets = [plan.target for plan in plans]
                await in_thread(strip_mount_points, str(work / "upper"), targets)
            return await self._layers.from_upper(work / "upper", roots.layers, keep=keep)

    async def copy(
        self,
        op: CopyOp,
        roots: Roots,
        context: Context,
        downloads: Sequence[Download],
        keep: Keep,
    ) -> Digest:
        """COPY or ADD. Directories that it makes are of 1970: they are the same whenever it runs. Raises NotFound, InvalidInput."""
        source = roots.source(op.from_node, op.from_image)
        arguments = {
            "root": await self._root(roots.layers),
            "detached": op.link,
            "source": context.source()
            if source is None
            else {"layers": wire_mounts(self._layers.mounts(source))},
            "sources": list(op.sources),
            "exclude": list(op.exclude),
            "keyword": op.keyword,
            "destination": op.destination,
            "chown": op.chown,
            "chmod": op.chmod,
            "owned": source is not None,
            "unpack": op.unpack,
            "files": [list(item) for item in op.files],
            "downloads": [
                {
                    "path": str(one.path),
                    "name": one.name,
                    "mtime": one.mtime,
                    "unpack": op.unpack_urls,
                    "url": one.url,
                }
                for one in downloads
            ],
        }
        layer = await self._make("ketchd.build.copyjob:copy", arguments, keep)
        assert layer is not None
        return layer

    async def measure(self, op: CopyOp, source: Sequence[Digest]) -> dict[str, Any]:
        """What a COPY --from selects, see contenthash.measure. Raises NotFound."""
        arguments = {
            "source": {"layers": wire_mounts(self._layers.mounts(source))},
            "sources": list(op.sources),
            "exclude": list(op.exclude),
            "keyword": op.keyword,
            "owners": not op.chown,
        }
        return await self._workers.run("ketchd.build.contenthash:measure", arguments)

    async def workdir(self, op: WorkdirOp, roots: Roots, keep: Keep) -> Digest | None:
        """WORKDIR: None when the directory is there. Raises InvalidInput."""
        mounts = await self._root(roots.layers)
        return await self._make("ketchd.build.copyjob:workdir", {"root": mounts, "path": op.path}, keep)

    async def _root(self, layers: Sequence[Digest]) -> list[dict[str, str]]:
        """The mounts of a step's root; where a tar omits directories, with the layer that gives them their metadata."""
        mounts = wire_mounts(self._layers.mounts(layers))
        if any(self._layers.record(layer).implied for layer in layers):
            init = await self._layers.compose(layers)
            mounts.insert(0, {"kind": "directory", "path": str(init)})
        return mounts

    async def _make(self, job: str, arguments: dict[str, Any], keep: Keep) -> Digest | None:
        place = self._layers.new_place()
        try:
            facts = await self._workers.run(job, {**arguments, "place": place})
        except BaseException:
            await in_thread(remove_staged, place["path"])
            raise
        if facts.get("empty"):
            return None
        return (await self._layers.adopt(facts, keep=keep)).diff_id

    async def _extract(
        self, roots: Roots, context: Context, place: Place, mount: MountOp, directory: str
    ) -> None:
        """A bind's source as files: below root/directory when it is a directory, else root/file/NAME."""
        source = roots.source(mount.from_node, mount.from_image)
        arguments = {
            "place": {"path": directory, "kind": "directory"},
            "source": context.source()
            if source is None
            else {"layers": wire_mounts(self._layers.mounts(source))},
            "path": mount.source,
            "owned": source is not None,
        }
        try:
            await self._workers.run("ketchd.build.copyjob:extract", arguments)
        except InvalidInput as error:
            raise InvalidInput(place.locate(error.message)) from None


def _environment(op: RunOp) -> tuple[str, ...]:
    known = {entry.partition("=")[0] for entry in op.env}
    added = [entry for entry in (*op.args, *op.proxies) if entry.partition("=")[0] not in known]
    return (*op.env, *added)
