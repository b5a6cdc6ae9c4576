"""Which engine a command speaks to: docker's order of hosts and contexts. Acting.

Source: docker/cli cli/command/cli.go resolveContextName.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ketch.engine import Tls
from ketch.faults import CommandFailed

DEFAULT = "default"
HOST_VARIABLES = ("KETCH_HOST", "DOCKER_HOST")


class Endpoint(NamedTuple):
    """Where a context's engine is. tls: None for none."""

    host: str
    tls: Tls | None


def host_of(environment: Mapping[str, str]) -> str:
    """The host that the environment names, or "". Pure."""
    return environment.get(host_variable(environment), "")


def host_variable(environment: Mapping[str, str]) -> str:
    """The variable that names the host, or "". Pure."""
    return next((name for name in HOST_VARIABLES if environment.get(name)), "")


def choose(asked: str, host: str, environment: Mapping[str, str], current: str) -> str:
    """The context's name: what was typed, then any host, DOCKER_CONTEXT, the configuration's `currentContext`. Pure.

    `default` is the environment's host, or else the default socket. Raises CommandFailed for a context and a host together.
    """
    if asked and host:
        raise CommandFailed("conflicting options: cannot specify both --host and --context")
    if asked:
        return asked
    if host or host_of(environment):
        return DEFAULT
    return environment.get("DOCKER_CONTEXT") or current or DEFAULT


def endpoint(config_directory: str, name: str) -> Endpoint:
    """The engine of the context `name`. Raises CommandFailed in docker's words."""
    from ketch.contextstore import DOCKER, ContextStore  # for the few that have contexts

    store = ContextStore(config_directory)
    try:
        stored = store.read(name)
        host, skips = stored.docker()
    except CommandFailed as error:
        reason = error.message
        if not reason.startswith(f'context "{name}": '):
            reason = f'context "{name}": {reason}'
        raise CommandFailed(f"Failed to initialize: unable to resolve docker endpoint: {reason}") from error
    if skips or DOCKER in stored.tls:
        return Endpoint(host, Tls(os.path.join(store.tls_directory(name), DOCKER), not skips))
    return Endpoint(host, None)
