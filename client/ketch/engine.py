"""The engine as commands see it: where it listens, which API version is spoken, its errors as faults. Acting."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ketch import __version__
from ketch.faults import CommandFailed, EngineAnswer, EngineAway, why
from ketch.hosts import split_tcp
from ketch.http import Answer, Body, Connection, Link
from ketch_wire.defaults import API_VERSION, DEFAULT_SOCKET

if TYPE_CHECKING:
    import ssl

Query = Mapping[str, Any]

# Without a version in its answer to a ping an engine is older than negotiation.
ASSUMED_VERSION = "1.24"


def version_key(text: str) -> tuple[int, ...]:
    """`1.41` in an order that puts 1.9 before it."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


class Tls(NamedTuple):
    """How TCP is secured. directory: of ca.pem, cert.pem and key.pem, each where it is there. verify: the engine's certificate.

    named: files that lie elsewhere, by the name that they have in the directory.
    """

    directory: str
    verify: bool
    named: tuple[tuple[str, str], ...] = ()

    def path(self, name: str) -> str:
        """Where ca.pem, cert.pem or key.pem is, or would be."""
        return dict(self.named).get(name) or os.path.join(self.directory, name)

    def files(self) -> dict[str, bytes]:
        """Those that are there, by name. Raises OSError for one that cannot be read."""
        found = {}
        for name in ("ca.pem", "cert.pem", "key.pem"):
            path = self.path(name)
            if os.path.exists(path):
                with open(path, "rb") as file:
                    found[name] = file.read()
        return found


