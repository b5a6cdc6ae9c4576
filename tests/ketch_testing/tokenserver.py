"""A small token server, as Docker's registries know them: GET with Basic or anonymous, POST of OAuth 2, signed tokens.

Source: distribution's spec/auth/{token,jwt,oauth}.md. Runs on a thread, so that synchronous and asynchronous tests can use it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ketch_testing.certificates import der, sign

SERVICE, ISSUER = "ketch-test-registry", "ketch-test-issuer"


@dataclass(slots=True)
class Asked:
    """One request that came: who asked, for which scopes, how."""

    method: str
    user: str
    scopes: list[str]
    grant: str = ""


@dataclass(slots=True)
class TokenServer:
    """users: name → password; each may do everything, nobody may pull from `public` repositories.

    lifetime: seconds. asked: every request, in order.
    """

    users: Mapping[str, str]
    certificate: Path
    key: Path
    public: tuple[str, ...] = ()
    lifetime: int = 300
    asked: list[Asked] = field(default_factory=list)
    refresh_tokens: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def configuration(self) -> str:
        """The lines of docker-registry's configuration."""
        return (
            f"auth:\n  token:\n    realm: {self.url}\n    service: {SERVICE}\n    issuer: {ISSUER}\n"
            f"    rootcertbundle: {self.certificate}\n"
        )

    def answer(self, asked: Asked, *, offline: bool) -> dict[str, Any]:
        """What an accepted request gets."""
        access = []
        for scope in asked.scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            granted = actions.split(",") if asked.user else ["pull"] if name in self.public else []
            access.append({"type": kind, "name": name, "actions": granted})
        token = self._token(asked.user, access)
        answer: dict[str, Any] = {"token": token, "access_token": token, "expires_in": self.lifetime}
        if offline and asked.user:
            refresh = secrets.token_hex(16)
            self.refresh_tokens[refresh] = asked.user
            answer["refresh_token"] = refresh
        return answer

    def _token(self, user: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der(self.certificate)).decode()]}
        claims = {
            "iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + self.lifetime, "nbf": now - 10, "iat": now,
            "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        body = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        return f"{body}.{_encoded(sign(self.key, body.encode()))}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class _Handler(BaseHTTPRequestHandler):
    owner: TokenServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The older form."""
        fields = parse_qs(urlsplit(self.path).query)
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        user = ""
        if kind == "Basic":
            user, _, password = base64.b64decode(secret).decode().partition(":")
            if self.owner.users.get(user) != password:
                self.owner.asked.append(Asked("GET", user, fields.get("scope", [])))
                return self._refuse()
        asked = Asked("GET", user, fields.get("scope", []))
        self.owner.asked.append(asked)
        self._reply(200, self.owner.answer(asked, offline=fields.get("offline_token") == ["true"]))

    def do_POST(self) -> None:
        """OAuth 2."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        fields = {key: values[0] for key, values in parse_qs(body).items()}
        grant = fields.get("grant_type", "")
        user: str | None = None
        if grant == "refresh_token":
            user = self.owner.refresh_tokens.get(fields.get("refresh_token", ""))
        elif grant == "password" and self.owner.users.get(fields.get("username", "")) == fields.get(
            "password"
        ):
            user = fields["username"]
        asked = Asked("POST", user or "", fields.get("scope", "").split(), grant)
        self.owner.asked.append(asked)
        if user is None:
            return self._refuse()
        self._reply(200, self.owner.answer(asked, offline=fields.get("access_type") == "offline"))

    def _refuse(self) -> None:
        self._reply(401, {"details": "incorrect username or password"})

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def token_server(
    users: Mapping[str, str], certificate: Path, key: Path, **more: Any
) -> Iterator[TokenServer]:
    """A running token server on loopback."""
    owner = TokenServer(users, certificate, key, **more)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": owner}))
    owner.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield owner
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
