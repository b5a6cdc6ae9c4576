"""Journeys for a host as users have it: systemd, cgroup version 2 alone, all capabilities, a journal. `./dev host` runs them.

They are not part of `./dev test`: they install a service on the host they run on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox

from ketch_testing.clients import Client
from ketch_testing.machine import BIN
from ketch_testing.service import Service, missing

if not os.environ.get("KETCH_TEST_HOST"):
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """ketchd as a service with `busybox:latest`. Fails if anything stays of it."""
    if lacking := missing():
        pytest.skip(f"this needs {lacking}")
    made = Service(Path(tempfile.mkdtemp(prefix="ketch-host-", dir="/var/lib")))
    try:
        made.install()
        import_busybox(made)
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


@pytest.fixture
def ketch(service: Service) -> Iterator[Client]:
    """Our client. Containers that the test leaves are removed."""
    yield Client(service, str(BIN / "ketch"))
    for row in service.json("GET", "/containers/json?all=1"):
        service.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