def tls_of_environment(config_directory: str) -> Tls | None:
    """What DOCKER_TLS_VERIFY, DOCKER_TLS and DOCKER_CERT_PATH say; None for plain TCP."""
    verify = bool(os.environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not os.environ.get("DOCKER_TLS"):
        return None
    return Tls(os.environ.get("DOCKER_CERT_PATH") or config_directory, verify)


class Engine:
    """Requests to one engine at `host` (unix://PATH, tcp://ADDRESS:PORT or ssh://USER@HOST). Connects when first asked."""

    def __init__(
        self, host: str = "", headers: Mapping[str, str] | None = None, tls: Tls | None = None
    ) -> None:
        self.host = host or f"unix://{DEFAULT_SOCKET}"
        self.tls = tls
        scheme, _, place = self.host.partition("://")
        _, slash, path = place.partition("/")
        self._base = "" if scheme in ("unix", "ssh") else (slash + path).rstrip("/")
        self._headers = dict(headers or {})
        self._idle: list[Connection] = []
        self._version = os.environ.get("DOCKER_API_VERSION", "").lstrip("v")
        self.server = ""
        self.engine_version = self._version

    @property
    def most_at_once(self) -> int:
        """How many requests may be made together. sshd turns logins away where ten are under way (MaxStartups)."""
        return 8 if self.host.startswith("ssh://") else 50

    @property
    def version(self) -> str:
        """The API version spoken: the engine's or ours, whichever is lower. Asks once."""
        if not self._version:
            self.ping()
        return self._version

    def ping(self) -> None:
        """Ask which API version the engine has."""
        with self._exchange("HEAD", "/_ping") as answer:
            answer.read()
            told = answer.headers.get("api-version", "") or ASSUMED_VERSION
            self.server = answer.headers.get("server", "")
        self.engine_version = told
        if not self._version:
            self._version = min(told, API_VERSION, key=version_key)

    def at_least(self, version: str) -> bool:
        """Whether the spoken API version is `version` or newer."""
        return version_key(self.version) >= version_key(version)

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: Body = None,
        send: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. `send` is sent as JSON. Raises EngineAnswer for a status of 400 and more, EngineAway.

        The caller reads and closes the answer.
        """
        target = f"/v{self.version}{quote(path, PATH_SAFE)}"
        encoded = encode_query(query)
        merged = dict(headers or {})
        if send is not None:
            body = json.dumps(send, separators=(",", ":")).encode() + b"\n"
            merged.setdefault("Content-Type", "application/json")
        answer = self._exchange(method, f"{target}?{encoded}" if encoded else target, merged, body)
        if answer.status >= 400:
            with answer:
                raise EngineAnswer(answer.status, error_text(answer, method, path))
        return answer

    def json(
        self, method: str, path: str, query: Query | None = None, *, send: Any = None, **given: Any
    ) -> Any:
        """One request whose answer is JSON; None for an empty one. Raises EngineAnswer for what is no JSON, too."""
        with self.request(method, path, query, send=send, **given) as answer:
            content = answer.read()
        try:
            return json.loads(content) if content.strip() else None
        except ValueError:
            begun = content[:100].decode("utf-8", "replace").split("\n", 1)[0]
            raise EngineAnswer(
                answer.status, f"the answer to {method} {path} is no JSON: {begun!r}"
            ) from None

    def get(self, path: str, query: Query | None = None) -> Any:
        """GET, as JSON."""
        return self.json("GET", path, query)

    def call(self, method: str, path: str, query: Query | None = None, *, send: Any = None) -> int:
        """A request whose answer does not matter; its status."""
        with self.request(method, path, query, send=send) as answer:
            answer.read()
            return answer.status

    def messages(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, each as soon as it is whole. Closes the answer at the end."""
        with answer:
            yield from json_objects(answer.parts())

    def hijack(
        self, path: str, query: Query | None = None, *, send: Any = None
    ) -> tuple[Link, bytes, dict[str, str]]:
        """Turn a POST into a two-way stream: (socket, bytes already read, answer headers)."""
        asked = {"Connection": "Upgrade", "Upgrade": "tcp"}
        if send is None:
            asked["Content-Type"] = "text/plain"
        answer = self.request("POST", path, query, send=send, headers=asked)
        if answer.status != 101:
            answer.close()
            raise CommandFailed(f"unable to upgrade to tcp, received {answer.status}")
        link, rest = answer.take_over()
        return link, rest, answer.headers

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: Body = None
    ) -> Answer:
        connection = self._connection()
        target = self._base + target
        merged = {
            "Host": self._host_header(),
            "User-Agent": f"Ketch-Client/{__version__} (linux)",
            **self._headers,
            **(headers or {}),
        }
        try:
            return connection.exchange(method, target, merged, body)
        except BaseException as error:
            connection.close()
            # The engine may refuse our certificate when hands are shaken already.
            if isinstance(error, OSError) and type(error).__module__ == "ssl":
                raise tls_fault(self.host, error) from error
            raise

    def _connection(self) -> Connection:
        """A new one; by ssh, where one costs several round trips, one that has served before."""
        if not self.host.startswith("ssh://"):
            return Connection(connect(self.host, self.tls))
        while self._idle:
            kept = self._idle.pop()
            if not kept.is_readable():
                return kept
            kept.close()  # the engine, or ssh, has ended it
        from ketch import sshlink

        link = sshlink.dial(self.host)
        return Connection(
            link,
            explain=lambda known: sshlink.explain(self.host, *link.last_words(), known),
            park=self._idle.append,
        )

    def _host_header(self) -> str:
        scheme, _, place = self.host.partition("://")
        if scheme == "ssh":
            return "docker.example.com"
        return "api.moby.localhost" if scheme == "unix" else place.partition("/")[0]


def connect(host: str, tls: Tls | None) -> Link:
    """A connection to `host`. Raises EngineAway with docker's words."""
    scheme, _, place = host.partition("://")
    try:
        if scheme == "unix":
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                link.connect(place)
            except BaseException:
                link.close()
                raise
            return link
        if scheme in ("tcp", "http", "https"):
            return _connect_tcp(scheme, place, tls)
        if scheme == "ssh":
            from ketch import sshlink

            return sshlink.dial(host)
    except PermissionError as error:
        raise EngineAway(
            f"permission denied while trying to connect to the ketch daemon socket at {host}: connect: permission denied"
        ) from error
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: of what cannot be a name
        address = place.rpartition(":")[0] or place
        raise EngineAway(f"error during connect: {host}: lookup {address}: no such host") from error
    except OSError as error:
        if type(error).__module__ == "ssl":  # there is one, but the two do not understand each other
            raise tls_fault(host, error) from error
        raise EngineAway(
            f"Cannot connect to the ketch daemon at {host}. Is the ketch daemon running?"
        ) from error
    raise CommandFailed(f'unable to parse docker host "{host}"')


