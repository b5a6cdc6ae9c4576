"""POST /build against a real daemon: statuses, the stream, RUN's processes, and what a vanished client leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from ketch_testing.building import tar
from ketch_testing.consistency import differences
from ketch_testing.machine import BIN, Machine

pytestmark = pytest.mark.root


def post(machine: Machine, files: dict[str, Any] | bytes, **query: Any) -> tuple[int, list[dict[str, Any]]]:
    """(status, messages) of one build; an error answer is one message."""
    status, answer = machine.request(
        "POST",
        f"/build?{urlencode(query, doseq=True)}",
        raw=files if isinstance(files, bytes) else tar(files),
        headers={"Content-Type": "application/x-tar"},
    )
    return status, [
        json.loads(line) for line in answer.decode().split("\r\n" if b"\r\n" in answer else "\n") if line
    ]


def build(machine: Machine, dockerfile: str, files: dict[str, Any] | None = None, **query: Any) -> str:
    """What a build that succeeds says."""
    status, messages = post(machine, {"Dockerfile": dockerfile, **(files or {})}, **query)
    assert status == 200 and "error" not in messages[-1], messages[-3:]
    return "".join(message.get("stream", "") for message in messages)


@pytest.mark.parametrize(
    ("dockerfile", "query", "status", "message"),
    [
        ("FROM busybox\nRUNN x\n", {}, 400, "dockerfile parse error line 2: unknown instruction: RUNN"),
        ("FROM busybox\n", {"t": "UP:x"}, 400, "invalid reference format"),
        ("FROM busybox\n", {"dockerfile": "no/such"}, 500, "Cannot locate specified Dockerfile: no/such"),
        ("FROM busybox\n", {"target": "x"}, 400, "failed to reach build target x in Dockerfile"),
        ("FROM busybox\n", {"version": "2"}, 501, "BuildKit is not supported"),
        ("FROM busybox\n", {"squash": "1"}, 400, "squash is only supported with experimental mode"),
        ("FROM busybox\nRUN --network=container:x true\n", {}, 400, "unsupported network mode 'container:x'"),
        ("FROM busybox\n", {"buildargs": "[1]"}, 400, "error reading buildargs"),
        ("FROM busybox\n", {"remote": "https://example.org/x.git"}, 501, "a git repository as build context is not supported"),
        ("FROM busybox\n", {"memory": "x"}, 400, "invalid syntax"),
    ],
)  # fmt: skip
def test_refusals(
    machine: Machine, dockerfile: str, query: dict[str, str], status: int, message: str
) -> None:
    """Before the first message a fault is an HTTP status, in dockerd's words."""
    found, messages = post(machine, {"Dockerfile": dockerfile}, **query)

    assert found == status and message in messages[0]["message"]


def test_the_stream(machine: Machine) -> None:
    """Each object as the classic builder sends it."""
    _, messages = post(
        machine, {"Dockerfile": "FROM busybox\nRUN echo hi; echo bad >&2\nENV A=1\n"}, t=["app", "app:latest", "other:1"],
        buildargs=json.dumps({"UNUSED": "1", "http_proxy": None}),
    )  # fmt: skip
    texts = [message["stream"] for message in messages if "stream" in message]

    assert texts[:2] == ["Step 1/3 : FROM busybox", "\n"] and texts[2].startswith(" ---> ")
    assert "hi\n" in texts and "\x1b[91mbad\n\x1b[0m" in texts
    image_id = next(message["aux"]["ID"] for message in messages if "aux" in message)
    assert texts[-4:] == [
        "[Warning] One or more build-args [UNUSED] were not consumed\n", f"Successfully built {image_id[7:19]}\n",
        "Successfully tagged app:latest\n", "Successfully tagged other:1\n",
    ]  # fmt: skip
    assert machine.json("GET", "/images/app/json")["Id"] == image_id
    assert post(machine, {"Dockerfile": "FROM busybox\nRUN echo hi; echo bad >&2\nENV A=1\n"}, q="1")[1] == [
        {"stream": f"{image_id}\n"}
    ]


