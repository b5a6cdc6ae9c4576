"""The tutorial's story through `ketch`, through the stock docker CLI, and through docker-py: one daemon, three clients."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketch_testing.machine import BIN, Machine, free_port

DOCKERFILE = """\
FROM busybox
WORKDIR /app
COPY page.txt server.sh ./
RUN chmod +x server.sh && cat page.txt > generated.txt && hostname > /dev/null
ENV PORT=5000
EXPOSE 5000
CMD ["./server.sh"]
"""
SERVER = "#!/bin/sh\necho serving on $PORT\nexec httpd -f -p $PORT -h /app\n"


@pytest.fixture(params=["ketch", "docker"])
def client(request: pytest.FixtureRequest) -> str:
    """The program that types the story."""
    name = str(request.param)
    path = str(BIN / name) if name == "ketch" else shutil.which(name)
    if path is None:
        pytest.skip(f"the {name} CLI is not installed")
    return path


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "page.txt").write_text("hello from a container\n")
    (tmp_path / "server.sh").write_text(SERVER)
    return tmp_path


def get(url: str) -> str:
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            pass
    raise AssertionError(f"{url} does not answer")


@pytest.mark.root
def test_the_whole_story(machine: Machine, client: str, context: Path, guarded_registry: str) -> None:
    """build, images, run -d -p, fetch, ps, logs, stop, rm, login, tag, push, rmi, pull by tag and digest, run, logout."""
    who = Path(client).name
    remote = f"{guarded_registry}/me/{who}-app"
    run = lambda *words, **given: machine.run(client, *words, **given)  # noqa: E731
    built = run("build", "-t", f"{who}-app", ".", cwd=context).stdout
    assert "Successfully built" in built and "Successfully tagged" in built
    again = run("build", "-t", f"{who}-app", ".", cwd=context).stdout
    assert again.count("Using cache") >= 2
    (context / "page.txt").write_text(f"another page of {who}\n")
    changed = run("build", "-t", f"{who}-app:changed", ".", cwd=context).stdout
    assert changed.count("Using cache") < again.count("Using cache")
    listed = run("images").stdout
    assert f"{who}-app" in listed and "changed" in listed

    port = free_port()
    container = run("run", "-d", "-p", f"{port}:5000", "--name", f"{who}-web", f"{who}-app").stdout.strip()
    assert len(container) == 64
    assert get(f"http://127.0.0.1:{port}/generated.txt") == "hello from a container\n"
    assert f"{port}->5000/tcp" in run("ps").stdout
    assert "serving on 5000" in run("logs", f"{who}-web").stdout
    assert run("exec", f"{who}-web", "cat", "/app/page.txt").stdout == "hello from a container\n"
    run("stop", "-t", "1", f"{who}-web")
    run("rm", f"{who}-web")

    refused = run("login", "-u", "me", "--password-stdin", guarded_registry, stdin=b"wrong", check=False)
    assert refused.returncode == 1 and "unauthorized" in refused.stderr.lower()
    run("login", "-u", "me", "--password-stdin", guarded_registry, stdin=b"secret")
    run("tag", f"{who}-app", f"{remote}:latest")
    pushed = run("push", f"{remote}:latest").stdout
    digest = pushed.split("digest: ")[1].split()[0]
    image_id = run("inspect", "--format", "{{.Id}}", f"{remote}:latest").stdout.strip()
    run("rmi", f"{remote}:latest", f"{who}-app", f"{who}-app:changed")
    assert f"{who}-app" not in run("images").stdout
    run("pull", f"{remote}:latest")
    assert run("inspect", "--format", "{{.Id}}", f"{remote}:latest").stdout.strip() == image_id
    run("rmi", f"{remote}:latest")
    run("pull", f"{remote}@{digest}")
    assert (
        run("run", "--rm", f"{remote}@{digest}", "cat", "generated.txt").stdout == "hello from a container\n"
    )
    run("rmi", f"{remote}@{digest}")
    run("logout", guarded_registry)


@pytest.mark.root
def test_exit_codes_and_messages(machine: Machine, client: str) -> None:
    """What docker's users see of faults: 125, 126, 127, the program's own code, one clear line."""
    run = lambda *words: machine.run(client, *words, check=False)  # noqa: E731
    assert run("run", "--rm", "busybox", "sh", "-c", "exit 7").returncode == 7
    missing = run("run", "--rm", "busybox", "no-such-program")
    assert missing.returncode == 127 and "executable file not found in $PATH" in missing.stderr
    directory = run("run", "--rm", "busybox", "/etc")
    assert directory.returncode == 126 and "is a directory" in directory.stderr
    unknown = run("run", "--rm", "127.0.0.1:1/nothing:here")
    assert unknown.returncode == 125 and "connection refused" in unknown.stderr
    assert run("rmi", "no-such-image").returncode == 1
    assert "No such image: no-such-image:latest" in run("rmi", "no-such-image").stderr
    assert "No such container: nobody" in run("rm", "nobody").stderr + run("stop", "nobody").stderr


@pytest.fixture
def sdk(machine: Machine) -> Iterator[object]:
    docker = pytest.importorskip("docker", reason="docker-py is not installed")
    client = docker.DockerClient(base_url=f"unix://{machine.socket}")
    yield client
    client.close()


@pytest.mark.root
def test_docker_py(machine: Machine, sdk: object, context: Path, open_registry: str) -> None:
    """docker-py builds, runs, reads logs, execs, pushes and pulls."""
    client = sdk
    assert client.ping()  # type: ignore[attr-defined]
    image, _ = client.images.build(path=str(context), tag="py-app")  # type: ignore[attr-defined]
    assert client.containers.run("py-app", ["cat", "page.txt"], remove=True) == b"hello from a container\n"  # type: ignore[attr-defined]
    container = client.containers.run("py-app", detach=True, ports={"5000/tcp": None})  # type: ignore[attr-defined]
    try:
        container.reload()
        port = container.attrs["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostPort"]
        assert get(f"http://127.0.0.1:{port}/page.txt") == "hello from a container\n"
        code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)
        assert (code, output) == (3, (b"out\n", b"err\n"))
        assert b"serving on 5000" in container.logs()
    finally:
        container.remove(force=True)
    name = f"{open_registry}/py/app"
    assert image.tag(name, "1")
    pushed = client.images.push(name, tag="1", stream=True, decode=True)  # type: ignore[attr-defined]
    lines = list(pushed)
    assert not [line for line in lines if "error" in line], lines
    client.images.remove(f"{name}:1")  # type: ignore[attr-defined]
    client.images.remove("py-app:latest")  # type: ignore[attr-defined]
    assert client.images.pull(name, tag="1").id == image.id  # type: ignore[attr-defined]
