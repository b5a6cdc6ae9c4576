"""`system fsck`: is what is stored what it should be, and, if asked, repair what is not."""

from __future__ import annotations

import sys
from typing import Any

from ketch.credentials import encode_header
from ketch.faults import CommandFailed
from ketch.options import Command, Given
from ketch.progressview import show
from ketch.session import Session
from ketch.terminal import is_terminal

FSCK = Command(
    "[OPTIONS]",
    """
-q, --quiet  Show what is wrong alone
--repair  Make or fetch again what is damaged, remove what nothing owns
""",
    note="Blobs and layers are read and hashed again. Containers and volumes are looked at, never touched.",
)


def fsck(session: Session, given: Given) -> int:
    """Check; 1 when something is wrong and stays so."""
    repair = given.on("repair")
    headers = {"X-Registry-Config": encode_header(session.all_auths())} if repair else {}
    sums: dict[str, Any] = {}

    def tell(aux: Any) -> None:
        if "Checked" in aux:
            sums.update(aux)
        else:
            session.say(finding_line(aux))

    answer = session.engine.request("POST", "/ketch/fsck", {"repair": repair}, headers=headers)
    # Where there is nobody to watch it, progress would only be noise.
    out = sys.stderr if is_terminal(2) and not given.on("quiet") else None
    show(session.engine.messages(answer), out, tell)
    if "Checked" not in sums:
        raise CommandFailed("the engine did not finish the check")
    bad, repaired = int(sums["Bad"]), int(sums["Repaired"])
    if not given.on("quiet"):
        session.say(f"{sums['Checked']} checked, {bad} bad, {repaired} repaired")
    if bad > repaired and not repair:
        session.warn("ketch system fsck --repair makes or fetches again what is damaged")
    return 1 if bad > repaired else 0


def finding_line(finding: dict[str, Any]) -> str:
    """One thing that is wrong, who needs it, and what was done."""
    line = f"{finding['Kind']} {finding['Key']} {finding['Problem']}"
    if finding.get("Users"):
        line += f" (used by {', '.join(finding['Users'])})"
    if finding.get("Repaired"):
        line += f": {finding['Repaired']}"
    elif finding.get("Reason"):
        line += f": not repaired: {finding['Reason']}"
    return line


COMMANDS = {"system fsck": (FSCK, fsck)}
