"""The lock on a default bridge: one holder, none left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ketch_wire.faults import EngineFailure
from ketchd.network.instance import Instance

HOLD = """
import sys
from pathlib import Path
from ketchd.network.instance import Instance
held = Instance(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_holder_a_bridge(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    first = Instance("b0", lock)
    with pytest.raises(EngineFailure, match="uses the bridge b0"):
        Instance("b0", lock)
    other = Instance("b1", lock)
    first.close()
    first.close()
    Instance("b0", lock).close()
    other.close()
    assert stat.S_IMODE(os.stat(lock).st_mode) == 0o600
    assert os.listdir(lock.parent) == ["lock"]


def test_another_process_is_kept_out_until_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "b0", str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            with pytest.raises(EngineFailure, match="uses the bridge b0"):
                Instance("b0", lock)
        finally:
            holder.kill()
    Instance("b0", lock).close()


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(EngineFailure, match=f"cannot use {tmp_path}/lock"):
        Instance("b0", tmp_path / "lock")
