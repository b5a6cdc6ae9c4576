"""What the builder needs of the engine: somebody who runs a contained process over a step's layers. And what a failed one is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import MountPlan, ProcessPlan
from ketchd.model.digest import Digest


class RunFailed(EngineFailure):
    """A RUN ended with another code than 0. code: it, as `errorDetail.code` has it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StepRunner(Protocol):
    """Runs one process and waits for it."""

    async def run(
        self,
        *,
        root_layers: Sequence[Digest],
        upper: Path,
        work: Path,
        process: ProcessPlan,
        network: str,
        extra_hosts: Sequence[str],
        output: Callable[[int, bytes], Awaitable[None]],
        mounts: Sequence[MountPlan] = (),
        resources: Mapping[str, Any] | None = None,
        shm_size: int = 0,
    ) -> int:
        """The exit code. output(1 or 2, bytes) is awaited with what the process writes, so that it waits for a slow reader.

        resources: HostConfig's names (Memory, CpuShares …). shm_size: bytes, 0 for the default.
        Raises Fault. Cancelled: the process is killed, its network released.
        """
        ...