def test_a_failing_run(machine: Machine) -> None:
    """200, the code in errorDetail, no image, nothing left."""
    status, messages = post(machine, {"Dockerfile": "FROM busybox\nRUN exit 3\n"}, t="never")

    text = "The command '/bin/sh -c exit 3' returned a non-zero code: 3"
    assert status == 200 and messages[-1] == {"errorDetail": {"code": 3, "message": text}, "error": text}
    assert machine.request("GET", "/images/never/json")[0] == 404
    assert differences(machine) == []


def test_what_run_sees(machine: Machine) -> None:
    """User, directory, environment, arguments, network, hosts, shell, limits."""
    said = build(
        machine,
        "FROM busybox\nARG WHO=nobody\nENV GREETING=hello\nWORKDIR /work/here\nUSER user\n"
        'RUN echo "<$(pwd) $(id -un) $GREETING $WHO $FOO>"\nUSER root\nRUN cat /etc/hosts; ulimit -n\n'
        "RUN --network=none ip -o link | grep -c .\nSHELL [\"/bin/sh\", \"-ec\"]\nRUN false; true || echo unreachable\n"
        .replace("RUN false; true || echo unreachable\n", "RUN echo $0-$-\n"),
        extrahosts="db:10.1.2.3", ulimits=json.dumps([{"Name": "nofile", "Soft": 99, "Hard": 100}]),
    )  # fmt: skip

    assert "</work/here user hello nobody >\n" in said
    assert "10.1.2.3\tdb\n" in said and "\n99\n" in said and "\n1\n" in said


def test_layers_of_run(machine: Machine) -> None:
    """Changes, deletions and mount points: what is in the image is what the commands left."""
    text = (
        "FROM busybox\nCOPY gone kept /d/\nRUN rm /d/gone && echo new > /d/new && ln /d/new /d/link\n"
        "RUN --mount=type=cache,target=/var/cache/thing --mount=type=bind,target=/ctx,rw "
        "--mount=type=tmpfs,target=/scratch cp /ctx/kept /var/cache/thing/ && touch /ctx/x /scratch/y && echo a > /a\n"
        "RUN --mount=type=cache,target=/var/cache/thing ls /var/cache/thing\nRUN <<EOF\n#!/bin/sh\necho from a script\nEOF\n"
    )
    said = build(machine, text, {"gone": "1", "kept": "2"}, t="layers")
    assert "kept\n" in said and "from a script\n" in said
    listed = machine.run(
        "docker",
        "run",
        "--rm",
        "layers",
        "find",
        "/d",
        "/var",
        "/a",
        "/ctx",
        "/scratch",
        "/dev/pipes",
        check=False,
    )
    assert listed.stdout.split() == ["/d", "/d/kept", "/d/link", "/d/new", "/var", "/a"]
    again = build(machine, text, {"gone": "1", "kept": "2"}, t="layers")
    assert again.count("Using cache") == 5


def test_a_vanished_client_ends_its_build(machine: Machine) -> None:
    """The running step is killed; no image, no process, nothing in the stage."""
    body = tar({"Dockerfile": "FROM busybox\nRUN echo begun; sleep 3671\n"})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(machine.socket))
        client.sendall(
            b"POST /build?t=never HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n"
            % len(body) + body
        )  # fmt: skip
        client.settimeout(30)
        received = b""
        while b'"begun\\n"' not in received:
            received += client.recv(65536)
    deadline = time.monotonic() + 20
    while (left := differences(machine)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert left == [] and machine.request("GET", "/images/never/json")[0] == 404
    sleeping = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _read(path) == b"sleep\x003671\x00"]
    assert sleeping == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_docker_py(machine: Machine) -> None:
    """The SDK reads the image out of the stream, and raises with the log."""
    docker = pytest.importorskip("docker", reason="docker-py is not installed")
    client = docker.DockerClient(base_url=f"unix://{machine.socket}")
    try:
        import io

        image, log = client.images.build(
            fileobj=io.BytesIO(b"FROM busybox\nLABEL a=b\n"), tag="py", labels={"c": "d"}
        )
        assert image.labels == {"a": "b", "c": "d"} and any("stream" in line for line in log)
        with pytest.raises(docker.errors.BuildError, match="non-zero code: 4"):
            client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 4\n"))
    finally:
        client.close()


