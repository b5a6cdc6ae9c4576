"""The launcher: a process with everything imported that a shim needs, which forks one whenever it is handed a socket.

Single-threaded; it reads no plan and keeps no state but the layers that are mounted (`heldlayers`), so there is little that can
go wrong in it. A packet on its control socket is `s` with one descriptor, a new shim's connection to ketchd, or `f` and the
names of layers to let go of, with a descriptor that is closed when that is done. It ends with the control socket.
"""

from __future__ import annotations

import _socket
import gc
import os

from ketchd.kernel import limits, lockdown, memory, rights, signals
from ketchd.kernel.ownroot import in_chroot
from ketchd.kernel.process import PR_SET_DUMPABLE, command_line_area, prctl, set_name
from ketchd.sandbox import enter, enterprocess, heldlayers, init  # noqa: F401  (enter: imported before the fork, for all shims at once)
from ketchd.shim import gaps
from ketchd.shim.rehearsal import rehearse
from ketchd.shim.shim import Shim


def main(control: int) -> None:
    """Serve the control socket until ketchd is gone."""
    channel = _socket.socket(fileno=control)
    prctl(PR_SET_DUMPABLE, 0)  # nothing of a shim is reachable by way of /proc from inside (CVE-2019-5736)
    set_name("ketch-launcher")
    init.COMMAND_LINE.append(command_line_area())
    signals.reset_all()
    signals.ignore(*signals.IGNORED_BY_LAUNCHER)
    os.setsid()
    os.chdir("/")
    in_chroot()  # looked once, known in every fork
    rehearse()
    held = heldlayers.hold()
    signals.ignore(signals.SIGCHLD)  # shims are not waited for
    lockdown.close_all_but({0, 1, 2, control} | ({held} if held >= 0 else set()))
    _allow_many_files()
    memory.note_instructions()
    gc.collect()
    gaps.close()
    gc.freeze()
    while packet := _receive(channel):
        what, handed = packet
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # no process can be made: ketchd sees it by the end of its connection
        if pid == 0:
            channel.close()
            if what[:1] == b"s":
                _shim(handed, held)
            _forget(what, held)
        if handed >= 0:
            os.close(handed)


def _allow_many_files() -> None:
    """A shim holds a socket for each published port, and ranges of thousands exist. Containers get what the daemon had."""
    soft, hard = limits.get_limit("nofile")
    enterprocess.INHERITED_LIMITS["nofile"] = (soft, hard)
    limits.set_limit("nofile", hard, hard)


def _receive(channel: _socket.socket) -> tuple[bytes, int] | None:
    """(what is asked, the descriptor that came with it or -1), None at the end."""
    data, ancillary, _, _ = channel.recvmsg(heldlayers.PACKET, rights.room_for(1), _socket.MSG_CMSG_CLOEXEC)
    return (data, next(iter(rights.taken(ancillary)), -1)) if data else None


def _forget(what: bytes, held: int) -> None:
    """Let go of layers; never returns. A process of its own, since unmounting waits for the kernel."""
    try:
        if what[:1] == b"f" and held >= 0:
            heldlayers.forget(what[1:].decode().split(), held)
    finally:
        os._exit(0)


def _shim(fd: int, held: int) -> None:
    """Be a shim; never returns."""
    try:
        signals.ignore(*signals.IGNORED_BY_US)
        os.setsid()
        set_name("ketch-shim")
        signals.default(signals.SIGCHLD)
        Shim(_socket.socket(fileno=fd), held).run()
        os._exit(0)
    except BaseException as error:
        _complain(error)
    finally:
        os._exit(1)


def _complain(error: BaseException) -> None:
    """A shim's defect goes to the daemon's standard error, with its place."""
    import traceback

    os.write(2, ("ketch-shim: " + "".join(traceback.format_exception(error))).encode())
