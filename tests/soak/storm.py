"""A storm of random requests against a private ketchd that is killed and started again, and a look at what it left."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

from conftest import import_busybox

from ketch_testing.consistency import cgroups_left, differences
from ketch_testing.machine import Machine

LONGEST_DOWN_SECONDS = 30.0


class Storm:
    """`run` returns what was left or lost, one line each."""

    def __init__(self, base: Path, *, seed: int, workers: int) -> None:
        self.machine = Machine(base, bridge="ktsoak0")
        self._seed = seed
        self._workers = workers
        self._over = threading.Event()
        self._done: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._lost: list[str] = []
        self._kills = 0

    def summary(self) -> str:
        """What was done, for a person."""
        return f"soak: {self._kills} kills of ketchd; " + ", ".join(
            f"{count} {what}" for what, count in sorted(self._done.items())
        )

    def run(self, seconds: float) -> list[str]:
        """The storm, then the look. Everything is removed afterwards."""
        machine = self.machine
        try:
            machine.start()
            import_busybox(machine)
            before = _fds(machine)
            witness = self._witness()
            threads = [
                threading.Thread(target=self._worker, args=(self._seed + number,))
                for number in range(self._workers)
            ]
            for thread in threads:
                thread.start()
            self._kill_again_and_again(seconds)
            self._over.set()
            for thread in threads:
                thread.join()
            return self._look(witness, before)
        finally:
            self._over.set()
            machine.close()
            self._lost += [f"left behind: {line}" for line in machine.leftovers()]

    def _kill_again_and_again(self, seconds: float) -> None:
        chance = random.Random(self._seed)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._over.wait(min(chance.uniform(0.5, 6.0), max(0.0, deadline - time.monotonic())))
            self.machine.kill()
            self._kills += 1
            self.machine.start()

    def _witness(self) -> str:
        """A container that counts from before the first kill to after the last."""
        command = ["sh", "-c", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.2; done"]
        made = self.machine.json(
            "POST", "/containers/create?name=witness", {"Image": "busybox", "Cmd": command}
        )
        self.machine.json("POST", f"/containers/{made['Id']}/start")
        return str(made["Id"])

    def _worker(self, seed: int) -> None:
        chance = random.Random(seed)
        mine: list[str] = []
        while not self._over.is_set():
            acts = [
                self._create,
                self._create,
                self._exec,
                self._kill,
                self._restart,
                self._remove,
                self._logs,
                self._pause,
            ]
            act = chance.choice(acts) if mine else self._create
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError, ValueError):
                act(chance, mine)
                self._done[act.__name__.strip("_")] += 1

    def _ask(self, method: str, path: str, body: object = None) -> int:
        return self.machine.request(method, path, body)[0]

    def _create(self, chance: random.Random, mine: list[str]) -> None:
        if len(mine) >= 12:
            self._remove(chance, mine)
        command = chance.choice(
            [["true"], ["sleep", "3600"], ["sh", "-c", "echo out; echo err >&2; exit 3"], ["no-such-program"]]
        )
        host = {
            "NetworkMode": chance.choice(["bridge", "bridge", "none"]),
            "AutoRemove": chance.random() < 0.3,
            "Memory": chance.choice([0, 64 << 20]),
            "PortBindings": {"80/tcp": [{"HostPort": ""}]} if chance.random() < 0.3 else {},
        }
        if not host["AutoRemove"] and chance.random() < 0.2:
            host["RestartPolicy"] = {"Name": "always"}
        made = self.machine.json(
            "POST", "/containers/create",
            {"Image": "busybox", "Cmd": command, "HostConfig": host, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}},
        )  # fmt: skip
        mine.append(made["Id"])
        self._ids.add(made["Id"])
        self._ask("POST", f"/containers/{made['Id']}/start")

    def _exec(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            made = self.machine.json(
                "POST", f"/containers/{chance.choice(mine)}/exec", {"Cmd": ["true"], "AttachStdout": True}
            )
            self._ask("POST", f"/exec/{made['Id']}/start", {"Detach": chance.random() < 0.5})

    def _kill(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            self._ask(
                "POST", f"/containers/{chance.choice(mine)}/kill?signal={chance.choice(['KILL', 'TERM'])}"
            )

    def _restart(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            self._ask("POST", f"/containers/{chance.choice(mine)}/restart?t=0")

    def _pause(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            name = chance.choice(mine)
            if self._ask("POST", f"/containers/{name}/pause") == 204:
                self._ask("POST", f"/containers/{name}/unpause")

    def _logs(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            self._ask("GET", f"/containers/{chance.choice(mine)}/logs?stdout=1&stderr=1&tail=10")

    def _remove(self, chance: random.Random, mine: list[str]) -> None:
        if mine:
            self._ask("DELETE", f"/containers/{mine.pop(chance.randrange(len(mine)))}?force=1&v=1")

    def _look(self, witness: str, fds_before: int) -> list[str]:
        """Remove everything but the witness, then compare."""
        machine = self.machine
        found: list[str] = []
        state = machine.json("GET", f"/containers/{witness}/json")["State"]
        if not state["Running"]:
            found.append(f"the witness ended: {state}")
        _, logs = machine.request("GET", f"/containers/{witness}/logs?stdout=1")
        numbers = [int(part) for part in _lines(logs)]
        if numbers != list(range(len(numbers))):
            found.append("the witness' log has a gap")
        for row in machine.json("GET", "/containers/json?all=1"):
            if row["Id"] != witness:
                status, answer = machine.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
                if status not in (204, 404) and b"already in progress" not in answer:
                    found.append(
                        f"container {row['Id']} cannot be removed: {status} {answer.decode(errors='replace')}"
                    )
        machine.json("POST", "/volumes/prune")
        deadline = time.monotonic() + LONGEST_DOWN_SECONDS
        while (left := [*differences(machine), *cgroups_left(self._ids)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        found += left
        if (now := _fds(machine)) > fds_before + 20:
            found.append(f"ketchd holds {now} fds, {fds_before} at first")
        return found


def _lines(framed: bytes) -> list[str]:
    """The payload lines of a multiplexed log."""
    text, at = b"", 0
    while at + 8 <= len(framed):
        length = int.from_bytes(framed[at + 4 : at + 8], "big")
        text += framed[at + 8 : at + 8 + length]
        at += 8 + length
    return text.decode().split()


def _fds(machine: Machine) -> int:
    assert machine.process is not None
    return len(os.listdir(f"/proc/{machine.process.pid}/fd"))
