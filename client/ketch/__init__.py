"""ketch, the client: thin, the standard library only, and quick to start."""

from __future__ import annotations

__version__ = "0.1.0"
