"""kill -9 at every named trace point: nothing acknowledged is lost, nothing unowned stays, and the same thing works afterwards."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

import ketchd.assembly  # noqa: F401  (importing it declares every trace point)
from ketch_testing.consistency import cgroups_left, differences
from ketch_testing.machine import BIN, Machine
from ketchd import tracepoint

KETCH = str(BIN / "ketch")
# fsck has damage of its own to be killed over: test_fsck.
POINTS = sorted(name for name in tracepoint.ALL if not name.startswith("fsck."))


class Story:
    """One machine with a registry beside it, and the things a user does."""

    def __init__(self, machine: Machine, registry: str, base: Path) -> None:
        self.machine = machine
        self.registry = registry
        self.context = base / "context"
        self.context.mkdir()
        (self.context / "Dockerfile").write_text(
            'FROM busybox\nCOPY a.txt /\nRUN cat /a.txt > /b.txt\nCMD ["cat", "/b.txt"]\n'
        )
        self.archive = base / "saved.tar"
        self.number = 0

    def run(self, *words: str, check: bool = True) -> str:
        """One ketch command."""
        return self.machine.run(KETCH, *words, check=check, cwd=self.context).stdout

    def images(self) -> dict[str, list[str]]:
        """Every image with its tags and digests."""
        rows = self.machine.json("GET", "/images/json?all=1&digests=1")
        return {row["Id"]: [*(row["RepoTags"] or []), *(row["RepoDigests"] or [])] for row in rows}

    def prepare(self) -> None:
        """What every scenario may use: an image in the registry, an archive, a running container that must survive."""
        self.run("tag", "busybox", f"{self.registry}/base:1")
        self.run("push", f"{self.registry}/base:1")
        self.run("rmi", f"{self.registry}/base:1")
        self.run("run", "-d", "--name", "witness", "busybox", "sh", "-c", "echo here; exec sleep 3600")
        (self.context / "a.txt").write_text("x\n")
        self.run("build", "-t", "kept", ".")
        self.fresh()
        self.run("build", "-t", "archived", ".")
        self.run("save", "-o", str(self.archive), "archived")

    def fresh(self) -> None:
        """Something in the build context that no build has seen."""
        self.number += 1
        (self.context / "a.txt").write_text(f"{self.number}\n")

    def build(self, check: bool = True) -> None:
        self.fresh()
        self.run("build", "-t", "made", ".", check=check)
        self.run("rmi", "made", check=check)

    def push(self, check: bool = True) -> None:
        self.fresh()
        target = f"{self.registry}/pushed:{self.number}"
        self.run("build", "-t", target, ".", check=check)
        self.run("push", target, check=check)
        self.run("rmi", target, check=check)

    def pull(self, check: bool = True) -> None:
        """An image whose layer is not in the store."""
        self.fresh()
        target = f"{self.registry}/pulled:{self.number}"
        self.run("build", "-t", target, ".", check=check)
        self.run("push", target, check=check)
        self.run("rmi", target, check=check)
        self.run("builder", "prune", "-f", check=check)
        self.run("pull", target, check=check)
        self.run("rmi", target, check=check)

    def container(self, check: bool = True) -> None:
        """The whole life of one: create, start, exec, end, remove."""
        self.number += 1
        name = f"c{self.number}"
        self.run(
            "run", "-d", "-p", "5000", "-v", "/data", "--name", name, "busybox", "sleep", "3600", check=check
        )
        self.run("exec", name, "true", check=check)
        self.run("stop", "-t", "0", name, check=check)
        self.run("rm", "-v", name, check=check)

    def load(self, check: bool = True) -> None:
        self.run("rmi", "archived", check=False)  # gone already when the kill came between
        self.run("builder", "prune", "-f", check=check)
        self.run("load", "-i", str(self.archive), check=check)

    def forget(self, check: bool = True) -> None:
        """Build something, then remove the image and the cache that keeps its layers."""
        self.build(check)
        self.run("builder", "prune", "-f", check=check)

    def chain(self, check: bool = True) -> None:
        """The first container of a new image: its chain of layers is composed."""
        self.fresh()
        self.run("build", "-t", "made", ".", check=check)
        self.run("run", "--rm", "made", check=check)
        self.run("rmi", "made", check=check)

    def network(self, check: bool = True) -> None:
        """A network of the user's own, a container that joins and leaves it."""
        self.number += 1
        name = f"n{self.number}"
        self.run("network", "create", name, check=check)
        self.run("run", "-d", "--name", f"c{self.number}", "busybox", "sleep", "3600", check=check)
        self.run("network", "connect", name, f"c{self.number}", check=check)
        self.run("network", "disconnect", name, f"c{self.number}", check=check)
        self.run("rm", "-f", f"c{self.number}", check=check)
        self.run("network", "rm", name, check=check)

    def commit(self, check: bool = True) -> None:
        """An image from a container's changes."""
        self.number += 1
        self.run(
            "run",
            "--name",
            f"c{self.number}",
            "busybox",
            "sh",
            "-c",
            f"echo {self.number} > /new",
            check=check,
        )
        self.run("commit", f"c{self.number}", "committed", check=check)
        self.run("rm", f"c{self.number}", check=check)
        self.run("rmi", "committed", check=check)

    def import_(self, check: bool = True) -> None:
        """An image from a plain tar."""
        self.fresh()
        with tarfile.open(self.context / "plain.tar", "w") as archive:
            archive.add(self.context / "a.txt", "a.txt")
        self.run("import", str(self.context / "plain.tar"), "imported", check=check)
        self.run("rmi", "imported", check=check)
        (self.context / "plain.tar").unlink()

    def update(self, check: bool = True) -> None:
        """New limits of a running container."""
        self.run("update", "--restart", "no", "--cpu-shares", "512", "witness", check=check)

    def pause(self, check: bool = True) -> None:
        """A container that stands still for a while."""
        self.number += 1
        self.run("run", "-d", "--name", f"c{self.number}", "busybox", "sleep", "3600", check=check)
        self.run("pause", f"c{self.number}", check=check)
        self.run("unpause", f"c{self.number}", check=check)
        self.run("rm", "-f", f"c{self.number}", check=check)

    def volume(self, check: bool = True) -> None:
        """A named volume's life."""
        self.number += 1
        self.run("volume", "create", f"v{self.number}", check=check)
        self.run("volume", "rm", f"v{self.number}", check=check)

    def gc(self, check: bool = True) -> None:
        """A build whose results go, since the disk is said to be full."""
        for _ in range(3):  # the look into an unclean end may just hold what would go
            self.build(check)
            self.run("system", "gc", check=check)

    def scenario(self, point: str) -> Callable[[bool], None]:
        """What reaches `point`."""
        by_journey = {
            "build": self.build, "buildprune": self.forget, "commit": self.commit, "compose": self.chain, "connect": self.network,
            "create": self.container, "disconnect": self.network, "end": self.container, "exec": self.container,
            "gc": self.gc, "import": self.import_, "layer": self.forget, "load": self.load, "network": self.network, "pause": self.pause, "pull": self.pull,
            "push": self.push, "remove": self.container, "rmi": self.build, "start": self.container, "trash": self.forget, "update": self.update,
            "volume": self.volume,
        }  # fmt: skip
        return by_journey[point.partition(".")[0]]


