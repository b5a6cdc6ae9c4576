"""The table of docs/security.md and the tests that it names say the same."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

PROJECT = Path(__file__).parents[2]
NAMED = re.compile(
    r"^(?:async )?def (test_(?:cve_|ghsa_|tar_attacks_|tag_digest_mismatch_)\w+)", re.MULTILINE
)


def test_every_row_has_tests_and_every_test_a_row() -> None:
    """A test that is renamed, or a new one without a row, is told."""
    table = re.findall(r"`(test_[\w*]+)`", (PROJECT / "docs/security.md").read_text())
    tests = {
        name for path in (PROJECT / "tests").rglob("test_*.py") for name in NAMED.findall(path.read_text())
    }

    assert table and [row for row in table if not any(fnmatchcase(name, row) for name in tests)] == []
    assert [name for name in sorted(tests) if not any(fnmatchcase(name, row) for row in table)] == []
