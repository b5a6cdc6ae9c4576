"""ps without ps: processes read from /proc and shown in the columns that `ps` arguments ask for. Pure but for `read` and `host_ps`.

Understood are the forms that everybody types: BSD's (`aux`), UNIX' (`-ef`, `-eLf` without threads) and `-o`/`-eo` columns.
Source: ps(1) of procps; proc_pid_stat(5).
"""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput


@dataclass(frozen=True, slots=True)
class Process:
    """One process. Times in s, sizes in KiB, started: epoch seconds. tty: name or `?`."""

    pid: int
    parent: int
    group: int
    session: int
    uid: int
    gid: int
    state: str
    name: str
    arguments: str
    tty: str
    cpu_seconds: float
    elapsed: float
    started: float
    virtual: int
    resident: int
    threads: int
    nice: int
    priority: int
    foreground: bool
    locked: bool


@dataclass(frozen=True, slots=True)
class Host:
    """What the columns are relative to. memory: KiB. now: epoch seconds. user: uid -> name."""

    now: float
    memory: int
    user: Callable[[int], str]


def _clock(seconds: float, *, days: bool) -> str:
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    if days and hours >= 24:
        return f"{hours // 24}-{hours % 24:02d}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _elapsed(process: Process) -> str:
    text = _clock(process.elapsed, days=True)
    return text.removeprefix("00:")


def _bsd_time(process: Process) -> str:
    whole = int(process.cpu_seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _when(process: Process, host: Host) -> str:
    then, now = time.localtime(process.started), time.localtime(host.now)
    if then.tm_year != now.tm_year:
        return time.strftime("%Y", then)
    if host.now - process.started >= 86400 or then.tm_yday != now.tm_yday:
        return time.strftime("%b%d", then)
    return time.strftime("%H:%M", then)


def _share(process: Process) -> float:
    return 100 * process.cpu_seconds / process.elapsed if process.elapsed > 0 else 0.0


def _stat(process: Process) -> str:
    marks = "<" if process.nice < 0 else "N" if process.nice > 0 else ""
    marks += "L" if process.locked else ""
    marks += "s" if process.session == process.pid else ""
    marks += "l" if process.threads > 1 else ""
    return process.state + marks + ("+" if process.foreground else "")


Column = tuple[str, Callable[[Process, Host], str]]
_COMMAND: Callable[[Process, Host], str] = lambda p, _: p.arguments or f"[{p.name}]"  # noqa: E731

# ps's keyword -> heading and value.
COLUMNS: dict[str, Column] = {
    "pid": ("PID", lambda p, _: str(p.pid)),
    "ppid": ("PPID", lambda p, _: str(p.parent)),
    "pgid": ("PGID", lambda p, _: str(p.group)),
    "sid": ("SID", lambda p, _: str(p.session)),
    "user": ("USER", lambda p, host: host.user(p.uid)),
    "uid": ("UID", lambda p, _: str(p.uid)),
    "gid": ("GID", lambda p, _: str(p.gid)),
    "comm": ("COMMAND", lambda p, _: p.name),
    "args": ("COMMAND", _COMMAND),
    "cmd": ("CMD", _COMMAND),
    "%cpu": ("%CPU", lambda p, _: f"{_share(p):.1f}"),
    "c": ("C", lambda p, _: str(min(99, int(_share(p))))),
    "%mem": ("%MEM", lambda p, host: f"{100 * p.resident / host.memory if host.memory else 0:.1f}"),
    "vsz": ("VSZ", lambda p, _: str(p.virtual)),
    "rss": ("RSS", lambda p, _: str(p.resident)),
    "tty": ("TTY", lambda p, _: p.tty),
    "tt": ("TT", lambda p, _: p.tty),
    "stat": ("STAT", lambda p, _: _stat(p)),
    "s": ("S", lambda p, _: p.state),
    "time": ("TIME", lambda p, _: _clock(p.cpu_seconds, days=True)),
    "bsdtime": ("TIME", lambda p, _: _bsd_time(p)),
    "etime": ("ELAPSED", lambda p, _: _elapsed(p)),
    "etimes": ("ELAPSED", lambda p, _: str(int(p.elapsed))),
    "stime": ("STIME", _when),
    "bsdstart": ("START", _when),
    "lstart": ("STARTED", lambda p, _: time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(p.started))),
    "nlwp": ("NLWP", lambda p, _: str(p.threads)),
    "ni": ("NI", lambda p, _: str(p.nice)),
    "pri": ("PRI", lambda p, _: str(39 - p.priority)),
}  # fmt: skip
_ALIASES = {
    "command": "args", "pcpu": "%cpu", "pmem": "%mem", "ucmd": "comm", "ucomm": "comm", "euser": "user", "uname": "user",
    "euid": "uid", "egid": "gid", "vsize": "vsz", "rssize": "rss", "rsz": "rss", "tname": "tty", "state": "s", "cputime": "time",
    "thcount": "nlwp", "nice": "ni", "start_time": "stime", "start": "stime", "pgrp": "pgid", "sess": "sid", "session": "sid",
}  # fmt: skip

