"""A certificate authority of the test's own, by openssl: server certificates, client certificates, signing keys."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _openssl(*words: str, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"openssl {' '.join(words)}: {done.stderr.decode()}")
    return done.stdout


class Authority:
    """Makes certificates in `directory`; its own is `ca.crt`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate = directory / "ca.crt"
        self._key = directory / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ketch test authority"),
            *("-keyout", str(self._key), "-out", str(self.certificate)),
        )  # fmt: skip

    def issue(self, name: str, *, addresses: tuple[str, ...] = (), days: int = 2) -> tuple[Path, Path]:
        """(certificate, key) for `name`, which also is a server of the IP addresses."""
        key, request, certificate = (self.directory / f"{name}.{end}" for end in ("key", "csr", "crt"))
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )  # fmt: skip
        names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", str(days), "-extfile", str(extensions), "-out", str(certificate)),
        )  # fmt: skip
        return certificate, key


def sign(key: Path, content: bytes) -> bytes:
    """RSA with SHA-256 (JWT's RS256)."""
    return _openssl("dgst", "-sha256", "-sign", str(key), stdin=content)


def der(certificate: Path) -> bytes:
    """A PEM certificate in binary."""
    return _openssl("x509", "-in", str(certificate), "-outform", "DER")
