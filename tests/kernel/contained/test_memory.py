"""What a container costs while it does nothing: the pages that its shim has for itself, and what a launcher holds open."""

from __future__ import annotations

import os
from pathlib import Path

from ketch_testing.contained import Contained, until

# CPython 3.11 needs 1.25 MiB of its own for a shim; 1.9 before the launcher rehearsed and closed its gaps.
PRIVATE_KIB = 1600


def private_kib(pid: int) -> int:
    """Source: proc(5), smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


async def test_a_shim_shares_most_of_its_memory_with_its_siblings(box: Contained) -> None:
    links = [await box.start(box.plan("sleep", "60")) for _ in range(3)]

    shims = [int(Path(f"/proc/{link.pid}/stat").read_text().rpartition(")")[2].split()[1]) for link in links]
    used = [private_kib(shim) for shim in shims]

    for link in links:
        await link.signal(9)
        await box.end(link)
    assert max(used) < PRIVATE_KIB


async def test_the_rehearsal_leaves_the_launcher_nothing(box: Contained) -> None:
    """Its standard streams, the control socket, the layers' namespace: whatever else was open would be open in every shim."""
    await box.run("true")  # it answers: the rehearsal is over

    pid = box.launcher.pid

    open_files = [os.readlink(fd).partition(":")[0] for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert len(open_files) == 5 and {"mnt", "socket"} < set(open_files)
    await until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text() == "")
    assert "rehearsal" not in Path(f"/proc/{pid}/mounts").read_text()