@pytest.fixture(scope="module")
def story(open_registry: str) -> Iterator[Story]:
    base = Path(tempfile.mkdtemp(prefix="ketch-crash-"))
    machine = Machine(base / "machine")
    policy = {"low": 100, "high": 100, "garbage-hours": 0, "cache-hours": 0, "interval": 0}
    (machine.base / "daemon.json").write_text(json.dumps({"ketch": {"gc": policy}}))
    try:
        machine.start()
        import_busybox(machine)
        made = Story(machine, open_registry, base)
        made.prepare()
        yield made
    finally:
        machine.kill()
        try:
            machine.start()
        finally:
            machine.close()
            shutil.rmtree(base, ignore_errors=True)
    assert machine.leftovers() == []


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(story: Story, point: str) -> None:
    machine = story.machine
    machine.kill()
    with machine.killed_at(point):
        known = set(story.images())
        act = story.scenario(point)
        act(False)

    nameless = {image for image, names in story.images().items() if not names}
    assert nameless <= known, "an image that nobody named was left behind"
    before = {row["Id"] for row in machine.json("GET", "/containers/json?all=1")}
    for row in machine.json("GET", "/containers/json?all=1"):
        if row["Names"] != ["/witness"]:
            machine.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
    assert differences(machine) == []
    witness = machine.json("GET", "/containers/witness/json")
    assert witness["State"]["Running"], "the container died with the daemon"
    assert story.run("logs", "witness") == "here\n"
    assert story.run("run", "--rm", "kept") == "x\n"
    act(True)
    assert differences(machine) == []
    assert cgroups_left(before - {witness["Id"]}) == []
