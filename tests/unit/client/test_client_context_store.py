"""`context`: the same words typed to docker's CLI and to ours, and each at work in the store that the other wrote."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch.contextstore import Stored, natural, pack, unpack
from ketch.faults import CommandFailed

DOCKER = shutil.which("docker")
KETCH = str(Path(sys.executable).parent / "ketch")

needs_docker = pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

Typed = Callable[..., tuple[int, str, str]]

# Each line in both, with the outputs compared; the store is what the lines before made of it.
STORY = """\
context show
context ls
context create one --docker host=unix:///x.sock --description 'my words'
context create two --docker host=tcp://h:2376,ca=ca.pem,cert=cert.pem,key=key.pem,skip-tls-verify=true
context create three --docker host=ssh://me@h
context create bad --docker host=ssh://me:word@h
context create bad --docker host=ssh://
context create bad --docker host=ssh://h:x
context create one
context create default --docker host=unix:///x
context create 'x y' --docker host=unix:///x
context create x --docker host=unix:///x
context create bad --docker host=foo
context create bad --docker foo=x,host=unix:///y
context create bad --docker foo
context create bad --from nosuch
context create bad --docker host=tcp://h:1,ca=none.pem
context create bad --docker host=tcp://h:1,ca=junk
context create bad --docker host=tcp://h:1,ca=empty
context create bad --docker host=tcp://h:1,ca=bytes
context create latin --docker host=unix:///x --description 'caf\udce9'
context inspect latin
context create bad --docker skip-tls-verify=maybe
context create bad --from two --docker host=x
context create four --from two
context create f10 --docker host=unix:///x,foo
context create f9 --docker host=
context ls
context list -q
context ls --format json
context ls --format '{{.Name}} {{.Current}} {{.Description}} {{.DockerEndpoint}} {{json .}}'
context ls --format 'table {{.Name}}\\t{{.DockerEndpoint}}'
context inspect two one nosuch
context inspect -f '{{.Name}} {{.Endpoints.docker.Host}} {{json .}}' two
context inspect -f '{{'
context inspect
context use one
context show
context ls
context inspect
context create five
context inspect five
context rm one
context rm -f one
context show
context use nosuch
context use x
context use default
context update two --description new
context inspect two
context update two --docker host=tcp://z:1
context update two
context update nosuch --description x
context update default
context inspect two
context export four
context export four
context export nosuch
context import six four.dockercontext
context import six four.dockercontext
context inspect six
context import seven nosuch
context import default four.dockercontext
context import seven evil.tar
context import seven empty.tar
context import seven z.zip
context inspect seven
context rm six nosuch default three
context remove seven
context rm -f nosuch
context ls -q
--context two context show
--context nosuch context show
--context two context rm two
context
context foo
context ls x
context create
-H unix:///y context ls
-H unix:///y context inspect default
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with certificates and archives."""
    words = "req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout key.pem -out cert.pem".split()
    subprocess.run(["openssl", *words], cwd=tmp_path, capture_output=True, check=True)
    shutil.copy(tmp_path / "cert.pem", tmp_path / "ca.pem")
    (tmp_path / "junk").write_text("x")
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\x30\x82\xff")
    for name, member in (("evil.tar", "../x"), ("empty.tar", "tls/docker/ca.pem")):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.addfile(tarfile.TarInfo(member))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(
            "meta.json",
            json.dumps(
                {
                    "Name": "a",
                    "Metadata": {},
                    "Endpoints": {"docker": {"Host": "unix:///q", "SkipTLSVerify": False}},
                }
            ),
        )
        archive.writestr("tls/docker/ca.pem", "x")  # fmt: skip
    return tmp_path


def typing(program: str, config: Path, cwd: Path) -> Typed:
    """How a client is typed to, with a configuration directory."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "KETCH_"))}
    env["DOCKER_CONFIG"] = str(config)

    def typed(*words: str, stdin: bytes = b"", **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [program, *words],
            env={**env, **variables},
            cwd=cwd,
            input=stdin,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")

    return typed


@needs_docker
@needs_openssl
def test_the_same_story_with_both(place: Path) -> None:
    """Outputs and exit codes, line by line."""
    told = {}
    for program in (str(DOCKER), KETCH):
        config = place / "config"
        typed = typing(program, config, place)
        if program != KETCH and typed("context", "show")[0] != 0:
            pytest.skip("docker 20.10 has other words and an orchestrator")
        told[program] = [(line, *typed(*shlex.split(line))) for line in STORY.splitlines()]
        shutil.rmtree(config)
        (place / "four.dockercontext").unlink()
    ours, theirs = ([tuple(map(same, one)) for one in told[program]] for program in (KETCH, str(DOCKER)))
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == []


def same(told: int | str) -> int | str:
    """Without the program's name, its socket, and how a copy of the default context is described."""
    if isinstance(told, int):
        return told
    for one, other in (
        ("/var/run/docker.sock", "/run/ketch.sock"), ("docker:", "ketch:"), ("'docker", "'ketch"), ("Usage:  docker", "Usage:  ketch"),
        ("command: docker", "command: ketch"), ("current docker context", "current context"), ("\\u003c", "<"), ("\\u003e", ">"),
    ):  # fmt: skip
        told = told.replace(one, other)
    return "\n".join(" ".join(line.split()) for line in told.splitlines())


@needs_docker
@needs_openssl
@pytest.mark.parametrize("first", ["docker", "ketch"])
def test_each_reads_what_the_other_wrote(place: Path, first: str) -> None:
    """Stored, exported, imported, updated, removed."""
    config = place / "config"
    docker, ketch = typing(str(DOCKER), config, place), typing(KETCH, config, place)
    writer, reader = (docker, ketch) if first == "docker" else (ketch, docker)
    made = "host=tcp://127.0.0.1:1,ca=ca.pem,cert=cert.pem,key=key.pem"
    assert writer("context", "create", "one", "--docker", made, "--description", "d <ä>")[0] == 0
    ours, theirs = (json.loads(typed("context", "inspect", "one")[1]) for typed in (writer, reader))
    assert ours == theirs
    assert reader("context", "use", "one")[:2] == (0, "one\n")
    assert writer("context", "ls", "--format", "{{.Name}} {{.Current}}")[1] == "default false\none true\n"
    code, _, said = writer("ps")
    assert code == 1 and "127.0.0.1:1" in said
    assert writer("context", "export", "one", "x.tar")[0] == 0
    assert reader("context", "import", "two", "x.tar")[0] == 0
    assert writer("context", "inspect", "-f", "{{json .TLSMaterial}}", "two")[1] == (
        '{"docker":["ca.pem","cert.pem","key.pem"]}\n'
    )
    assert reader("context", "update", "two", "--description", "other")[0] == 0
    assert writer("context", "ls", "--format", "{{.Description}}")[1].endswith("d <ä>\nother\n")
    assert reader("context", "rm", "-f", "one", "two")[:2] == (0, "one\ntwo\n")
    assert writer("context", "ls", "-q")[1] == "default\n"
    assert [path for path in (config / "contexts").rglob("*") if path.is_file()] == []


@needs_openssl
def test_what_is_stored_is_the_owner_s(place: Path) -> None:
    """Keys are for nobody else, whatever the umask."""
    before = os.umask(0)
    try:
        typed = typing(KETCH, place / "config", place)
        made = "host=tcp://h:1,ca=ca.pem,cert=cert.pem,key=key.pem"
        assert typed("context", "create", "one", "--docker", made)[0] == 0
    finally:
        os.umask(before)
    found = sorted((place / "config" / "contexts" / "tls").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o700}
    assert len(found) == 5


@needs_openssl
def test_an_update_that_fails_leaves_what_was_there(place: Path) -> None:
    """Not one certificate is missing, and the reason is one line."""
    typed = typing(KETCH, place / "config", place)
    assert (
        typed("context", "create", "one", "--docker", "host=tcp://h:1,ca=ca.pem,cert=cert.pem,key=key.pem")[0]
        == 0
    )
    before = typed("context", "inspect", "one")
    no_room = ("-c", 'ulimit -f 0; exec "$@"', "-", KETCH)
    code, _, said = typing("sh", place / "config", place)(
        *no_room, "context", "update", "one", "--docker", "host=tcp://z:1,ca=ca.pem"
    )
    assert (code, said.splitlines()) == (1, ["file too large"])
    assert typed("context", "inspect", "one") == before
    assert typed("context", "update", "one", "--docker", "host=tcp://z:1,ca=ca.pem")[0] == 0
    assert typed("context", "inspect", "-f", "{{.TLSMaterial.docker}}", "one")[1] == "[ca.pem]\n"


@pytest.mark.parametrize(
    "words", [("ls",), ("create", "one", "--docker", "host=unix:///x"), ("rm", "-f", "one")]
)
def test_a_store_that_is_none(tmp_path: Path, words: tuple[str, ...]) -> None:
    """One line, and the fault's place only for who wants it."""
    (tmp_path / "contexts").touch()
    typed = typing(KETCH, tmp_path, tmp_path)
    code, _, said = typed("context", *words)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"{tmp_path}/contexts") and said.endswith(": not a directory\n")
    assert "Traceback" in typed("-D", "context", *words)[2]


