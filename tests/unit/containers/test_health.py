"""Health: what is probed, when, and what a result means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.containers import health
from ketchd.containers.health import (
    HEALTHY,
    STARTING,
    UNHEALTHY,
    Health,
    HealthPlan,
    Output,
    Result,
    StatusLine,
    probed,
    read_plan,
)

SECOND = 1_000_000_000


def config(
    test: list[str] | None = None, labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    settings = (
        {"Test": test, **{key: value for key, value in more.items() if key != "Shell"}}
        if test is not None or more
        else None
    )
    return {"Healthcheck": settings, "Labels": labels or {}, "Shell": more.get("Shell")}


def result(code: int, at_seconds: float = 100, output: str = "") -> Result:
    return Result(int(at_seconds * SECOND), int(at_seconds * SECOND) + 1, code, output)


def test_commands() -> None:
    """CMD as it is, CMD-SHELL by the image's shell or /bin/sh, NONE and nothing not at all."""
    direct, shell = read_plan(config(["CMD", "a", "b"])), read_plan(config(["CMD-SHELL", "exit 1"]))
    own = read_plan(config(["CMD-SHELL", "exit 1"], Shell=["/bin/ash", "-ec"]))
    assert direct is not None and direct.argv == ("a", "b")
    assert shell is not None and shell.argv == ("/bin/sh", "-c", "exit 1")
    assert own is not None and own.argv == ("/bin/ash", "-ec", "exit 1")
    for none in (None, [], ["NONE"], ["CMD"], ["WHAT", "x"]):
        assert read_plan(config(none)) is None


def test_timing_defaults_are_dockers() -> None:
    """30 s, 30 s, 3, 0, 5 s; 0 means the default."""
    plan = read_plan(config(["CMD", "x"], Interval=0, Retries=0))
    assert plan == HealthPlan(
        "exec", ("x",), interval_ns=30 * SECOND, timeout_ns=30 * SECOND, start_interval_ns=5 * SECOND
    )
    assert plan is not None and plan.retries == 3 and plan.start_period_ns == 0


@pytest.mark.parametrize(
    ("label", "text", "expected"),
    [
        ("http", "http://:8080/path?a=b", ("http", "127.0.0.1", 8080, "/path?a=b")),
        ("http", "http://localhost", ("http", "127.0.0.1", 80, "/")),
        ("http", "http://10.0.0.1:81", ("http", "10.0.0.1", 81, "/")),
        ("http", "http://[::1]:81/x", ("http", "::1", 81, "/x")),
        ("tcp", ":5432", ("tcp", "127.0.0.1", 5432, "")),
        ("tcp", "[::1]:5432", ("tcp", "::1", 5432, "")),
    ],
)
def test_labels(label: str, text: str, expected: tuple[str, str, int, str]) -> None:
    """Ours: no process, the timing of Config.Healthcheck; they win over an image's command."""
    plan = read_plan(config(["CMD", "x"], {f"ketch.health.{label}": text}, Interval=SECOND))
    assert plan is not None and (plan.kind, plan.host, plan.port, plan.path) == expected
    assert plan.interval_ns == SECOND and plan.on_unhealthy == "none"


@pytest.mark.parametrize(
    "labels",
    [
        {"ketch.health.http": "https://:80/"}, {"ketch.health.http": "http://example.org/"}, {"ketch.health.http": ""},
        {"ketch.health.http": "http://:0/"}, {"ketch.health.http": "http://:80/a b"}, {"ketch.health.http": "http://999.1.1.1/"},
        {"ketch.health.tcp": "8080"}, {"ketch.health.tcp": ":99999"}, {"ketch.health.tcp": ":80\r\nX: y"},
        {"ketch.health.tcp": ":80", "ketch.health.http": "http://:80/"}, {"ketch.health.on-unhealthy": "explode"},
    ],
)  # fmt: skip
def test_senseless_labels_are_refused(labels: dict[str, str]) -> None:
    """At create, where the user can change them."""
    with pytest.raises(InvalidInput, match="label"):
        read_plan(config(["CMD", "x"], labels))


PLAN = HealthPlan(
    "exec", ("x",), start_period_ns=30 * SECOND, retries=2, interval_ns=10 * SECOND, start_interval_ns=SECOND
)


def test_retries_then_unhealthy_then_healthy() -> None:
    """The streak counts; one success ends it."""
    state = Health()
    seen = []
    for code in (1, 1, 1, 0, 1, 0):
        state = probed(PLAN, state, result(code), started_ns=0)
        seen.append((state.status, state.failing_streak))
    assert seen == [(STARTING, 1), (UNHEALTHY, 2), (UNHEALTHY, 3), (HEALTHY, 0), (HEALTHY, 1), (HEALTHY, 0)]


