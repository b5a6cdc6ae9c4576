"""config.json in Docker's shape: credentials per registry, in the file or in a helper program, and the user's settings. Acting.

The file is `DIRECTORY/config.json` (0600, directory 0700), replaced in one step; what we do not know in it stays.
Source: docker/cli cli/config; docker/docker-credential-helpers for the helpers' protocol.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from ketch.faults import CommandFailed, why
from ketch.replacing import replace_file

# Docker Hub is `docker.io` in names and this in files and requests.
HUB_KEY = "https://index.docker.io/v1/"
HUB_NAMES = frozenset({"docker.io", "index.docker.io"})

# A helper says so on standard output when it knows nothing of a server.
NOT_FOUND = "credentials not found in native keychain"
TOKEN_USER = "<token>"
HELPER_SECONDS = 60

Auth = dict[str, str]


def registry_key(host: str) -> str:
    """The key under which credentials of a registry host are kept."""
    return HUB_KEY if host in HUB_NAMES else host


def host_of(key: str) -> str:
    """The host of a stored key, which may be an address: `https://reg:5000/v1/` is `reg:5000`."""
    return key.removeprefix("http://").removeprefix("https://").partition("/")[0]


def domain_of(name: str) -> str:
    """The registry host in an image's name; `docker.io` when it names none. Source: distribution/reference."""
    first, slash, _ = name.partition("/")
    if not slash or (first != "localhost" and not set(first) & set(".:") and first.lower() == first):
        return "docker.io"
    return "docker.io" if first == "index.docker.io" else first


def encode_header(value: object) -> str:
    """Credentials as X-Registry-Auth and X-Registry-Config carry them."""
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


