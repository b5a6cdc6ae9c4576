"""Logs, attach and wait of real containers: every driver, rotation under a follower, a websocket, and ketchd killed meanwhile."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.eventscenarios import Api
from ketch_testing.machine import Machine, UnixConnection, running
from ketch_wire.launch import JOURNAL_SOCKET
from ketch_wire.stdcopy import StreamReader

pytestmark = [needs_root, pytest.mark.root]
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


@pytest.fixture
def api(machine: Machine) -> Iterator[Api]:
    made = Api(str(machine.socket))
    yield made
    for row in made("GET", "/containers/json?all=1"):
        made("DELETE", f"/containers/{row['Id']}?force=1&v=1")


def logs(machine: Machine, name: str, query: str = "stdout=1&stderr=1") -> list[tuple[int, bytes]]:
    """The frames of the logs stream."""
    status, answer = machine.request("GET", f"/containers/{name}/logs?{query}")
    assert status == 200, answer
    return [(one.stream, one.payload) for one in StreamReader().feed(answer)]


def text(machine: Machine, name: str, query: str = "stdout=1&stderr=1") -> bytes:
    return b"".join(payload for _, payload in logs(machine, name, query))


def log_config(driver: str, **options: str) -> dict[str, Any]:
    return {
        "LogConfig": {
            "Type": driver,
            "Config": {key.replace("_", "-"): value for key, value in options.items()},
        }
    }


def run_to_end(api: Api, name: str, script: str, **host: Any) -> None:
    api.run(name, "sh", "-c", script, HostConfig=host)
    api.wait(name)


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_choice_of_streams_tail_timestamps_and_since(machine: Machine, api: Api, driver: str) -> None:
    run_to_end(
        api, "plain", "echo one; echo two >&2; sleep 0.05; echo three; printf four", **log_config(driver)
    )

    assert sorted(logs(machine, "plain")[:2]) == [(1, b"one\n"), (2, b"two\n")]
    assert logs(machine, "plain")[2:] == [(1, b"three\n"), (1, b"four")]
    assert text(machine, "plain", "stderr=1") == b"two\n"
    assert text(machine, "plain", "stdout=1&stderr=1&tail=2") == b"three\nfour"
    assert logs(machine, "plain", "stdout=1&tail=0") == []
    assert text(machine, "plain", "stdout=1&tail=-1") == b"one\nthree\nfour"
    stamped = text(machine, "plain", "stdout=1&timestamps=1")
    assert STAMP.sub(b"", stamped) == b"one\nthree\nfour" and len(STAMP.findall(stamped)) == 3
    third = STAMP.findall(stamped)[1].decode().strip()
    seconds = f"{_seconds(third)}.{third[20:29]}"
    assert text(machine, "plain", f"stdout=1&since={seconds}") == b"three\nfour"
    before = text(machine, "plain", f"stdout=1&stderr=1&until={seconds}")
    assert b"three\n" in before and b"one\n" in before
    assert text(machine, "plain", "stdout=1&since=4000000000") == b""


def _seconds(stamp: str) -> int:
    import calendar

    return calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))


def test_one_stream_must_be_chosen(machine: Machine, api: Api) -> None:
    api.create("none", "true")
    status, answer = machine.request("GET", "/containers/none/logs")
    assert (status, json.loads(answer)["message"]) == (
        400,
        "Bad parameters: you must choose at least one stream",
    )


def test_details_show_labels_environment_and_tag(machine: Machine, api: Api) -> None:
    chosen = log_config("json-file", labels="tier", env_regex="^K", tag="{{.Name}}/{{.ImageName}}")
    api.run(
        "det", "echo", "hi", Labels={"tier": "a b", "other": "x"}, Env=["KEY=v&w", "NOT=1"], HostConfig=chosen
    )
    api.wait("det")

    assert text(machine, "det", "stdout=1&details=1") == b"KEY=v%26w,tag=det%2Fbusybox,tier=a+b hi\n"
    assert text(machine, "det") == b"hi\n"
    run_to_end(api, "bare", "echo hi")
    assert text(machine, "bare", "stdout=1&details=1") == b" hi\n"


def test_none_keeps_nothing_and_says_so(machine: Machine, api: Api) -> None:
    run_to_end(api, "mute", "echo x", **log_config("none"))

    status, answer = machine.request("GET", "/containers/mute/logs?stdout=1")
    assert (status, json.loads(answer)["message"]) == (
        501,
        "configured logging driver does not support reading",
    )


@pytest.mark.skipif(os.path.exists(JOURNAL_SOCKET), reason="this host has a journal")
def test_journald_is_refused_where_no_journal_runs(machine: Machine, api: Api) -> None:
    api.create("jrn", "true", HostConfig=log_config("journald"))

    status, answer = machine.request("POST", "/containers/jrn/start")

    assert (status, json.loads(answer)["message"]) == (
        500, "failed to initialize logging driver: journald is not enabled on this host",
    )  # fmt: skip


REFUSED = [
    ("nope", {}, 'error looking up logging plugin nope: plugin "nope" not found'),
    ("json-file", {"foo": "1"}, "unknown log opt 'foo' for json-file log driver"),
    ("local", {"labels": "a"}, "unknown log opt 'labels' for log driver local"),
    ("journald", {"max-size": "1m"}, "unknown log opt 'max-size' for journald log driver"),
    ("json-file", {"mode": "x"}, "logger: logging mode not supported: x"),
    ("json-file", {"max-buffer-size": "1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
    ("json-file", {"mode": "non-blocking", "max-buffer-size": "x"}, "error parsing option max-buffer-size: invalid size: 'x'"),
    ("json-file", {"max-size": "10x"}, "failed to initialize logging driver: invalid size: '10x'"),
    ("json-file", {"max-size": "0"}, "failed to initialize logging driver: max-size must be a positive number"),
    ("json-file", {"max-file": "0"}, "failed to initialize logging driver: max-file cannot be less than 1"),
    ("json-file", {"max-file": "x"}, 'failed to initialize logging driver: strconv.Atoi: parsing "x": invalid syntax'),
    ("json-file", {"compress": "maybe"}, 'failed to initialize logging driver: strconv.ParseBool: parsing "maybe": invalid syntax'),
    ("json-file", {"compress": "true", "max-file": "1"},
     "failed to initialize logging driver: compress cannot be true when max-file is less than 2 or max-size is not set"),
    ("local", {"max-file": "1"}, "failed to initialize logging driver: compression cannot be enabled when max file count is 1"),
    ("local", {"max-size": "abc"}, "failed to initialize logging driver: invalid value for max-size: abc: invalid size: 'abc'"),
    ("json-file", {"labels-regex": "("}, "failed to initialize logging driver: error parsing regexp: missing closing ): `(`"),
    ("json-file", {"tag": "{{.Nope}}"},
     "failed to initialize logging driver: template: log-tag:1:2: executing \"log-tag\" at <.Nope>: can't evaluate field Nope in "
     "type *logger.Info"),
    ("json-file", {"tag": "{{"}, "failed to initialize logging driver: template: log-tag:1: unclosed action"),
]  # fmt: skip


@pytest.mark.parametrize(("driver", "options", "message"), REFUSED)
def test_wrong_options_are_refused_in_dockerds_words(
    machine: Machine, driver: str, options: dict[str, str], message: str
) -> None:
    body = {
        "Image": "busybox",
        "Cmd": ["true"],
        "HostConfig": {"LogConfig": {"Type": driver, "Config": options}},
    }
    status, answer = machine.request("POST", "/containers/create?name=refused", body)

    assert (status, json.loads(answer)["message"]) == (400, message)
    assert machine.request("GET", "/containers/refused/json")[0] == 404


class Follower(threading.Thread):
    """Follows a log to its end."""

    def __init__(self, machine: Machine, name: str, query: str = "") -> None:
        super().__init__(daemon=True)
        self._connection = UnixConnection(str(machine.socket))
        self._connection.request("GET", f"/containers/{name}/logs?stdout=1&stderr=1&follow=1{query}")
        self._response = self._connection.getresponse()
        self.got = b""
        self.start()

    def run(self) -> None:
        reader = StreamReader()
        try:
            while data := self._response.read1(65536):
                self.got += b"".join(one.payload for one in reader.feed(data))
        except (OSError, http.client.HTTPException, ValueError):
            pass

    def end(self) -> bytes:
        self.join(60)
        assert not self.is_alive()
        self._response.close()
        self._connection.close()
        return self.got


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("json-file", {"max_size": "20k", "max_file": "3"}),
        ("json-file", {"max_size": "20k", "max_file": "4", "compress": "true"}),
        ("local", {"max_size": "20k", "max_file": "3"}),
    ],
)
def test_a_follower_sees_every_line_once_across_rotations(
    machine: Machine, api: Api, driver: str, options: dict[str, str]
) -> None:
    """It reads while the file under it is renamed and compressed; a little slower than it, nothing is rotated away unread."""
    script = "read go; for i in $(seq 60); do for j in $(seq 50); do echo line $i.$j; done; sleep 0.02; done"
    api.run("turn", "sh", "-c", script, OpenStdin=True, HostConfig=log_config(driver, **options))
    follower = Follower(machine, "turn")
    with api.hijacked("/containers/turn/attach?stream=1&stdin=1") as typing:
        typing.sendall(b"go\n")
        api.wait("turn")

    wanted = [f"line {i}.{j}" for i in range(1, 61) for j in range(1, 51)]
    assert follower.end().decode().split("\n")[:-1] == wanted
    kept = text(machine, "turn").decode().split("\n")[:-1]
    assert kept == wanted[-len(kept) :] and 100 < len(kept) < len(wanted)
    assert text(machine, "turn", "stdout=1&tail=700").decode().split("\n")[:-1] == kept[-700:]
    names = {
        path.name.partition("-json.log")[2]
        for path in (machine.data_root / "containers").glob("*/*-json.log*")
    }
    assert {"", ".1", ".2"} <= {name.removesuffix(".gz") for name in names}
    assert all(not name.endswith(".new") for name in names)


def test_compressed_files_are_read_by_time_and_from_the_end(machine: Machine, api: Api) -> None:
    options = log_config("json-file", max_size="30k", max_file="5", compress="true")
    script = (
        "for i in $(seq 10); do for j in $(seq 60); do echo line $i.$j; done; sleep 0.05; done; sleep 0.3"
    )
    run_to_end(api, "zip", script, **options)

    assert list((machine.data_root / "containers").glob("*/*-json.log.*.gz"))
    stamped = text(machine, "zip", "stdout=1&timestamps=1").splitlines()
    for at in (0, 1, 77, 300, len(stamped) - 1):
        moment = stamped[at].split()[0].decode()
        since = f"{_seconds(moment)}.{moment[20:29]}"
        wanted = [line for line in stamped if line.split()[0].decode() >= moment]
        assert text(machine, "zip", f"stdout=1&timestamps=1&since={since}").splitlines() == wanted
    for tail in (1, 59, 300, 599):
        assert text(machine, "zip", f"stdout=1&timestamps=1&tail={tail}").splitlines() == stamped[-tail:]


def test_follow_ends_with_the_run_and_history_of_a_stopped_one_at_once(machine: Machine, api: Api) -> None:
    api.run("fol", "sh", "-c", "echo one; read x; printf last", OpenStdin=True)
    follower = Follower(machine, "fol", "&tail=10")
    with api.hijacked("/containers/fol/attach?stream=1&stdin=1") as typing:
        typing.sendall(b"\n")
        assert follower.end() == b"one\nlast"
    assert Follower(machine, "fol").end() == b"one\nlast"


def test_attach_replays_the_log_first(machine: Machine, api: Api) -> None:
    api.run("rep", "sh", "-c", "echo before; read x; echo after", OpenStdin=True, StdinOnce=True)
    deadline = time.monotonic() + 30
    while text(machine, "rep") != b"before\n":
        assert time.monotonic() < deadline
    with api.hijacked("/containers/rep/attach?logs=1&stdout=1&stderr=1") as client:
        assert _frames(client) == b"before\n"  # stream=0: the log and its end
    with api.hijacked("/containers/rep/attach?logs=1&stream=1&stdin=1&stdout=1&stderr=1") as client:
        client.sendall(b"\n")
        assert _frames(client) == b"before\nafter\n"


def _frames(client: socket.socket) -> bytes:
    data = b""
    while part := client.recv(65536):
        data += part
    return b"".join(one.payload for one in StreamReader().feed(data))


# websocket: RFC 6455, as little of it as a client needs


class WebSocket:
    """A client's side."""

    def __init__(self, machine: Machine, path: str) -> None:
        self.channel = socket.socket(socket.AF_UNIX)
        self.channel.settimeout(30)
        self.channel.connect(str(machine.socket))
        key = base64.b64encode(os.urandom(16)).decode()
        self.channel.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._bytes = self.channel.makefile("rb")
        self.status = int(self._bytes.readline().split()[1])
        while self._bytes.readline() not in (b"\r\n", b""):
            pass

    def send(self, data: bytes, kind: int = 2) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.channel.sendall(bytes((0x80 | kind, 0x80 | len(data))) + mask + masked)

    def receive(self) -> tuple[int, bytes]:
        """(opcode, payload); (8, …) when the other side closes."""
        head = self._bytes.read(2)
        length = head[1] & 0x7F
        if length == 126:
            length = struct.unpack(">H", self._bytes.read(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", self._bytes.read(8))[0]
        return head[0] & 0x0F, self._bytes.read(length)

    def until_end(self) -> bytes:
        data = b""
        while (message := self.receive())[0] != 8:
            assert message[0] == 2
            data += message[1]
        self.send(message[1], 8)
        return data

    def close(self) -> None:
        self._bytes.close()
        self.channel.close()


def test_a_websocket_carries_raw_bytes_both_ways(machine: Machine, api: Api) -> None:
    api.run("wsk", "sh", "-c", "echo out; echo err >&2; read x; echo got $x", OpenStdin=True)
    client = WebSocket(machine, "/containers/wsk/attach/ws?logs=1&stream=1&stdin=1&stdout=1&stderr=1")
    client.send(b"typed\n")

    data = client.until_end()
    client.close()

    assert client.status == 101
    assert data.endswith(b"got typed\n") and b"out\n" in data and b"err\n" in data


def test_a_websockets_detach_keys_and_its_end_leave_the_container_alone(machine: Machine, api: Api) -> None:
    since = time.time()
    api.run("wsd", "cat", OpenStdin=True, Tty=True)
    client = WebSocket(machine, "/containers/wsd/attach/ws?stream=1&stdin=1&stdout=1")
    client.send(b"a\n")
    echoed = b""
    while len(echoed) < len(b"a\r\na\r\n"):
        echoed += client.receive()[1]
    client.send(b"\x10\x11")
    assert client.until_end() == b""
    client.close()
    again = WebSocket(machine, "/containers/wsd/attach/ws?stream=1&stdin=1&stdout=1")
    again.channel.shutdown(socket.SHUT_RDWR)
    again.close()

    assert api("GET", "/containers/wsd/json")["State"]["Running"]

    def actions() -> list[str]:
        return [one["Action"] for one in api.events(since, time.time()) if one["Type"] == "container"]

    deadline = time.monotonic() + 30
    while len(actions()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)  # the shim tells of it when the client has been let go
    assert sorted(actions()) == ["attach", "attach", "create", "detach", "start"]


def test_a_websocket_is_refused_like_any_attach(machine: Machine, api: Api) -> None:
    assert machine.request("GET", "/containers/nobody/attach/ws?stream=1")[0] == 404
    api.run("wsp", "sleep", "100")
    assert machine.request("GET", "/containers/wsp/attach/ws?stream=1")[0] == 400
    api("POST", "/containers/wsp/pause")
    client = WebSocket(machine, "/containers/wsp/attach/ws?stream=1")
    client.close()
    assert client.status == 409


def test_clients_that_left_before_the_start_are_let_go(machine: Machine, api: Api) -> None:
    """Each holds a descriptor of ketchd."""
    api.create("lft", "cat", OpenStdin=True, StdinOnce=True)
    assert machine.process is not None
    descriptors = Path(f"/proc/{machine.process.pid}/fd")

    def attach() -> None:
        with api.hijacked("/containers/lft/attach?stream=1&stdin=1&stdout=1"):
            pass

    attach()
    before = len(os.listdir(descriptors))
    for _ in range(20):
        attach()
    assert len(os.listdir(descriptors)) <= before + 2
    with api.hijacked("/containers/lft/attach?stream=1&stdin=1&stdout=1") as client:
        api("POST", "/containers/lft/start")
        client.sendall(b"typed")
        client.shutdown(socket.SHUT_WR)
        assert _frames(client) == b"typed"


# ketchd killed meanwhile


@pytest.fixture
def own() -> Iterator[Machine]:
    """A machine that may be killed, with another default driver."""
    with running(flags=("--log-driver", "local", "--log-opt", "max-size=5m")) as made:
        import_busybox(made)
        yield made


def test_logs_and_waits_are_asked_again_after_a_kill(own: Machine) -> None:
    api = Api(str(own.socket))
    script = "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end $i; exit 9"
    api.run("lives", "sh", "-c", script)
    shown = api("GET", "/containers/lives/json")
    assert shown["HostConfig"]["LogConfig"] == {"Type": "local", "Config": {"max-size": "5m"}}
    first = Follower(own, "lives")
    while b"20\n" not in first.got:
        time.sleep(0.01)
    own.kill()
    seen = first.end()
    own.start()
    results: list[Any] = []
    waiters = [
        threading.Thread(target=lambda one=one: results.append((one, api("POST", f"/containers/lives/wait?condition={one}"))))
        for one in ("not-running", "next-exit", "removed")
    ]  # fmt: skip
    for waiter in waiters:
        waiter.start()
    second = Follower(own, "lives")
    while seen.splitlines()[-1] not in second.got:
        time.sleep(0.01)
    Path(f"/proc/{shown['State']['Pid']}/root/go").touch()
    lines = second.end().decode().splitlines()
    api("DELETE", "/containers/lives")
    for waiter in waiters:
        waiter.join(30)

    assert lines[:-1] == [str(number) for number in range(1, len(lines))]
    assert lines[-1] == f"end {len(lines) - 1}"
    assert sorted(results) == [(one, {"StatusCode": 9}) for one in ("next-exit", "not-running", "removed")]


def test_lines_and_exit_of_the_time_without_ketchd_are_there(own: Machine) -> None:
    api = Api(str(own.socket))
    api.run("alone", "sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; seq 1000; exit 4")
    inside = api("GET", "/containers/alone/json")["State"]["Pid"]
    own.kill()
    Path(f"/proc/{inside}/root/go").touch()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{inside}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    own.start()

    assert text(own, "alone").split() == [str(number).encode() for number in range(1, 1001)]
    assert api("POST", "/containers/alone/wait?condition=not-running") == {"StatusCode": 4}


def test_a_daemon_with_wrong_log_options_does_not_start() -> None:
    with tempfile.TemporaryDirectory(prefix="ketch-logs-") as base:
        made = Machine(Path(base) / "m", flags=("--log-opt", "foo=1"))
        try:
            with pytest.raises(AssertionError):
                made.start()
            assert (
                "failed to set log opts: unknown log opt 'foo' for json-file log driver"
                in made.log.read_text()
            )
        finally:
            made.close()
