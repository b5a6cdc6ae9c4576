"""What the child of a shim does between fork and execve, step by step from its plan.

`become_container` makes a new contained process, `become_exec` one more in a container that runs. Neither returns. A
failure goes home through the Report as a typed message; success is that the Report's socket closed with execve.
"""

from __future__ import annotations

import os

from ketchd.kernel import lockdown, signals
from ketchd.kernel.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    set_domainname,
    set_hostname,
    setns,
    unshare,
)
from ketchd.sandbox import enterdevices, enterprocess, enterroot, init, remapped
from ketchd.sandbox.failures import LaunchError, as_launch_error, reason
from ketchd.sandbox.netlinkmessages import send_messages
from ketchd.sandbox.report import Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ketch_wire.launch import LaunchPlan, ProcessPlan
    from ketchd.sandbox.heldlayers import Layers

_KINDS = {
    "network": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "cgroup": CLONE_NEWCGROUP,
}  # fmt: skip
_ALL = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP
Stdio = tuple[int, int, int]


def become_container(
    plan: LaunchPlan, donors: dict[str, int], layers: Layers, stdio: Stdio | None, report: Report
) -> NoReturn:
    """Be `plan`'s process. stdio: the shim's pipes, None for a terminal (then its master goes to the shim).

    donors: pidfds of the processes whose namespaces are joined, by kind; their pids mean nothing in a new pid namespace.
    layers: how to open its layers; what its device policy would keep it from is open.

    The caller is the first process of its pid namespace, if that is new.
    """
    try:
        _start_clean({*(stdio or ()), *donors.values(), *layers.fds(), report.fileno()})
        _container(plan, donors, layers, stdio, report)
    except BaseException as error:
        report.failed(as_launch_error(error, "error during container init"))
        os._exit(1)


def become_exec(
    process: ProcessPlan,
    cgroups: tuple[str, ...],
    container: int,
    stdio: Stdio | None,
    report: Report,
    *,
    user: bool = False,
) -> NoReturn:
    """Be one more process beside the one that the pidfd `container` names; `user`: which is in a user namespace."""
    try:
        _start_clean({container, report.fileno(), *(stdio or ())})
        enterprocess.set_oom_score(process.oom_score_adj, report)
        enterprocess.join_cgroups(cgroups)
        setns(container, _ALL | (CLONE_NEWUSER if user else 0))
        if user:
            remapped.become_root()
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        who = enterprocess.identity(root, process)
        if stdio is None:
            master, slave = enterdevices.open_terminal_inside(root, process.console_size)
            report.say({"terminal": True}, master)
            os.close(master)
            stdio = (slave, slave, slave)
        else:
            stdio = enterdevices.with_null(root, stdio)
        enterprocess.take_stdio(stdio, who, process.tty)
        enterprocess.execute(root, process, who, report)
    except BaseException as error:
        report.failed(as_launch_error(error, "error executing setns process"))
        os._exit(1)


def _start_clean(keep: set[int]) -> None:
    """Nothing of the shim: its session, its open files, its signals."""
    enterprocess.die_with_parent()
    lockdown.close_all_but({fd for fd in keep if fd >= 0} | {0, 1, 2})
    signals.default(*signals.IGNORED_BY_US)
    os.setsid()
    os.umask(0o022)


def _container(
    plan: LaunchPlan, donors: dict[str, int], layers: Layers, stdio: Stdio | None, report: Report
) -> NoReturn:
    process = plan.process
    prepared = None
    if plan.uid_map:
        layers.close()
        prepared = remapped.receive(report)  # the shim has seen to its ids and cgroups
        remapped.become_root()
    else:
        enterprocess.set_oom_score(process.oom_score_adj, report)
        enterprocess.join_cgroups(plan.cgroup.join)
        try:
            layers.open(plan.root.layers)
        except OSError as error:
            raise as_launch_error(error, "error preparing rootfs") from error
    _enter_namespaces(plan, donors)
    report.say({"namespaces": True})
    try:
        lockdown.new_session_keyring(f"_ses.{plan.id}")
    except OSError:
        pass  # no keyrings in this kernel, or none left: then the process keeps the daemon's empty one
    root = enterroot.build(plan, layers.opened, prepared)
    layers.close()
    if plan.namespaces.get("uts") == "new":
        if plan.hostname:
            set_hostname(plan.hostname)
        if plan.domainname:
            set_domainname(plan.domainname)
    who = enterprocess.identity(root.fd, process)
    enterprocess.make_working_directory(root.fd, process.cwd)
    if stdio is None:
        master, slave = enterdevices.open_terminal(root.devpts, process.console_size)
        report.say({"terminal": True}, master)
        os.close(master)
        enterdevices.bind_console(root.fd, slave)
        stdio = (slave, slave, slave)
    else:
        stdio = enterdevices.with_null(root.fd, stdio)
    report.wait_for_go()
    try:
        send_messages(plan.netlink)
    except OSError as error:
        raise as_launch_error(error, "failed to set up container networking") from error
    enterroot.write_sysctls(root, plan)
    enterroot.restrict(root, plan)
    enterroot.pivot(root)
    enterprocess.take_stdio(stdio, who, process.tty)
    if process.init:
        signals.block_all()
        child = os.fork()
        if child:
            enterprocess.give_up_privileges(process, who)
            init.serve(child, process.argv)
        os.setpgid(0, 0)
        if process.tty:
            os.tcsetpgrp(0, os.getpgrp())  # while SIGTTOU is still blocked: it would stop us
        signals.unblock_all()
    enterprocess.execute(root.fd, process, who, report)


def _enter_namespaces(plan: LaunchPlan, donors: dict[str, int]) -> None:
    """Join what is another's, then make the rest in one call. The pid namespace was chosen by the shim before the fork."""
    new = CLONE_NEWNS
    for kind, flag in _KINDS.items():
        wanted = plan.namespaces.get(kind, "host")
        if wanted == "new":
            new |= flag
        elif kind in donors:
            join_namespace(donors[kind], flag, kind, wanted)
    try:
        unshare(new)
    except OSError as error:
        raise as_launch_error(error, "error creating namespaces") from error


def open_donors(plan: LaunchPlan) -> dict[str, int]:
    """A pidfd for each kind that is `pid:N` in the plan. Raises LaunchError."""
    donors: dict[str, int] = {}
    for kind, wanted in plan.namespaces.items():
        if wanted.startswith("pid:"):
            try:
                donors[kind] = os.pidfd_open(int(wanted[4:]))
            except OSError as error:
                raise _cannot_join(kind, wanted, error) from error
    return donors


def join_namespace(donor: int, flag: int, kind: str, wanted: str) -> None:
    """Join one namespace of the process that the pidfd `donor` names. Raises LaunchError."""
    try:
        setns(donor, flag)
    except OSError as error:
        raise _cannot_join(kind, wanted, error) from error


def _cannot_join(kind: str, wanted: str, error: OSError) -> LaunchError:
    return LaunchError(f"cannot join the {kind} namespace of process {wanted[4:]}: {reason(error)}")