@needs_openssl
def test_from_takes_the_certificates_along(place: Path) -> None:
    """docker forgets them with `--docker from=`."""
    typed = typing(KETCH, place / "config", place)
    assert typed("context", "create", "one", "--docker", "host=tcp://h:1,ca=ca.pem")[0] == 0
    assert typed("context", "create", "two", "--docker", "from=one")[0] == 0
    assert typed("context", "inspect", "-f", "{{.Endpoints.docker.Host}} {{.TLSMaterial.docker}}", "two")[1] == (
        "tcp://h:1 [ca.pem]\n"
    )  # fmt: skip


def test_the_default_context_is_the_environment(tmp_path: Path) -> None:
    typed = typing(KETCH, tmp_path / "config", tmp_path)
    code, out, err = typed("context", "ls", DOCKER_HOST="unix:///y", DOCKER_CONTEXT="x")
    assert (code, out.splitlines()[1]) == (
        0,
        "default *   Current DOCKER_HOST based configuration   unix:///y         ",
    )
    assert err == (
        "Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the global "
        "--context flag, or unset DOCKER_HOST environment variable.\n"
    )  # fmt: skip


def test_a_context_goes_by_standard_streams(tmp_path: Path) -> None:
    typed = typing(KETCH, tmp_path / "config", tmp_path)
    env = {**os.environ, "DOCKER_CONFIG": str(tmp_path / "config")}
    typed("context", "create", "one", "--docker", "host=unix:///x")
    done = subprocess.run([KETCH, "context", "export", "one", "-"], env=env, capture_output=True, check=True)
    assert typed("context", "import", "two", "-", stdin=done.stdout)[:2] == (0, "two\n")
    assert typed("context", "inspect", "-f", "{{.Endpoints.docker.Host}}", "two")[1] == "unix:///x\n"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("tls/../../x", "tls/../../x: unexpected context file"),
        ("/etc/passwd", "/etc/passwd: unexpected context file"),
        ("tls/docker//x", "tls/docker//x: unexpected context file"),
        ("tls\\docker", r"tls\docker: unexpected context file"),
        ("tls/docker/a/b", "archive format is invalid"),
        ("tls/x", "archive format is invalid"),
        ("tls/docker/ca.pem", "invalid context: no metadata found"),
    ],
)
def test_archives_that_are_none(member: str, words: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(member))
    with pytest.raises(CommandFailed) as caught:
        unpack("x", buffer.getvalue())
    assert caught.value.message == words