def tls_fault(host: str, error: OSError) -> EngineAway:
    """What is said of an ssl.SSLError."""
    named = str(getattr(error, "reason", "") or "").replace("_", " ")
    reason = getattr(error, "verify_message", "") or named or error.strerror or str(error)
    return EngineAway(f"error during connect: {host}: tls: {reason.lower()}")


def _connect_tcp(scheme: str, place: str, tls: Tls | None) -> Link:
    secure = scheme == "https" or tls is not None
    address, port, _ = split_tcp(f"{scheme}://{place}", place, 2376 if secure else 2375)
    context = _tls_context(tls or Tls(os.path.expanduser("~/.docker"), True)) if secure else None
    link = socket.create_connection((address, port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return link
    from ketch.tlslink import TlsLink

    try:
        return TlsLink(link, context, address)
    except BaseException:
        link.close()
        raise


def _tls_context(tls: Tls) -> ssl.SSLContext:
    import ssl

    try:
        found = tls.files()
    except OSError as error:
        raise CommandFailed(
            f"Failed to initialize: unable to resolve docker endpoint: open {error.filename}: {why(error)}"
        ) from error
    # An authority that is given is the only one.
    context = ssl.create_default_context(cafile=tls.path("ca.pem") if "ca.pem" in found else None)
    if "cert.pem" in found and "key.pem" in found:
        context.load_cert_chain(tls.path("cert.pem"), tls.path("key.pem"))
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def encode_query(query: Query | None) -> str:
    """A query string: None and empty texts are left out, True is 1, lists repeat their key, maps are JSON."""
    pairs: list[tuple[str, str]] = []
    for key, value in sorted((query or {}).items()):
        if value is None or value is False or value == "":
            continue
        if isinstance(value, dict):
            pairs.append((key, json.dumps(value, separators=(",", ":"), sort_keys=True)))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            pairs += [(key, str(item)) for item in value]
        else:
            pairs.append((key, "1" if value is True else str(value)))
    return "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)


# As in urllib.parse, which alone would take a tenth of the time that `ketch version` has.
UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
PATH_SAFE = UNRESERVED | frozenset(b"/:@!$()*,;=+")


def quote(text: str, safe: frozenset[int] = UNRESERVED) -> str:
    """`text` with every other byte as %XX."""
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in raw)


def error_text(answer: Answer, method: str, path: str) -> str:
    """The engine's message in an error answer."""
    content = answer.read()
    if answer.headers.get("content-type", "").startswith("application/json"):
        try:
            told = json.loads(content)
        except ValueError:
            told = None
        if isinstance(told, dict) and told.get("message"):
            return str(told["message"]).strip()
    text = content.decode("utf-8", "replace").strip()
    return text or (
        f"request returned {answer.status} for {method} {path}, check if the server supports the requested API version"
    )


def json_objects(parts: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The objects in a stream of concatenated JSON texts, however the bytes are cut."""
    decoder = json.JSONDecoder()
    kept = b""
    for part in parts:
        kept += part
        # An object never ends but with a brace: without one there is nothing new to find.
        if b"}" not in part:
            continue
        end = kept.rfind(b"}") + 1
        text, kept = kept[:end].decode("utf-8", "surrogateescape"), kept[end:]
        at = 0
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            try:
                found, at = decoder.raw_decode(text, at)
            except ValueError:
                break
            if isinstance(found, dict):
                yield found
        kept = text[at:].encode("utf-8", "surrogateescape") + kept
    if kept.strip():
        raise EngineAway("unexpected EOF")
