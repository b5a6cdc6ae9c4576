"""From a prepared place to the program: limits, directory, user, capabilities, filter, execve. Shared by start and exec.

The order is what security needs: the seccomp filter comes last, when nothing but capset and execve follows.
"""

from __future__ import annotations

import errno
import os

from ketchd.kernel import capabilities, limits, lockdown, pty, signals
from ketchd.kernel.openat import open_in_root
from ketchd.kernel.process import PR_SET_KEEPCAPS, PR_SET_PDEATHSIG, prctl
from ketchd.sandbox import lookup
from ketchd.sandbox.failures import PLAIN, LaunchError, not_executable, reason
from ketchd.sandbox.report import Report
from ketchd.sandbox.targets import is_directory, place, read_regular
from ketchd.sandbox.users import Identity, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ketch_wire.launch import ProcessPlan

_FILE_LIMIT = 8 * 1024 * 1024
# What the daemon was started with, where the launcher has raised it for its shims.
INHERITED_LIMITS: dict[str, tuple[int, int]] = {}
EXEC_FAILED = 255  # what runc ends with when execve itself refuses


def die_with_parent() -> None:
    """SIGKILL when the shim dies: a process that nobody supervises must not go on."""
    prctl(PR_SET_PDEATHSIG, signals.SIGKILL)


def set_oom_score(value: int, report: Report) -> None:
    """oom_score_adj of the caller. What only a privileged daemon may lower stays, with a warning."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
            score.write(str(value).encode())
    except OSError as error:
        report.warn(f"oom_score_adj {value} was not set: {reason(error)}")


def join_cgroups(directories: tuple[str, ...] | list[str]) -> None:
    """Move the caller into each version 1 directory; it was born in a version 2 one (see kernel.clone).

    "0" to `tasks` moves one thread, which is all there is, without the lock that makes cgroup.procs wait for 5 to 20 ms.
    Raises LaunchError.
    """
    for directory in directories:
        try:
            try:
                fd = os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)
        except OSError as error:
            raise LaunchError(
                f"unable to apply cgroup configuration: failed to join {directory}: {reason(error)}"
            ) from error


def identity(root: int, process: ProcessPlan) -> Identity:
    """Who the process is by the container's own files. Raises LaunchError."""
    passwd = read_regular(root, "/etc/passwd", _FILE_LIMIT)
    group = read_regular(root, "/etc/group", _FILE_LIMIT)
    return resolve(process.user, process.groups, passwd, group)


def check_working_directory(root: int, path: str) -> None:
    """dockerd's own refusal of a file of the image in the way, ahead of every mount and of runc. Raises LaunchError.

    Source: moby container_unix.go, SetupWorkingDirectory.
    """
    try:
        there = open_in_root(root, path, os.O_PATH)
    except NotADirectoryError as error:
        raise LaunchError(f"lstat {path}: {reason(error)}", kind=PLAIN) from error
    except OSError:
        return  # there is none yet
    try:
        if not is_directory(there):
            raise LaunchError(f"Cannot mkdir: {path} is not a directory", kind=PLAIN)
    finally:
        os.close(there)


def make_working_directory(root: int, path: str) -> None:
    """The working directory, made root's when it is missing. Raises LaunchError; of a mounted file in the way in runc's words."""
    try:
        there = place(root, path, directory=True)
        try:
            if not is_directory(there):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        finally:
            os.close(there)
    except NotADirectoryError as error:
        raise not_executable(error, f"mkdir {_file_in_the_way(root, path)}: {reason(error)}") from error
    except OSError as error:
        raise _no_directory(path, error) from error


def _file_in_the_way(root: int, path: str) -> str:
    """The part of `path`, up to the whole of it, at which a mkdir -p ends. Source: Go's os.MkdirAll."""
    parts = path.strip("/").split("/")
    for length in range(1, len(parts)):
        above = "/" + "/".join(parts[:length])
        try:
            os.close(open_in_root(root, above, os.O_PATH | os.O_DIRECTORY))
        except OSError:
            return above
    return path


def enter_working_directory(root: int, path: str) -> bool:
    """Go there by descriptor, inside the root only (CVE-2024-21626); False when the caller may not yet.

    Magic links (/proc/self/fd/N) are not followed. Raises LaunchError.
    """
    try:
        fd = open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
        try:
            os.fchdir(fd)
        finally:
            os.close(fd)
        here = os.getcwd()
    except OSError as error:
        if error.errno == errno.EACCES:
            return False
        raise _no_directory(path, error) from error
    if not here.startswith("/"):
        raise LaunchError(
            f'chdir to cwd ("{path}") set in config.json failed: it lies outside of the container'
        )
    return True


def _no_directory(path: str, error: OSError) -> LaunchError:
    return not_executable(error, f'chdir to cwd ("{path}") set in config.json failed: {reason(error)}')