@pytest.mark.parametrize(
    "archive", [b"no archive at all, " * 100, b"PK\x03\x04 neither", b"", bytes(11 << 20)]
)
def test_what_is_no_archive(archive: bytes) -> None:
    with pytest.raises(CommandFailed):
        unpack("x", archive)


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", json.dumps({"Name": "a", "Metadata": {}}))
        archive.writestr("tls/docker/ca.pem", "x" * 600)
    return buffer.getvalue()


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.booleans()
)
def test_a_damaged_archive_is_none_or_another(damages: list[tuple[int, int]], zipped: bool) -> None:
    """Whatever is changed in it."""
    meta = {"Name": "a", "Endpoints": {"docker": {"Host": "x"}}}
    archive = bytearray(a_zip() if zipped else pack(Stored(meta, {"docker": {"ca.pem": b"x" * 600}})))
    for at, byte in damages:
        archive[at % len(archive)] = byte
    with contextlib.suppress(CommandFailed):
        assert unpack("x", bytes(archive)).name == "x"


def test_an_archive_that_grows() -> None:
    """Compressed as a whole it is none, as for docker; a sparse file has no more than the limit."""
    whole = pack(Stored({"Name": "a", "Endpoints": {}}, {}))
    with pytest.raises(CommandFailed, match="not a context's archive"):
        unpack("x", gzip.compress(whole))
    entry = tarfile.TarInfo("tls/docker/ca.pem")
    entry.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(1 << 40),
    }
    with pytest.raises(CommandFailed, match="read exceeds the defined limit"):
        unpack("x", entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


def test_numbers_in_names_are_numbers() -> None:
    assert sorted(["b", "a10", "a9", "a"], key=natural) == ["a", "a9", "a10", "b"]
