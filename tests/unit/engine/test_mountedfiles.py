"""A file that a container has mounted is changed under its eyes."""

from __future__ import annotations

import threading
from pathlib import Path

from ketchd.engine.mountedfiles import edit


def test_who_reads_meanwhile_finds_it_never_empty(tmp_path: Path) -> None:
    """A resolver may look into /etc/hosts at any moment, by the file that it has open or opens."""
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1\tlocalhost\n")
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes()[:20])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(5000):
            edit(path, lambda text, number=number: text[:20] + f"10.0.0.2\tdb{'x' * (number % 7)}\n")
    finally:
        done.set()
        reader.join()
    assert seen == {b"127.0.0.1\tlocalhost\n"}


def test_it_stays_the_same_file(tmp_path: Path) -> None:
    """Shorter, longer, and with bytes that are no text."""
    path = tmp_path / "hosts"
    path.write_bytes(b"one\ntwo \xff\n")
    before = path.stat()
    edit(path, lambda text: text.replace("one\n", ""))
    assert path.read_bytes() == b"two \xff\n"
    edit(path, lambda text: text + "three\n")
    assert path.read_bytes() == b"two \xff\nthree\n"
    changed = path.stat().st_mtime_ns
    edit(path, lambda text: text)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, changed)
