"""Loop devices that free themselves with their last user. Source: loop(4)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_SET_FD, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C00, 0x4C0A, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_BUSY = (errno.EBUSY, errno.ENXIO, errno.ENOENT)


def attach(path: str) -> tuple[int, str]:
    """A read-only autoclear loop device over `path`: (fd, device path). Mount it, then close the fd. Raises OSError."""
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(64):  # another process may take the free one between the two calls
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                try:
                    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno in _BUSY:
                        continue
                    raise
                # struct loop_config: fd, block_size, struct loop_info64 (232 bytes, lo_flags at 52), 8 reserved words
                info = bytearray(232)
                struct.pack_into("=I", info, 52, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
                config = struct.pack("=II", backing, 512) + bytes(info) + bytes(64)
                try:
                    fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                    return fd, device
                except OSError as error:
                    os.close(fd)
                    if error.errno not in _BUSY:
                        raise
            raise OSError(errno.EBUSY, "no free loop device", path)
        finally:
            os.close(control)
    finally:
        os.close(backing)
