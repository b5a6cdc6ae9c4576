"""Uploads as a state machine: against a registry simulated in a few lines, broken wherever it can break."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import EngineFailure
from ketchd.model.digest import Digest
from ketchd.registry.uploads import Step, Upload

DIGEST = Digest("sha256:" + "a" * 64)
BASE = "https://reg.io/v2"


def upload(size: int = 100, **more: object) -> Upload:
    return Upload(BASE, "a/b", DIGEST, size, **more)  # type: ignore[arg-type]


def test_a_small_blob_is_one_post_and_one_put() -> None:
    """The location's query is kept, the digest appended."""
    sending = upload()
    begin = sending.next()
    assert (begin.method, begin.url) == ("POST", f"{BASE}/a/b/blobs/uploads/")
    assert sending.answer(begin, 202, {"Location": "/v2/a/b/blobs/uploads/u?_state=s"})
    put = sending.next()
    assert put.url == f"{BASE}/a/b/blobs/uploads/u?_state=s&digest=sha256%3A{'a' * 64}"
    assert (put.start, put.stop, put.headers) == (0, 100, {"Content-Type": "application/octet-stream"})
    assert sending.answer(put, 201, {})
    assert sending.is_done and not sending.mounted


def test_a_mount_needs_no_bytes() -> None:
    """201 is the blob; 202 is an upload that begins."""
    mounting = upload(source="c/d")
    begin = mounting.next()
    assert begin.url.endswith(f"?mount=sha256%3A{'a' * 64}&from=c/d")
    assert mounting.answer(begin, 201, {})
    assert mounting.is_done and mounting.mounted

    other = upload(source="c/d")
    assert other.answer(other.next(), 202, {"Location": "/u"})
    assert other.next().step is Step.PUT and not other.mounted


def test_a_large_blob_goes_in_chunks() -> None:
    """Each with its range; the registry may ask for larger ones, and says where the next one goes."""
    sending = upload(100, chunk=30)
    assert sending.answer(sending.next(), 202, {"Location": "/u0", "OCI-Chunk-Min-Length": "40"})
    first = sending.next()
    assert (first.method, first.headers["Content-Range"], first.url) == (
        "PATCH",
        "0-39",
        "https://reg.io/u0",
    )
    assert sending.answer(first, 202, {"Location": "/u1", "Range": "0-39"})
    second = sending.next()
    assert (second.start, second.stop, second.url) == (40, 80, "https://reg.io/u1")
    assert sending.answer(second, 202, {"Location": "/u2", "Range": "0-79"})
    last = sending.next()
    assert (last.method, last.start, last.stop) == ("PUT", 80, 100)


def test_a_broken_upload_asks_what_has_arrived() -> None:
    """And goes on from there, or begins again when nobody knows it any more."""
    sending = upload(100, chunk=50)
    assert sending.answer(sending.next(), 202, {"Location": "/u"})
    sending.broken()
    ask = sending.next()
    assert (ask.method, ask.url) == ("GET", "https://reg.io/u")
    assert sending.answer(ask, 204, {"Range": "0-24", "Location": "/v"})
    rest = sending.next()
    assert (rest.start, rest.stop, rest.headers["Content-Range"]) == (25, 75, "25-74")
    sending.broken()
    assert sending.next().step is Step.ASK
    assert sending.answer(sending.next(), 404, {})
    assert sending.next().step is Step.BEGIN


@pytest.mark.parametrize("status", [404, 405])
def test_a_blob_whose_last_answer_was_lost_is_looked_for(status: int) -> None:
    """Before it is sent again: by its size, where the registry tells it."""
    for answer, headers, step in (
        (200, {"Content-Length": "100"}, Step.DONE),
        (200, {}, Step.DONE),
        (200, {"Content-Length": "99"}, Step.BEGIN),
        (status, {}, Step.BEGIN),
    ):
        sending = upload()
        sending.answer(sending.next(), 202, {"Location": "/u"})
        sending.broken()
        assert sending.answer(sending.next(), status, {})
        look = sending.next()
        assert (look.method, look.url) == ("HEAD", f"{BASE}/a/b/blobs/{DIGEST}")
        assert not sending.answer(look, 503, {})
        assert sending.answer(look, answer, headers)
        assert sending.is_done if step is Step.DONE else sending.next().step is step


