"""The exec journey: another process in a running container, and its inspection."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Mapping
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure, InvalidInput
from ketch_wire.shim import ExecPlan
from ketchd import tracepoint
from ketchd.containers import fields, launching
from ketchd.containers.detach import detach_keys
from ketchd.containers.lifecycle import Happening
from ketchd.containers.record import new_id
from ketchd.containers.settings import check_texts
from ketchd.containers.shapes import fold
from ketchd.containers.shims import ClientStream, LaunchFailed
from ketchd.containers.supervisor import UNKNOWN_EXIT, Box, ExecRecord
from ketchd.engine import links
from ketchd.engine.rooms import Rooms

KEPT_SECONDS = 300.0  # after its end: long enough for every client to ask
WAITING_LIMIT = 1024  # execs of one container that nobody has started: dockerd keeps any number, until the container's end

tracepoint.declare("exec.created", "exec.started")

SHAPE: dict[str, Any] = {
    "User": "", "Privileged": False, "Tty": False, "ConsoleSize": None, "AttachStdin": False, "AttachStderr": False,
    "AttachStdout": False, "DetachKeys": "", "Env": None, "WorkingDir": "", "Cmd": None, "Detach": False,
}  # fmt: skip


def create_exec(rooms: Rooms, box: Box, body: Mapping[str, Any]) -> ExecRecord:
    """Record an exec. Raises InvalidInput, Conflict. Source: Engine API, ContainerExec."""
    sent = fields.decode(body, fields.EXEC)
    check_texts(sent)
    settings = fold(sent, SHAPE)
    if not settings["Cmd"]:
        raise InvalidInput("No exec command specified")
    try:
        detach_keys(settings["DetachKeys"])
    except InvalidInput:
        raise InvalidInput(f"Invalid escape keys ({settings['DetachKeys'][:60]}) provided") from None
    box.ask(Happening.ASK_EXEC)
    record = ExecRecord(new_id(), box.record.id, settings)
    with rooms.catalogue.transaction():
        rooms.supervisor.announce(box, f"exec_create: {_shown(settings)}", execID=record.id)
        rooms.supervisor.add_exec(box, record)
        rooms.supervisor.drop_execs(box, _waiting(box)[:-WAITING_LIMIT])
    tracepoint.reach("exec.created")
    return record


def _waiting(box: Box) -> list[ExecRecord]:
    """Those that nobody has started, oldest first."""
    return [one for one in box.execs.values() if not one.started]


def _shown(settings: Mapping[str, Any]) -> str:
    """The command in an event: dockerd puts a space behind the program, whether arguments follow or not."""
    program, *arguments = settings["Cmd"]
    return f"{program} {' '.join(arguments)}"


async def start_exec(
    rooms: Rooms,
    box: Box,
    record: ExecRecord,
    stream: ClientStream | None,
    *,
    console_size: tuple[int, int] = (0, 0),
    transient: bool = False,
) -> None:
    """Start it; its output goes to `stream` (None: nowhere). transient: it is killed when ketchd is, whom alone it is for.

    Raises Conflict when it has run or the container does not; LaunchFailed when the program cannot be executed.
    """
    if record.started:
        raise Conflict(f"exec command {record.id} has already run")
    box.ask(Happening.ASK_EXEC)
    link = box.link
    if link is None:
        raise Conflict(f"container {box.record.id} is not running")
    record.started = record.running = True
    try:
        with rooms.catalogue.transaction():
            rooms.supervisor.save_exec_start(record)
            rooms.supervisor.announce(box, f"exec_start: {_shown(record.settings)}", execID=record.id)
        plan = ExecPlan(
            id=record.id,
            process=launching.exec_process(
                box.record,
                record.settings,
                console_size=console_size,
                daemon=rooms.defaults,
                linked=links.environment(rooms, box.record, strict=False),
            ),
            transient=transient,
        )
        if not plan.process.cwd.startswith("/"):  # runc's own check, ahead of any process
            raise LaunchFailed("OCI runtime exec failed: exec failed: Cwd must be an absolute path: unknown")
        record.pid = await link.exec_start(record.id, plan, stream)
    except LaunchFailed as failure:
        never_ran(rooms, box, record, failure.exit_code)
        raise
    except BaseException:
        if not record.ended.is_set():  # unless its container's end was its own
            never_ran(rooms, box, record, 128)
        raise
    tracepoint.reach("exec.started")


def exec_ended(rooms: Rooms, box: Box, exec_id: str, code: int) -> None:
    """The shim's word that an exec has ended. Its stream is closed only afterwards. Raises EngineFailure: it could not be recorded."""
    record = box.execs.get(exec_id)
    if record is None or record.ended.is_set():
        return
    _is_over(rooms, box, record, code)
    with rooms.catalogue.transaction():
        rooms.supervisor.save_exec_ends([record], KEPT_SECONDS)
        rooms.supervisor.announce(box, "exec_die", execID=exec_id, exitCode=str(code))


