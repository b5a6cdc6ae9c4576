"""A socket that belongs to another network namespace, made without the process living there."""

from __future__ import annotations

import os
import socket

from ketchd.kernel.namespaces import CLONE_NEWNET, setns


def socket_inside(namespace: int, family: int) -> socket.socket:
    """A non-blocking TCP socket in the network namespace of the fd `namespace`.

    A network namespace is each thread's own, and a socket keeps the one it was made in: the calling thread enters it for
    one system call. Call it from a thread of its own: one that could not come back (Stranded) must end at once.
    Raises OSError. Source: setns(2), network_namespaces(7).
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNET)
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        finally:
            _come_back(own)
    finally:
        os.close(own)
    return made


class Stranded(OSError):
    """The thread is still in the other namespace."""


def _come_back(own: int) -> None:
    try:
        setns(own, CLONE_NEWNET)
    except OSError as error:
        raise Stranded(error.errno, error.strerror, "setns back") from error
