"""The program ketchd: read the settings, take the root, start the launcher, then the event loop.

The order matters: the launcher is forked while this process has one thread and few imports; the loop starts last.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the daemon in the foreground. Returns the exit code: 1 with one line on standard error when it cannot start."""
    # structlog would import rich, and with it pygments, where they are installed: 4 MiB for colours that no daemon prints.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from ketch_wire.defaults import ENGINE_VERSION, KETCH_VERSION
    from ketch_wire.faults import Fault
    from ketchd import config as configuration

    words = sys.argv[1:] if argv is None else argv
    try:
        typed = configuration.read(words)
    except Fault as fault:
        print(f"ketchd: {fault.message}", file=sys.stderr)
        return 1
    if typed.version:
        print(f"Ketch engine {KETCH_VERSION}, Docker Engine API of {ENGINE_VERSION}")
        return 0
    if typed.validate:
        print("configuration OK")
        return 0
    if os.geteuid() != 0:
        print("ketchd: root is needed (namespaces, mounts, networks)", file=sys.stderr)
        return 1
    from ketchd.process import Process

    try:
        return Process(typed.config, lambda: configuration.read(words).config).run()
    except Fault as fault:
        print(f"ketchd: {fault.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