_FULL = ("user=UID", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_PLAIN = ("pid", "tty", "time", "comm=CMD")
_BSD_USER = ("user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "bsdstart", "bsdtime", "args")
_BSD_PLAIN = ("pid", "tty", "stat", "bsdtime", "args")
_BSD_LONG = ("uid", "pid", "ppid", "pri", "ni", "vsz", "rss", "stat", "tty", "bsdtime", "args")


def columns(arguments: str) -> list[Column] | None:
    """The columns that ps's `arguments` ask for; None when they are of a kind that only ps itself understands.

    Raises InvalidInput when they leave out the PID. Source: ContainerTop.
    """
    chosen: list[str] = []
    flags = ""
    words = arguments.split()
    while words:
        word = words.pop(0)
        before, sign, attached = word.lstrip("-").partition("o")
        if word.startswith("--"):
            return None
        if sign and set(before) <= set("aAex"):
            listed = attached or (words.pop(0) if words else "")
            chosen += [name for name in listed.split(",") if name]
        else:
            flags += word
    wanted = chosen or _standard(flags)
    found: list[Column] = []
    for name in wanted or ():
        keyword, sign, heading = name.partition("=")
        column = COLUMNS.get(_ALIASES.get(keyword.lower(), keyword.lower()))
        if column is None:
            return None
        found.append((heading, column[1]) if sign else column)
    if not wanted:
        return None
    if not any(heading == "PID" for heading, _ in found):
        raise InvalidInput("Couldn't find PID field in ps output")
    return found


def _standard(flags: str) -> tuple[str, ...] | None:
    letters = set(flags) - {"-"}
    if not letters <= set("aAexfuwl"):
        return None
    if flags.startswith("-") and "u" not in letters:
        return None if "l" in letters else _FULL if "f" in letters else _PLAIN
    return (
        None
        if "f" in letters
        else _BSD_USER
        if "u" in letters
        else _BSD_LONG
        if "l" in letters
        else _BSD_PLAIN
    )


def table(processes: Iterable[Process], wanted: list[Column], host: Host) -> dict[str, Any]:
    """The answer of ContainerTop."""
    return {
        "Titles": [heading for heading, _ in wanted],
        "Processes": [[value(process, host) for _, value in wanted] for process in processes],
    }


def read(pids: Iterable[int]) -> list[Process]:
    """What /proc says of each that is still there, by pid."""
    ticks = os.sysconf("SC_CLK_TCK")
    page_kib = os.sysconf("SC_PAGE_SIZE") // 1024
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    booted = time.time() - uptime
    found = []
    for pid in sorted(pids):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                stat = file.read()
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read(65536)
            owner = os.stat(f"/proc/{pid}")
        except OSError:
            continue
        found.append(parse(pid, stat, line, (owner.st_uid, owner.st_gid), ticks, page_kib, uptime, booted))
    return found


def parse(
    pid: int,
    stat: bytes,
    line: bytes,
    owner: tuple[int, int],
    ticks: int,
    page_kib: int,
    uptime: float,
    booted: float,
) -> Process:
    """One process from the content of its `stat` and `cmdline`. Pure."""
    head, _, tail = stat.rpartition(b")")
    fields = tail.split()  # from field 3, state
    started = int(fields[19]) / ticks
    terminal = int(fields[4])
    major, minor = terminal >> 8 & 0xFFF, terminal & 0xFF | terminal >> 12 & 0xFFF00
    tty = (
        "?" if not terminal else f"pts/{minor + (major - 136) * 256}" if 136 <= major < 144 else f"tty{minor}"
    )
    return Process(
        pid=pid, parent=int(fields[1]), group=int(fields[2]), session=int(fields[3]), uid=owner[0], gid=owner[1],
        state=fields[0].decode("ascii", "replace"), name=head.partition(b"(")[2].decode("utf-8", "replace"),
        arguments=line.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace"), tty=tty,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / ticks, elapsed=max(0.0, uptime - started),
        started=booted + started, virtual=int(fields[20]) // 1024, resident=int(fields[21]) * page_kib,
        threads=int(fields[17]), nice=int(fields[16]), priority=int(fields[15]),
        foreground=bool(terminal) and int(fields[5]) == int(fields[2]), locked=False,
    )  # fmt: skip


def user_name(uid: int) -> str:
    """The host's name of `uid`, else its number; the number too when the name is longer than ps's column."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else name[:7] + "+"


def host_ps(job: dict[str, Any], port: Any) -> dict[str, Any]:
    """In a worker: the host's ps, its rows restricted to the container's pids. Raises EngineFailure."""
    try:
        done = subprocess.run(["ps", *job["arguments"]], capture_output=True, timeout=20, check=False)
    except FileNotFoundError as error:
        raise EngineFailure("error running ps: the host has no ps program") from error
    except subprocess.TimeoutExpired as error:
        raise EngineFailure("error running ps: it does not end") from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode or not lines:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EngineFailure(f"ps: {reason[0] if reason else f'exit status {done.returncode}'}")
    titles = lines[0].split()
    if "PID" not in titles:
        raise EngineFailure("Couldn't find PID field in ps output")
    at, pids = titles.index("PID"), {str(pid) for pid in job["pids"]}
    rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
    return {"Titles": titles, "Processes": [row for row in rows if len(row) > at and row[at] in pids]}