def test_remote_contexts(machine: Machine, tmp_path: Path) -> None:
    """A Dockerfile or an archive behind a URL, and ADD of one, checked."""
    import hashlib
    import http.server
    import threading

    (tmp_path / "plain.txt").write_text("FROM busybox\nLABEL from=url\n")
    (tmp_path / "context.tar").write_bytes(tar({"Dockerfile": "FROM busybox\nCOPY a /a\n", "a": "1"}))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        assert "LABEL from=url" in "".join(
            m.get("stream", "") for m in post(machine, b"", remote=f"{base}/plain.txt")[1]
        )
        assert "COPY a /a" in "".join(
            m.get("stream", "") for m in post(machine, b"", remote=f"{base}/context.tar")[1]
        )
        digest = hashlib.sha256((tmp_path / "plain.txt").read_bytes()).hexdigest()
        text = f"FROM busybox\nADD --checksum=sha256:{digest} {base}/plain.txt /x/\nADD {base}/plain.txt /y\nRUN ls -l /x/plain.txt /y\n"
        said = build(machine, text)
        assert said.count("-rw-------") == 2
        assert build(machine, text).count("Using cache") == 3
        _, messages = post(machine, {"Dockerfile": text.replace(digest, "0" * 64)})
        assert "digest mismatch" in messages[-1]["error"]
        _, messages = post(machine, {"Dockerfile": f"FROM busybox\nADD {base}/none /x\n"})
        assert "with status 404" in messages[-1]["error"]
    finally:
        server.shutdown()
        server.server_close()


def test_prune(machine: Machine) -> None:
    """As `docker builder prune` asks, empty filters included."""
    build(machine, "FROM busybox\nRUN echo pruned > /pruned\n")
    assert machine.json("GET", "/system/df?type=build-cache")["BuildCache"]
    answer = machine.json("POST", "/build/prune?all=1&filters=")
    assert answer["CachesDeleted"] and answer["SpaceReclaimed"] >= 0
    assert machine.json("POST", "/build/prune?filters=%7B%7D") == {"CachesDeleted": None, "SpaceReclaimed": 0}
    status, text = machine.request("POST", "/build/prune?reserved-space=x")
    assert status == 400 and b"reserved-space is in bytes and expects an integer, got x" in text
    assert machine.json("GET", "/system/df")["BuildCache"] == []


