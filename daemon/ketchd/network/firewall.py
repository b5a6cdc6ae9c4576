"""The packet rules in the kernel: applied, extended, checked, taken away. Blocking: called on the network thread only."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Protocol

from ketch_wire.faults import EngineFailure
from ketchd.kernel.nftables import Nftables
from ketchd.network import foreign, rules
from ketchd.network.rules import Forward, NetworkRules


class Runner(Protocol):
    """Who carries out nft commands."""

    def run(self, commands: str, *, json: bool = False) -> tuple[bool, str, str]:
        """(done, output, complaint)."""

    def close(self) -> None:
        """Let go of it."""


class NftProgram:
    """The `nft` program, where libnftables is not installed: some milliseconds a call."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, commands: str, *, json: bool = False) -> tuple[bool, str, str]:
        """(done, output, complaint)."""
        command = [self._path, *(["-j", "-a"] if json else []), "-f", "-"]
        done = subprocess.run(command, input=commands, capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout, done.stderr

    def close(self) -> None:
        """Nothing is held."""


class Firewall:
    """The rules of one ketchd. `apply` makes the kernel's state the given one, whatever it was; may be called at any time."""

    def __init__(self, bridge: str, log: Any, runner: Runner | None = None) -> None:
        self._bridge = bridge
        self._log = log
        self._runner = runner
        self._opened = runner is not None
        self._bridge_family = True
        self._ports: dict[str, Forward] = {}
        self._applied: list[tuple[str, dict[str, set[str]]]] = []
        self._shows_ports = False

    def _nft(self) -> Runner:
        if not self._opened:
            self._opened = True
            try:
                self._runner = Nftables()
            except OSError as missing:
                path = shutil.which("nft")
                if path is not None:
                    self._log.warning(
                        "libnftables is not installed: the nft program is run instead", reason=str(missing)
                    )
                    self._runner = NftProgram(path)
                else:
                    self._log.error(
                        "neither libnftables nor nft is installed: no port can be published, no container reaches the outside"
                    )
        if self._runner is None:
            raise EngineFailure("nftables is not available: install libnftables1 or nftables")
        return self._runner

    def apply(self, networks: Sequence[NetworkRules], ports: Sequence[Forward]) -> None:
        """Put all rules in place anew, in one transaction. Raises EngineFailure."""
        nft, text = self._nft(), rules.ruleset(self._bridge, networks, ports)
        done, _, complaint = nft.run(text if self._bridge_family else rules.without_bridge_family(text))
        if not done and self._bridge_family:
            self._bridge_family = False
            done, _, complaint = nft.run(rules.without_bridge_family(text))
            if done and any(one.resolver for one in networks):
                self._log.warning(
                    "this kernel cannot filter inside bridges: neighbours may reach a container's 127.0.0.0/8"
                )
        if not done:
            raise EngineFailure(f"packet rules are refused: {_first_line(complaint)}")
        self._ports = {one.map + one.key: one for one in ports}
        self._applied, shown = self._list()
        self._shows_ports = shown == self._elements()
        self.open_foreign(networks, anew=True)

    def open_foreign(self, networks: Sequence[NetworkRules], *, anew: bool = False) -> None:
        """Another's FORWARD or INPUT chain that drops by default (dockerd's, ufw's) has the last word: ask it for a passage.

        anew: also when there is one already. Raises EngineFailure without nftables.
        """
        nft = self._nft()
        for chain, passages in foreign.passages(networks).items():
            done, listed, _ = nft.run(f"list chain ip {foreign.TABLE} {chain}", json=True)
            if not done or not foreign.drops(listed):
                continue
            if foreign.is_open(listed, passages, self._bridge) and not (anew and passages):
                continue
            commands = foreign.close(chain, listed, self._bridge) + foreign.open_(
                chain, passages, self._bridge
            )
            done, _, complaint = nft.run(commands)
            if done:
                self._log.info("a chain that drops by default lets our bridges through", chain=chain)
            else:
                self._log.warning(
                    "a foreign chain may drop containers' packets", chain=chain, reason=_first_line(complaint)
                )

    def add(self, ports: Sequence[Forward]) -> bool:
        """Publish `ports`. False when the rules are not there: apply them. Raises EngineFailure without nftables."""
        done, _, _ = self._nft().run(rules.add_ports(self._bridge, ports))
        if done:
            self._ports.update({one.map + one.key: one for one in ports})
        return done

    def remove(self, ports: Sequence[Forward]) -> bool:
        """Publish `ports` no longer. False when not all of them were there: apply the rules anew."""
        known = [one for one in ports if self._ports.get(one.map + one.key) == one]
        if not known:
            return True
        for one in known:
            del self._ports[one.map + one.key]
        done, _, _ = self._nft().run(rules.remove_ports(self._bridge, known))
        return done

    def is_intact(self) -> bool:
        """Whether every chain and set is what it was right after `apply`, and every published port has its element."""
        listed, ports = self._list()
        return listed == self._applied and (not self._shows_ports or ports == self._elements())

    def _elements(self) -> set[str]:
        return {one.element for one in self._ports.values()}

    def _list(self) -> tuple[list[tuple[str, dict[str, set[str]]]], set[str]]:
        """Every table as the kernel has it, and apart from that the published ports. One command a call: nft knows one table then."""
        nft = self._nft()
        listed = [
            rules.without_elements(nft.run(f"list table {one}")[1]) for one in rules.tables(self._bridge)
        ]
        ports = [found.pop(name, set()) for _, found in listed for name in rules.PORT_MAPS]
        return listed, set().union(*ports)

    def clear(self) -> None:
        """Take every rule of ours away. May be called twice."""
        try:
            nft = self._nft()
        except EngineFailure:
            return
        for command in rules.removals(self._bridge):
            nft.run(command)
        for chain in foreign.CHAINS:
            done, listed, _ = nft.run(f"list chain ip {foreign.TABLE} {chain}", json=True)
            if done and (commands := foreign.close(chain, listed, self._bridge)):
                nft.run(commands)
        self._ports = {}

    def close(self) -> None:
        """Let nftables go; the rules stay."""
        if self._runner is not None:
            self._runner.close()


def _first_line(complaint: str) -> str:
    return complaint.strip().splitlines()[0][:300] if complaint.strip() else "no reason given"