class ConfigFile:
    """The user's config.json, as read at start. problem: why it could not be read; it is never written over then."""

    def __init__(self, path: str, values: dict[str, Any], problem: str = "") -> None:
        self.path = path
        self.values = values
        self.problem = problem

    @classmethod
    def read(cls, path: str) -> ConfigFile:
        """A missing or empty file is an empty configuration; so is a wrong one, with a `problem`, as docker takes it."""
        try:
            with open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return cls(path, {})
        except OSError as error:
            return cls(path, {}, f"Error loading config file: open {path}: {why(error)}")
        try:
            values = json.loads(content) if content.strip() else {}
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            return cls(path, {}, f"Error parsing config file ({path}): {place}: {error.msg.lower()}")
        except ValueError:
            return cls(path, {}, f"Error parsing config file ({path}): not UTF-8")
        if not isinstance(values, dict):
            return cls(path, {}, f"Error parsing config file ({path}): not a JSON object")
        return cls(path, values)

    def setting(self, name: str) -> str:
        """A text among the settings (`detachKeys`, `psFormat`, …); empty when it is not set."""
        found = self.values.get(name)
        return found if isinstance(found, str) else ""

    @property
    def http_headers(self) -> dict[str, str]:
        """Headers that go with every request to the engine."""
        kept = self.values.get("HttpHeaders")
        if not isinstance(kept, dict):
            return {}
        return {str(key): str(value) for key, value in kept.items() if str(key).lower() != "user-agent"}

    def proxies(self, host: str, given: Mapping[str, str | None]) -> dict[str, str | None]:
        """`given` variables and those of the configured proxies, each in both cases. Source: docker/cli, ParseProxyConfig."""
        configured = self.values.get("proxies") or {}
        if not isinstance(configured, dict):
            return dict(given)
        chosen = configured.get(host) or configured.get("default") or {}
        merged: dict[str, str | None] = {}
        for key, name in (
            ("httpProxy", "HTTP_PROXY"),
            ("httpsProxy", "HTTPS_PROXY"),
            ("ftpProxy", "FTP_PROXY"),
            ("noProxy", "NO_PROXY"),
            ("allProxy", "ALL_PROXY"),
        ):
            if chosen.get(key):
                merged[name] = merged[name.lower()] = str(chosen[key])
        return {**merged, **given}

    def auth_for(self, host: str) -> Auth:
        """The credentials for a registry host, empty without any: its helper's, or the file's."""
        key = registry_key(host)
        helper = self._helper_for(key)
        if helper:
            return ask_helper(helper, key)
        auths = self._auths()
        if key in auths:
            return decode_auth(key, auths[key])
        for stored, entry in auths.items():
            if host_of(stored) == host_of(key):
                return decode_auth(stored, entry)
        return {}

    def all_auths(self) -> dict[str, Auth]:
        """The credentials of every registry that has some, for a build that may pull from any."""
        found = {key: decode_auth(key, entry) for key, entry in self._auths().items()}
        store = self.setting("credsStore")
        if store:
            found = {key: ask_helper(store, key) for key in list_helper(store)}
        helpers = self.values.get("credHelpers")
        for key, helper in (helpers if isinstance(helpers, dict) else {}).items():
            found[key] = ask_helper(str(helper), key)
        return {key: auth for key, auth in found.items() if auth}

    def is_kept_by_helper(self, host: str) -> bool:
        """Whether credentials of `host` go to a helper instead of the file."""
        return bool(self._helper_for(registry_key(host)))

    def store(self, host: str, auth: Auth) -> None:
        """Keep credentials (`username` and `password`, or `identitytoken`) for a registry host."""
        key = registry_key(host)
        helper = self._helper_for(key)
        entry: dict[str, str] = {}
        if helper:
            name, secret = auth.get("username", ""), auth.get("password", "")
            if auth.get("identitytoken"):
                name, secret = TOKEN_USER, auth["identitytoken"]
            told = json.dumps({"ServerURL": key, "Username": name, "Secret": secret})
            run_helper(helper, "store", told)
        else:
            text = f"{auth.get('username', '')}:{auth.get('password', '')}"
            if auth.get("username") or auth.get("password"):
                entry["auth"] = base64.b64encode(text.encode()).decode()
            if auth.get("identitytoken"):
                entry["identitytoken"] = auth["identitytoken"]
        self.values["auths"] = {**self._auths(), key: entry}
        self.save()

    def erase(self, host: str) -> None:
        """Forget the credentials of a registry host; of none it is no fault."""
        key = registry_key(host)
        helper = self._helper_for(key)
        if helper:
            run_helper(helper, "erase", key)
        auths = self._auths()
        if key in auths:
            self.values["auths"] = {stored: entry for stored, entry in auths.items() if stored != key}
            self.save()

    def has(self, host: str) -> bool:
        """Whether there are credentials for a registry host."""
        return registry_key(host) in self._auths()

    def save(self) -> None:
        """Replace the file in one step; one that is a link is replaced where it points to. Raises CommandFailed, OSError."""
        if self.problem:
            raise CommandFailed(
                f"{self.path} is left as it is, since it cannot be read: correct or remove it"
            )
        path = os.path.realpath(self.path)
        directory = os.path.dirname(path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        content = json.dumps(self.values, indent="\t", ensure_ascii=False)
        replace_file(path, content.encode("utf-8", "backslashreplace"), 0o600)

    def _auths(self) -> dict[str, Any]:
        kept = self.values.get("auths")
        return kept if isinstance(kept, dict) else {}

    def _helper_for(self, key: str) -> str:
        helpers = self.values.get("credHelpers")
        if isinstance(helpers, dict):
            for name in (key, host_of(key)):
                if helpers.get(name):
                    return str(helpers[name])
        return self.setting("credsStore")


def decode_auth(key: str, entry: Any) -> Auth:
    """An entry of `auths` as requests carry it. Raises CommandFailed when it cannot be read."""
    if not isinstance(entry, dict):
        return {}
    auth = {
        name: str(entry[name])
        for name in ("username", "password", "identitytoken", "registrytoken")
        if entry.get(name)
    }
    if entry.get("auth"):
        try:
            text = base64.b64decode(entry["auth"], validate=True).decode()
        except ValueError as error:
            raise CommandFailed(f"invalid auth configuration file: entry of {key}: {error}") from error
        name, colon, password = text.partition(":")
        if not colon:
            raise CommandFailed(f"invalid auth configuration file: entry of {key} has no user")
        auth["username"], auth["password"] = name, password.rstrip("\0")
    return {**auth, "serveraddress": key} if auth else {}


def ask_helper(suffix: str, key: str) -> Auth:
    """What a helper keeps for `key`; empty when it knows nothing. Raises CommandFailed."""
    answer = run_helper(suffix, "get", key)
    if answer is None:
        return {}
    try:
        told = json.loads(answer)
        name, secret = str(told["Username"]), str(told["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(
            f"error getting credentials - docker-credential-{suffix} gave no credentials"
        ) from error
    if name == TOKEN_USER:
        return {"identitytoken": secret, "serveraddress": key}
    return {"username": name, "password": secret, "serveraddress": key}


def list_helper(suffix: str) -> list[str]:
    """The keys a helper has credentials for."""
    answer = run_helper(suffix, "list", "unused") or ""
    try:
        return list(json.loads(answer or "{}"))
    except (ValueError, TypeError) as error:
        raise CommandFailed(f"error listing credentials - docker-credential-{suffix}: {error}") from error


def run_helper(suffix: str, verb: str, said: str) -> str | None:
    """Run `docker-credential-SUFFIX VERB`, `said` on its input. None when it knows no credentials.

    Raises CommandFailed with what it printed, when it is missing, and when it takes longer than a minute.
    """
    import subprocess

    program = f"docker-credential-{suffix}"
    gerund = {"get": "getting", "store": "storing", "erase": "erasing", "list": "listing"}[verb]
    failed = f"error {gerund} credentials - err: "
    try:
        done = subprocess.run(
            [program, verb],
            input=said.encode(),
            stdout=subprocess.PIPE,
            timeout=HELPER_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(
            f'{failed}exec: "{program}": executable file not found in $PATH, out: ``'
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{failed}{program} does not answer, out: ``") from error
    except OSError as error:
        raise CommandFailed(f"{failed}{program}: {error.strerror}, out: ``") from error
    out = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return out
    if verb in ("get", "erase") and out == NOT_FOUND:
        return None
    raise CommandFailed(f"{failed}exit status {done.returncode}, out: `{out}`")
