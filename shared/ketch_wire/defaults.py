"""The names and numbers on which ketch and ketchd must agree."""

from __future__ import annotations

DEFAULT_SOCKET = "/run/ketch.sock"

KETCH_VERSION = "0.1.0"

# The newest Engine API version spoken, and the oldest accepted (skopeo asks for 1.22).
API_VERSION = "1.50"
MINIMUM_API_VERSION = "1.12"

# The Docker Engine whose behaviour the API follows. Clients compare it: it is what `/version` calls the engine's version.
ENGINE_VERSION = "28.2.2"

# ctrl-p ctrl-q: leaves a container with a terminal without ending it.
DETACH_KEYS = b"\x10\x11"
