"""Containers started, used, killed and removed at random while ketchd is killed again and again; then nothing may be left.

`./dev soak [--seconds N] [--seed N] [--workers N]`. The tests run two minutes of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak.storm import Storm


def main() -> int:
    """Run it; 0 when nothing was left and nothing was lost."""
    parser = argparse.ArgumentParser(prog="./dev soak")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one, printed")
    parser.add_argument("--workers", type=int, default=6)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("soak: root is needed", file=sys.stderr)
        return 1
    seed = given.seed or int.from_bytes(os.urandom(3), "big")
    print(f"soak: seed {seed}, {given.seconds:.0f} s", flush=True)
    base = Path(tempfile.mkdtemp(prefix="ketch-soak-"))
    try:
        storm = Storm(base, seed=seed, workers=given.workers)
        left = storm.run(given.seconds)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(storm.summary())
    for line in left:
        print(f"soak: {line}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
