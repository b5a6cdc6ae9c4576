"""What the rows work on: a tiny image, a Dockerfile of twelve instructions, a big context, and a five-layer Debian image in a registry.

The Debian image is made once by ketch itself (bootstrap and four RUNs) and kept as a registry's storage below the cache directory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from conftest import busybox_tar

from ketch_testing.machine import Machine, registry

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "ketch-bench"
DEBIAN = "bench/debian:five"
# About 145 MB of gzip in five layers, 17,000 files: neither apt's lists nor its archives stay.
_INSTALL = (
    "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends {} "
    "&& rm -rf /var/lib/apt/lists/* /var/cache/apt/*\n"
)
_DEBIAN_DOCKERFILE = "FROM debian:bookworm\n" + "".join(
    _INSTALL.format(packages)
    for packages in ("python3 python3-venv", "perl git", "libc6-dev make", "vim curl")
)

_TWELVE = """\
FROM busybox
LABEL maintainer=bench
ENV A=1 B=2
WORKDIR /app
COPY one.txt .
RUN echo first > first.txt && cat one.txt
COPY two.txt .
RUN echo second > second.txt
ENV PORT=5000
EXPOSE 5000
RUN mkdir -p data && echo third > data/third.txt
CMD ["cat", "one.txt"]
"""


def import_busybox(engine: object) -> None:
    """`busybox` for the engine, without a registry."""
    engine.docker("import", "--change", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar())  # type: ignore[attr-defined]


def twelve_instructions(base: Path) -> Path:
    """A context with a Dockerfile of twelve instructions."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "Dockerfile").write_text(_TWELVE)
    for name in ("one.txt", "two.txt"):
        (base / name).write_text(f"{name}\n" * 100)
    return base


def big_context(base: Path, files: int = 10_000) -> Path:
    """A context of many small files and a Dockerfile that copies it."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "Dockerfile").write_text("FROM busybox\nCOPY . /src\n")
    for number in range(files):
        directory = base / f"d{number // 100:03}"
        if number % 100 == 0:
            directory.mkdir(exist_ok=True)
        (directory / f"f{number:05}.txt").write_text(f"file {number}\n" * 8)
    return base


def debian_storage() -> Path:
    """The storage directory of a registry that holds DEBIAN; made when it is not there yet (minutes, needs a Debian mirror)."""
    storage = CACHE / "registry"
    made = CACHE / "made-by"
    if made.exists() and made.read_text() == _DEBIAN_DOCKERFILE:
        return storage
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    machine = Machine(Path(tempfile.mkdtemp(prefix="ketch-bench-")))
    try:
        machine.start()
        machine.run("ketch", "image", "bootstrap", "debian:bookworm", timeout=900)
        context = machine.base / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(_DEBIAN_DOCKERFILE)
        machine.run("ketch", "build", "-t", "five", ".", cwd=context, timeout=900)
        with registry(machine.base / "registry", storage=storage) as host:
            machine.run("ketch", "tag", "five", f"{host}/{DEBIAN}")
            machine.run("ketch", "push", f"{host}/{DEBIAN}", timeout=900)
    finally:
        machine.close()
    made.write_text(_DEBIAN_DOCKERFILE)
    return storage


def many_images(path: Path, count: int) -> Path:
    """An archive of `docker save` with `count` images, each of one small layer that they share and a config of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"many"))
    layer = buffer.getvalue()
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    rows = []
    with tarfile.open(path, "w") as archive:
        _add(archive, "layer.tar", layer)
        for number in range(count):
            config = {
                "architecture": "amd64", "os": "linux", "created": f"2024-01-01T00:00:00.{number:09d}Z",
                "config": {"Labels": {"number": str(number), "vendor": "bench"}}, "history": [],
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            }  # fmt: skip
            content = json.dumps(config).encode()
            name = f"{hashlib.sha256(content).hexdigest()}.json"
            _add(archive, name, content)
            rows.append(
                {
                    "Config": name,
                    "RepoTags": [f"reg.example/team/app{number}:1.{number}"],
                    "Layers": ["layer.tar"],
                }
            )
        _add(archive, "manifest.json", json.dumps(rows).encode())
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