def take_stdio(stdio: tuple[int, int, int], who: Identity, terminal: bool) -> None:
    """0, 1 and 2; owned by the user, so that /dev/stdout can be opened again. Raises OSError."""
    for fd in set(stdio):
        info = os.fstat(fd)
        if info.st_uid != who.uid and info.st_rdev != os.makedev(1, 3):
            try:
                os.fchown(fd, who.uid, info.st_gid)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                    raise
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    if terminal:
        pty.make_controlling(0)


def set_limits(process: ProcessPlan, report: Report) -> None:
    """rlimits. One that only CAP_SYS_RESOURCE may raise is lowered to the hard limit there is, with a warning."""
    for name, (soft, hard) in (INHERITED_LIMITS | process.rlimits).items():
        try:
            limits.set_limit(name, soft, hard)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise LaunchError(f"error setting rlimit type {name}: {reason(error)}") from error
            _, most = limits.get_limit(name)
            limits.set_limit(name, _at_most(soft, most), _at_most(hard, most))
            report.warn(f"ulimit {name}={soft}:{hard} lowered to the daemon's hard limit {most}")


def _at_most(value: int, most: int) -> int:
    if most == limits.UNLIMITED:
        return value
    return most if value == limits.UNLIMITED else min(value, most)


def give_up_privileges(process: ProcessPlan, who: Identity) -> None:
    """The user and capabilities of the program, for our own PID 1 beside it (`--init`). Raises LaunchError.

    Without the seccomp filter: it runs nothing of the image, and a profile made for the program need not suit it.
    """
    wanted = capabilities.mask(process.capabilities) & capabilities.permitted()
    capabilities.drop_bounding(wanted)
    _become_user(who, keep=False)
    final = wanted if who.uid == 0 else 0
    try:
        capabilities.capset(final, final)
        if process.no_new_privileges:
            lockdown.no_new_privileges()
    except OSError as error:
        raise LaunchError(f"unable to apply caps: {reason(error)}") from error
    die_with_parent()  # a change of user took it away


def execute(root: int, process: ProcessPlan, who: Identity, report: Report) -> NoReturn:
    """Become the program. Raises LaunchError for what makes the start fail; if execve itself refuses, ends with 255.

    root: O_PATH fd of `/`. Every other descriptor from 3 on is closed by execve.
    """
    lockdown.close_on_exec_from(3)
    there = enter_working_directory(root, process.cwd)
    env = lookup.with_home(process.env, who.home)
    wanted = capabilities.mask(process.capabilities)
    have = capabilities.permitted()
    wanted &= have
    set_limits(process, report)
    capabilities.drop_bounding(wanted)
    filtered_as_admin = bool(process.seccomp) and not process.no_new_privileges
    admin = 1 << capabilities.CAP_SYS_ADMIN if filtered_as_admin else 0
    _become_user(who, keep=bool(admin))
    final = wanted if who.uid == 0 else 0
    try:
        capabilities.capset(final, final | admin & have)
    except OSError as error:
        raise LaunchError(f"unable to apply caps: {reason(error)}") from error
    if not there and not enter_working_directory(root, process.cwd):
        raise _no_directory(process.cwd, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    program = lookup.find_program(process.argv[0], lookup.value_of(env, "PATH"))
    _refuse_magic_link(root, process, program)
    argv = [os.fsencode(word) for word in process.argv]
    environment = {os.fsencode(key): os.fsencode(value) for key, _, value in (e.partition("=") for e in env)}
    die_with_parent()  # a change of user took it away
    report.say({"ready": True})  # whatever execve says from here on, the start has succeeded
    _filter(process, final, admin & have)
    try:
        os.execve(program, argv, environment)
    except OSError as error:
        os.write(2, f"exec {program}: {reason(error)}\n".encode())
    os._exit(EXEC_FAILED)


def _refuse_magic_link(root: int, process: ProcessPlan, program: str) -> None:
    """/proc/self/exe is our own interpreter until execve: by no name may it become the program (CVE-2019-5736)."""
    path = program if program.startswith("/") else os.path.join(os.getcwd(), program)
    try:
        os.close(open_in_root(root, path, os.O_PATH))
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = f'exec: "{process.argv[0]}": permission denied'
            raise LaunchError(message, code=126, status=400) from error


def _become_user(who: Identity, keep: bool) -> None:
    try:
        if keep and who.uid != 0:
            prctl(PR_SET_KEEPCAPS, 1)
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        raise LaunchError(f"unable to setup user: {reason(error)}") from error


def _filter(process: ProcessPlan, final: int, admin: int) -> None:
    try:
        if process.no_new_privileges:
            lockdown.no_new_privileges()
        if not process.seccomp:
            return
        if admin:
            capabilities.capset(admin, final | admin)
        lockdown.install_seccomp(process.seccomp)
        if admin:
            capabilities.capset(final, final)
    except OSError as error:
        raise LaunchError(f"unable to init seccomp: {reason(error)}") from error
