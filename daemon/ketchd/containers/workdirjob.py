"""A layer worker's job: the working directory of a container that is being created, made in its writable layer where it is missing.

Source: moby container_unix.go, SetupWorkingDirectory; called by its create.
"""

from __future__ import annotations

import os
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.containers.roots import open_root
from ketchd.kernel.openat import open_in_root
from ketchd.layers.worker import JobPort
from ketchd.sandbox.enterprocess import check_working_directory
from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.targets import place


def settle(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """arguments: root (see `roots`), path. Returns {there: whether the image has it already}.

    Raises EngineFailure with dockerd's words when a file of the image is in the way.
    """
    path = arguments["path"]
    with open_root(arguments["root"], port) as root:
        try:
            check_working_directory(root, path)
        except LaunchError as error:
            raise EngineFailure(error.message) from error
        try:
            os.close(open_in_root(root, path, os.O_PATH | os.O_DIRECTORY))
            return {"there": True}
        except OSError:
            pass
        try:
            os.close(place(root, path, directory=True))
        except OSError:
            pass  # a mount may make a way there: the start says what is wrong
        return {"there": False}