def found_again(rooms: Rooms, box: Box, running: Mapping[str, int], *, complete: bool) -> None:
    """What a shim that was away says of its execs: the pids of those that run. complete: it has told every end, as older ones do not."""
    for record in [one for one in box.execs.values() if one.running]:
        if record.id in running:
            record.pid = running[record.id]
        elif complete:
            never_ran(rooms, box, record, 128)  # ketchd was killed amid the start
        else:
            exec_ended(rooms, box, record.id, UNKNOWN_EXIT)


def container_ended(rooms: Rooms, box: Box, codes: Mapping[str, int] | None = None) -> None:
    """What of its execs has not ended ends with it. codes: of those whose ends its shim alone has seen."""
    for exec_id, code in (codes or {}).items():
        if exec_id in box.execs and box.execs[exec_id].exit_code is None:
            box.execs[exec_id].exit_code = code
    rooms.supervisor.drop_execs(box, _waiting(box))  # they were meant for this run, and for no later one
    ended = [record for record in box.execs.values() if record.running]
    for record in ended:
        _is_over(rooms, box, record, 137 if record.exit_code is None else record.exit_code)
    rooms.supervisor.save_exec_ends(ended, KEPT_SECONDS)
    for record in ended:
        rooms.supervisor.announce(box, "exec_die", execID=record.id, exitCode=str(record.exit_code))


def never_ran(rooms: Rooms, box: Box, record: ExecRecord, code: int) -> None:
    """It could not be started: inspect shows `code`, and no `exec_die` is told, as in dockerd."""
    _is_over(rooms, box, record, code)
    with contextlib.suppress(EngineFailure):  # on a full disk the next ketchd finds that it does not run
        rooms.supervisor.save_exec_ends([record], KEPT_SECONDS)


def restored(rooms: Rooms) -> None:
    """Those that the last ketchd saw end are not known for ever, and those of a container that had ended not at all."""
    for box in rooms.supervisor:
        if not box.record.has_process:
            rooms.supervisor.drop_execs(box, _waiting(box))
        for record in box.execs.values():
            if record.ended.is_set():
                _forget_later(rooms, box, record)


def _is_over(rooms: Rooms, box: Box, record: ExecRecord, code: int) -> None:
    record.running, record.exit_code = False, code
    record.ended.set()
    _forget_later(rooms, box, record)


def _forget_later(rooms: Rooms, box: Box, record: ExecRecord) -> None:
    asyncio.get_running_loop().call_later(KEPT_SECONDS, _forget, rooms, box, record.id)


def _forget(rooms: Rooms, box: Box, exec_id: str) -> None:
    box.execs.pop(exec_id, None)
    rooms.supervisor.execs.pop(exec_id, None)


def render_exec(record: ExecRecord) -> dict[str, Any]:
    """As GET /exec/ID/json shows it."""
    settings = record.settings
    process: dict[str, Any] = {
        "tty": settings["Tty"],
        "entrypoint": settings["Cmd"][0],
        "arguments": settings["Cmd"][1:],
        "privileged": settings["Privileged"],
    }
    if settings["User"]:
        process["user"] = settings["User"]
    return {
        "ID": record.id,
        "Running": record.running,
        "ExitCode": record.exit_code if record.ended.is_set() else None,
        "ProcessConfig": process,
        "OpenStdin": settings["AttachStdin"],
        "OpenStderr": settings["AttachStderr"],
        "OpenStdout": settings["AttachStdout"],
        "CanRemove": False,
        "ContainerID": record.container_id,
        "DetachKeys": base64.b64encode(detach_keys(settings["DetachKeys"])).decode()
        if settings["DetachKeys"]
        else "",
        "Pid": record.pid,
    }
