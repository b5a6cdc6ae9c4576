"""Mounting a chain of layers: the sandbox's own code, for the jobs of layer workers."""

from __future__ import annotations

from ketchd.sandbox.layermounts import mount_chain, mount_layer

__all__ = ["mount_chain", "mount_layer"]