def test_start_period_forgives_until_the_first_success() -> None:
    """Then failures count, even inside it."""
    state = Health()
    for at in (1, 2, 3):
        state = probed(PLAN, state, result(1, at), started_ns=0)
    assert (state.status, state.failing_streak, len(state.log)) == (STARTING, 0, 3)
    state = probed(PLAN, state, result(0, 4), started_ns=0)
    state = probed(PLAN, state, result(1, 5), started_ns=0)
    assert (state.status, state.failing_streak) == (HEALTHY, 1)
    late = probed(PLAN, Health(), result(1, 31), started_ns=0)
    assert (late.status, late.failing_streak) == (STARTING, 1)


def test_when_the_next_probe_is_due() -> None:
    """The start interval while starting inside the start period, else the interval."""
    assert health.next_wait_ns(PLAN, Health(), 0, 5 * SECOND) == SECOND
    assert health.next_wait_ns(PLAN, Health(), 0, 31 * SECOND) == 10 * SECOND
    assert health.next_wait_ns(PLAN, Health(HEALTHY), 0, 5 * SECOND) == 10 * SECOND


def test_log_keeps_five() -> None:
    """Oldest first, as inspect shows it."""
    state = Health()
    for number in range(8):
        state = probed(PLAN, state, result(0, number, str(number)), started_ns=0)
    assert [one["Output"] for one in state.log] == ["3", "4", "5", "6", "7"]
    assert state.shown()["Log"][0]["Start"] == "1970-01-01T00:00:03Z"
    assert Health.from_record(state.shown()) == state
    assert health.started(state).log == state.log and health.started(state).status == STARTING
    assert health.ended(state).status == UNHEALTHY  # type: ignore[union-attr]
    assert health.ended(None) is None


@given(
    st.sampled_from([STARTING, HEALTHY, UNHEALTHY]),
    st.integers(0, 5),
    st.integers(-1, 255),
    st.integers(0, 100),
)
def test_every_state_takes_every_result(status: str, streak: int, code: int, at: int) -> None:
    """Total: a known state comes out, a success is always healthy, an unhealthy one only recovers by success."""
    after = probed(PLAN, Health(status, streak), result(code, at), started_ns=0)
    assert after.status in (STARTING, HEALTHY, UNHEALTHY)
    assert (
        (after.status == HEALTHY and after.failing_streak == 0)
        if code == 0
        else after.failing_streak >= streak
    )
    if status == UNHEALTHY and code:
        assert after.status == UNHEALTHY


def test_words() -> None:
    """As ps and the log say it."""
    assert health.status_words(None) == ""
    assert health.status_words({"Status": "starting"}) == " (health: starting)"
    assert health.status_words({"Status": "healthy"}) == " (healthy)"
    assert health.timeout_words(90 * SECOND, "") == "Health check exceeded timeout (1m30s)"
    assert health.timeout_words(1_500_000_000, "out") == "Health check exceeded timeout (1.5s): out"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (5, "5ns"),
        (1500, "1.5µs"),
        (500_000_000, "500ms"),
        (30 * SECOND, "30s"),
        (3661 * SECOND, "1h1m1s"),
    ],
)
def test_durations(ns: int, text: str) -> None:
    """Go's form."""
    assert health.duration(ns) == text


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_output_keeps_the_first_4096_bytes(parts: list[bytes]) -> None:
    """And says that there was more, wherever it was cut."""
    output = Output()
    for part in parts:
        output.feed(part)
    whole = b"".join(parts)
    assert output.text() == whole[:4096].decode("utf-8", "replace") + ("..." if len(whole) > 4096 else "")


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", 200), (b"HTTP/1.0 503 Away\r\n\r\n", 503), (b"HTTP/1.1 204\r\n\r\n", 204),
        (b"SSH-2.0-x\r\n", 0), (b"", 0), (b"HTTP/1.1 200 OK", 0), (b"x" * 9000, 0), (b"HTTP/1.1 2000 OK\r\n", 0),
    ],
)  # fmt: skip
def test_status_line_survives_any_split(answer: bytes, code: int, size: int) -> None:
    """Where the network cuts the bytes changes nothing."""
    line = StatusLine()
    for at in range(0, len(answer), size):
        line.feed(answer[at : at + size])
    line.feed(b"")
    assert line.code == code


@given(st.binary(max_size=200))
def test_any_answer(answer: bytes) -> None:
    """A code or 0, never an exception."""
    line = StatusLine()
    line.feed(answer)
    line.feed(b"")
    assert line.code == 0 or 100 <= (line.code or 0) < 600
