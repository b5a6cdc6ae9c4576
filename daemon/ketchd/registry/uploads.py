"""An upload to a registry as a state machine: what to send next, given what was answered. Sans-IO.

Source: distribution-spec "Push": monolithic (POST then PUT) and chunked (POST, PATCHes, PUT), mount, and asking an
interrupted upload for its range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote, urlsplit

from ketch_wire.faults import EngineFailure
from ketchd.model.digest import Digest
from ketchd.registry.endpoints import follow

CHUNK = 64 * 1024 * 1024
_LOST = ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID")
_NO_STATUS = (
    400,
    404,
    405,
    410,
    501,
)  # to the question after an upload: whatever it means, nobody can go on from there
_RANGE = re.compile(r"(?:bytes[= ])?(\d{1,18})-(\d{1,18})")


class Step(Enum):
    """What is to be sent next."""

    BEGIN = "begin"
    PATCH = "patch"
    PUT = "put"
    ASK = "ask"
    LOOK = "look"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Send:
    """One request: bytes [start, stop) of the blob are its body."""

    step: Step
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    stop: int = 0


class Upload:
    """One blob on its way. `next` says what to send; `answer` or `broken` what came of it, `remedy` what a refusal asks for.

    Up to `CHUNK` bytes go in one PUT; more in PATCHes of that size, so that a registry which keeps only whole requests
    loses no more than one. mounted: the registry had the blob in `source` and took it from there.
    """

    def __init__(
        self, base: str, path: str, digest: Digest, size: int, *, source: str = "", chunk: int = CHUNK
    ) -> None:
        self._blob = f"{base}/{path}/blobs/{digest}"
        self._root = f"{base}/{path}/blobs/uploads/"
        self._digest = digest
        self._size = size
        self._source = source
        self._chunk = chunk
        self._location = ""
        self._sent = 0
        self._told_at = -1  # where the registry said to go on, when it was asked
        self._was_broken = False
        self._may_be_there = False  # the last request broke off, and perhaps only its answer was lost
        self._step = Step.BEGIN
        self.mounted = False

    @property
    def sent(self) -> int:
        """Bytes that the registry is known to have."""
        return self._sent

    @property
    def location(self) -> str:
        """Where the upload under way lives; empty when there is none."""
        return self._location

    @property
    def is_done(self) -> bool:
        """Whether the registry has the blob."""
        return self._step is Step.DONE

    def next(self) -> Send:
        """The request to make now."""
        if self._step is Step.BEGIN:
            query = (
                f"?mount={quote(str(self._digest), safe='')}&from={quote(self._source)}"
                if self._source
                else ""
            )
            return Send(Step.BEGIN, "POST", self._root + query, {"Content-Length": "0"})
        if self._step is Step.ASK:
            return Send(Step.ASK, "GET", self._location)
        if self._step is Step.LOOK:
            return Send(Step.LOOK, "HEAD", self._blob)
        octets = {"Content-Type": "application/octet-stream"}
        if self._sent + self._chunk < self._size:
            stop = self._sent + self._chunk
            ranged = {**octets, "Content-Range": f"{self._sent}-{stop - 1}"}
            return Send(Step.PATCH, "PATCH", self._location, ranged, self._sent, stop)
        if self._sent:
            octets["Content-Range"] = f"{self._sent}-{max(self._size - 1, self._sent)}"
        url = f"{self._location}{'&' if urlsplit(self._location).query else '?'}digest={quote(str(self._digest), safe='')}"
        return Send(Step.PUT, "PUT", url, octets, self._sent, self._size)

    def answer(self, send: Send, status: int, headers: Mapping[str, str], code: str = "") -> bool:
        """Take an answer in; False when its status is none that moves the upload on: then it is the caller's fault to tell.

        code: of an error, as registries name it. Raises EngineFailure when the answer is against the protocol.
        """
        if send.step is Step.BEGIN:
            return self._begun(send, status, headers)
        if send.step is Step.ASK:
            return self._told(send, status, headers, code)
        if send.step is Step.LOOK:
            return self._seen(status, headers)
        if send.step is Step.PATCH and status in (202, 204):
            self._relocate(send, headers)
            self._sent = min(_held(headers, send.stop), self._size)
            if self._sent < send.start:
                raise EngineFailure("the registry lost bytes of an upload that it had confirmed")
            self._step = Step.PUT
            return True
        if send.step is Step.PUT and status in (201, 204):
            self._step = Step.DONE
            return True
        return False

    def remedy(self, send: Send, status: int, code: str) -> Step | None:
        """What may mend a refusal of bytes: ASK when the registry counts otherwise than we do, BEGIN when it has lost the upload or
        spoilt it. None: neither would help.

        A request that broke off is not over at the registry: what it still writes can come after the question what has arrived.
        docker-registry then finds another size than it had told and drops the upload; others may keep bytes twice.
        Source: distribution-spec "Error Codes"; distribution 2.8's registry/handlers/blobupload.go (ResumeBlobUpload).
        """
        if send.step not in (Step.PATCH, Step.PUT):
            return None
        if status == 416:
            return Step.BEGIN if send.start == self._told_at else Step.ASK
        if code in _LOST or (not code and status in (404, 410)):
            return Step.BEGIN
        return Step.BEGIN if code == "DIGEST_INVALID" and self._was_broken else None

    def broken(self) -> None:
        """The connection broke while something was sent: ask what arrived, or begin."""
        self._was_broken = True
        self._may_be_there = self._may_be_there or self.next().step is Step.PUT
        self._step = Step.ASK if self._location else Step.BEGIN

    def restart(self) -> None:
        """Forget the upload under way and begin anew, without a mount; look first, if the registry may have the blob already."""
        self._location, self._sent, self._source = "", 0, ""
        self._step = Step.LOOK if self._may_be_there else Step.BEGIN
        self._told_at, self._was_broken, self._may_be_there = -1, False, False

    def _begun(self, send: Send, status: int, headers: Mapping[str, str]) -> bool:
        if status == 201 and self._source:
            self._step, self.mounted = Step.DONE, True
            return True
        if status != 202:
            return False
        self._relocate(send, headers)
        least = headers.get("OCI-Chunk-Min-Length", "")
        if least.isascii() and least.isdigit() and len(least) < 15:
            self._chunk = max(self._chunk, int(least))
        self._sent, self._step = 0, Step.PUT
        return True

    def _told(self, send: Send, status: int, headers: Mapping[str, str], code: str) -> bool:
        if status in _NO_STATUS or code in _LOST:
            self.restart()
            return True
        if status not in (200, 202, 204):
            return False
        if headers.get("Location"):
            self._relocate(send, headers)
        self._sent = _held(headers, 0)
        if self._sent > self._size:
            self.restart()
            return True
        self._told_at, self._step = self._sent, Step.PUT
        return True

    def _seen(self, status: int, headers: Mapping[str, str]) -> bool:
        if status != 200 and status not in _NO_STATUS:
            return False
        is_there = status == 200 and headers.get("Content-Length", str(self._size)) == str(self._size)
        self._step = Step.DONE if is_there else Step.BEGIN
        return True

    def _relocate(self, send: Send, headers: Mapping[str, str]) -> None:
        location = headers.get("Location")
        if not location:
            raise EngineFailure("the registry accepts an upload but does not say where")
        self._location = follow(send.url, location)


def _held(headers: Mapping[str, str], otherwise: int) -> int:
    """How many bytes the registry has. `0-0` is what an empty upload says, and one of a single byte: it is sent again."""
    match = _RANGE.fullmatch(headers.get("Range", "").strip())
    if match is None:
        return otherwise
    last = int(match[2])
    return last + 1 if last else 0
