"""A socket that belongs to another network namespace, made without the process living there."""

from __future__ import annotations

import os
import socket

from ketchd.kernel.namespaces import CLONE_NEWNET, setns


def socket_inside(namespace: int, family: int) -> socket.socket:
    """A non-blocking TCP socket in the network namespace of the fd `namespace`.

    A network namespace is each thread's own, and a socket keeps the one it was made in: the calling thread enters it for
    one system call, between which and its way back no other code of ours runs in it. Raises OSError.
    Source: setns(2), network_namespaces(7).
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNET)
        try:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        finally:
            _come_back(own)
    finally:
        os.close(own)


def _come_back(own: int) -> None:
    """Or end: what a thread in a container's network does from then on, it does to that container.

    Only a kernel without memory for some bytes can refuse it. Containers outlive ketchd, and a service is started again.
    """
    try:
        setns(own, CLONE_NEWNET)
    except OSError as error:
        os.write(2, f"ketchd: cannot leave a container's network namespace: {error.strerror}\n".encode())
        os.abort()