def test_every_refusal_of_bytes_has_its_remedy() -> None:
    """Of what is lost or spoilt the upload begins anew; what the registry counts otherwise is asked for, once at each byte."""
    sending = upload(100, chunk=50)
    begin = sending.next()
    assert sending.remedy(begin, 404, "NAME_UNKNOWN") is None
    sending.answer(begin, 202, {"Location": "/u"})
    patch = sending.next()
    for status, code, step in (
        (404, "BLOB_UPLOAD_UNKNOWN", Step.BEGIN),
        (400, "BLOB_UPLOAD_INVALID", Step.BEGIN),
        (404, "", Step.BEGIN),
        (410, "", Step.BEGIN),
        (416, "", Step.ASK),
        (416, "RANGE_INVALID", Step.ASK),
        (404, "NAME_UNKNOWN", None),
        (400, "DIGEST_INVALID", None),
        (400, "", None),
        (413, "", None),
        (500, "", None),
    ):
        assert sending.remedy(patch, status, code) is step, (status, code)
    sending.broken()
    assert sending.remedy(patch, 400, "DIGEST_INVALID") is Step.BEGIN
    assert sending.answer(sending.next(), 204, {"Range": "0-0"})
    assert sending.remedy(sending.next(), 416, "") is Step.BEGIN


def test_what_is_against_the_protocol_is_a_fault() -> None:
    """No location, bytes that get lost, a location out of TLS; an unknown status is for the caller."""
    with pytest.raises(EngineFailure, match="does not say where"):
        sending = upload()
        sending.answer(sending.next(), 202, {})
    with pytest.raises(EngineFailure, match="plain text"):
        sending = upload()
        sending.answer(sending.next(), 202, {"Location": "http://reg.io/u"})
    sending = upload(100, chunk=30)
    sending.answer(sending.next(), 202, {"Location": "/u"})
    sending.answer(sending.next(), 202, {"Location": "/u", "Range": "0-29"})
    with pytest.raises(EngineFailure, match="lost bytes"):
        sending.answer(sending.next(), 202, {"Location": "/u", "Range": "0-9"})
    refused = upload()
    assert not refused.answer(refused.next(), 500, {})


@given(
    st.integers(0, 40),
    st.integers(1, 15),
    st.lists(st.sampled_from(["ok", "lost", "half", "forgotten", "refused", "unheard"]), max_size=12),
)
def test_every_way_to_break_ends_in_the_whole_blob(size: int, chunk: int, fates: list[str]) -> None:
    """lost: the request never arrives. half: some bytes of it do. forgotten: the registry drops the upload. refused: it has
    dropped it and says so to the bytes. unheard: all of it arrives, and the answer does not."""
    sending, held, blob = upload(size, chunk=chunk), bytearray(), bytes(range(size))
    done: bytes | None = None
    fate = iter(fates)
    for _ in range(200):
        if sending.is_done:
            break
        send, what = sending.next(), next(fate, "ok")
        body = blob[send.start : send.stop]
        if what == "lost":
            sending.broken()
        elif what == "half" and send.step in (Step.PATCH, Step.PUT):
            assert send.start == len(held)
            held += body[: len(body) // 2]
            sending.broken()
        elif send.step in (Step.PATCH, Step.PUT) and what == "refused":
            assert sending.remedy(send, 404, "BLOB_UPLOAD_UNKNOWN") is Step.BEGIN
            sending.restart()
        elif send.step is Step.PUT and what == "unheard":
            done = bytes(held) + body
            sending.broken()
        elif send.step is Step.LOOK:
            assert sending.answer(send, 200 if done else 404, {"Content-Length": str(size)} if done else {})
        elif send.step is Step.ASK and (what == "forgotten" or done):
            held.clear()
            assert sending.answer(send, 404, {})
        elif send.step is Step.BEGIN:
            held.clear()
            assert sending.answer(send, 202, {"Location": "/u"})
        elif send.step is Step.ASK:
            assert sending.answer(
                send, 204, {"Range": f"0-{max(len(held) - 1, 0)}" if len(held) != 1 else "0-0"}
            )
            if len(held) == 1:
                held.clear()  # the one ambiguous answer: it is sent again from the start
        else:
            assert send.start == len(held)
            held += body
            if send.step is Step.PUT:
                done = bytes(held)
            assert sending.answer(
                send,
                201 if send.step is Step.PUT else 202,
                {"Location": "/u", "Range": f"0-{len(held) - 1}"} if len(held) > 1 else {"Location": "/u"},
            )

    assert sending.is_done and done == blob
