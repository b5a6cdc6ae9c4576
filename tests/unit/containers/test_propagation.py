"""Which mount a path lies on, and whether it propagates."""

from __future__ import annotations

import pytest

from ketch_wire.faults import EngineFailure
from ketchd.containers.propagation import check

MOUNTS = r"""21 1 0:20 / / rw shared:1 - ext4 /dev/a rw
22 21 0:21 / /pri\040vate rw - tmpfs x rw
23 21 0:22 / /slave rw master:4 - tmpfs x rw
24 21 0:23 / /both rw shared:5 master:4 - tmpfs x rw
25 21 0:24 / /over rw - tmpfs x rw
26 25 0:25 / /over rw shared:6 - tmpfs x rw
"""


@pytest.mark.parametrize(
    ("source", "propagation", "words"),
    [
        ("/etc", "rshared", ""),
        ("/privately", "shared", ""),
        ("/pri vate", "rprivate", ""),
        ("/pri vate/x", "shared", "path /pri vate/x is mounted on /pri vate but it is not a shared mount"),
        ("/pri vate", "rslave", "is not a shared or slave mount"),
        ("/slave/x", "slave", ""),
        ("/slave", "rshared", "path /slave is mounted on /slave but it is not a shared mount"),
        ("/both", "shared", ""),
        ("/over/x", "rshared", ""),
    ],
)
def test_propagation(source: str, propagation: str, words: str) -> None:
    if not words:
        check(MOUNTS, source, propagation)
        return
    with pytest.raises(EngineFailure, match=words):
        check(MOUNTS, source, propagation)
