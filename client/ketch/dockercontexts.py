"""docker's contexts: names for engines, kept below the configuration directory. Only read here; `docker context` makes them. Acting.

contexts/meta/SHA256-OF-NAME/meta.json, and contexts/tls/SHA256-OF-NAME/docker/{ca,cert,key}.pem.
Source: docker/cli cli/command/cli.go resolveContextName, cli/context/store.
"""

from __future__ import annotations

import json
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
    return next((environment[name] for name in HOST_VARIABLES if environment.get(name)), "")


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
    import hashlib  # of the few that have contexts

    number = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    path = os.path.join(config_directory, "contexts", "meta", number, "meta.json")
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read())
        docker = found["Endpoints"]["docker"]
        host, skips = str(docker["Host"]), bool(docker.get("SkipTLSVerify"))
    except FileNotFoundError:
        raise _unresolved(name, f"context not found: open {path}: no such file or directory") from None
    except OSError as error:
        raise _unresolved(name, f"open {path}: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise _unresolved(name, f"parsing {path}: {error}") from error
    except (KeyError, TypeError, AttributeError):
        raise _unresolved(name, "no docker endpoint") from None
    directory = os.path.join(config_directory, "contexts", "tls", number, "docker")
    if skips or os.path.isdir(directory):
        return Endpoint(host, Tls(directory, not skips))
    return Endpoint(host, None)


def _unresolved(name: str, reason: str) -> CommandFailed:
    return CommandFailed(
        f'Failed to initialize: unable to resolve docker endpoint: context "{name}": {reason}'
    )