@pytest.mark.parametrize(
    ("cut", "is_whole"),
    [(512, False), (3584, False), (4535, False), (4540, True), (4608, True), (5120, True)],
)
def test_a_tar_that_ends_early(machine: Machine, cut: int, is_whole: bool) -> None:
    """Without its padding or its end mark it is whole, as for dockerd; data cut short is refused, as context and in ADD."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("Dockerfile", b"FROM busybox\nCOPY f /f\n"), ("f", b"x" * 3000)):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    broken = out.getvalue()[:cut]

    status, messages = post(machine, broken)
    assert (status == 200 and "error" not in messages[-1]) is is_whole
    assert is_whole or "is cut short" in messages[0]["message"]
    _, messages = post(
        machine, {"Dockerfile": "FROM busybox\nADD b.tar /x/\nRUN test -s /x/f\n", "b.tar": broken}
    )
    assert ("error" not in messages[-1]) is is_whole
    assert is_whole or "is cut short" in messages[-1]["error"]


def test_an_empty_run(machine: Machine) -> None:
    """`RUN []` runs the entrypoint, else the command, that the image has by then; without any it is refused."""
    assert "Successfully built" in build(machine, "FROM busybox\nRUN []\n")
    lines = 'CMD ["echo", "by-command"]\nRUN []\nENTRYPOINT ["echo", "by-entrypoint"]\nCMD ["none"]\nRUN []\n'
    said = build(machine, f"FROM busybox\n{lines}").splitlines()
    assert "by-command" in said and "by-entrypoint" in said
    _, messages = post(machine, {"Dockerfile": "FROM scratch\nRUN []\n"})
    assert "no command specified" in (messages[-1].get("error") or messages[-1]["message"])


def test_the_network_of_a_build(machine: Machine) -> None:
    """RUN is on a user-defined network with its names, or in another container's namespace; refusals are a start's."""
    tried = "FROM busybox\nRUN {}\n"
    try:
        machine.json("POST", "/networks/create", {"Name": "built-on"})
        wanted = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "built-on"}}
        machine.json("POST", "/containers/create?name=neighbour", {**wanted, "Hostname": "next-door"})
        _, messages = post(
            machine, {"Dockerfile": tried.format("true # stopped")}, networkmode="container:neighbour"
        )
        assert "cannot join network of a non running container" in messages[-1]["error"]
        machine.request("POST", "/containers/neighbour/start")
        shown = machine.json("GET", "/containers/neighbour/json")["NetworkSettings"]["Networks"]["built-on"]
        said = build(
            machine, tried.format("nslookup neighbour; ip -4 -o addr show eth0"), networkmode="built-on"
        )
        assert said.count(shown["IPAddress"]) >= 1 and f"inet {shown['IPAddress']}/" not in said
        machine.run(
            str(BIN / "ketch"),
            "exec",
            "neighbour",
            "sh",
            "-c",
            r"printf '10.0.0.9\tmine # \377\n' >> /etc/hosts",
        )
        said = build(
            machine,
            tried.format("hostname; ip -4 -o addr show eth0; grep -c mine /etc/hosts"),
            networkmode="container:neighbour",
        )
        assert "next-door" in said and f"inet {shown['IPAddress']}/" in said
        assert "\n1\n" in said  # its hosts file too, whatever it wrote there
        assert (
            next(iter(machine.json("GET", "/networks/built-on")["Containers"].values()))["Name"]
            == "neighbour"
        )
        for mode, fault in (
            ("container:none", "No such container: none"),
            ("no-such", "network no-such not found"),
        ):
            _, messages = post(machine, {"Dockerfile": tried.format(f"true # {mode}")}, networkmode=mode)
            assert fault in messages[-1]["error"]
    finally:
        machine.request("DELETE", "/containers/neighbour?force=1")
        machine.request("DELETE", "/networks/built-on")


def test_the_limits_of_a_build(machine: Machine) -> None:
    """Each is in force in RUN, as it is in a container; the cgroup lies below the wanted parent."""
    version1 = Path("/sys/fs/cgroup/memory").is_dir()
    memory = "memory/memory.limit_in_bytes" if version1 else "memory.max"
    cpus = "cpuset/cpuset.cpus" if version1 else "cpuset.cpus"
    shares = "cpu/cpu.shares" if version1 else "cpu.weight"
    script = f"cd /sys/fs/cgroup; cat {memory} {cpus} {shares}; ulimit -n; df -k /dev/shm | tail -n 1; cat /etc/hosts"
    said = build(
        machine, f"FROM busybox\nRUN {script}\n", memory=67108864, cpushares=512, cpusetcpus="0", shmsize=8388608,
        ulimits=json.dumps([{"Name": "nofile", "Soft": 123, "Hard": 124}]), extrahosts="far:10.9.8.7", isolation="default",
    ).splitlines()  # fmt: skip
    start = said.index("67108864")
    assert said[start + 1 : start + 4] == ["0", "512" if version1 else "59", "123"]
    assert said[start + 4].split()[1] == "8192" and "10.9.8.7\tfar" in said

    parent, seconds = f"/ketch-build-parent-{machine.bridge}", f"599.{os.getpid()}"  # nobody else sleeps so
    with subprocess.Popen(
        [str(BIN / "ketch"), "build", "--cgroup-parent", parent, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=machine.env,
    ) as client:  # fmt: skip
        try:
            assert client.stdin is not None
            client.stdin.write(f"FROM busybox\nRUN sleep {seconds}\n".encode())
            client.stdin.close()
            until = time.monotonic() + 60
            while not (found := cgroups_of(f"sleep\0{seconds}\0".encode())):
                assert time.monotonic() < until, "RUN has not started"
                time.sleep(0.05)
            assert f"{parent}/" in found
        finally:
            client.terminate()


def cgroups_of(command: bytes) -> str:
    """/proc/PID/cgroup of the first process with that command line; empty without one."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == command:
                return path.with_name("cgroup").read_text()
    return ""
