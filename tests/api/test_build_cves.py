"""What builds of others fell for: sources and stubs that are links, words that give rights, frontends, paths of a client."""

from __future__ import annotations

import json
import os
import socket
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import needs_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_testing.building import member, tar
from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]


def post(
    machine: Machine, dockerfile: str, files: dict[str, Any] | None = None, /, **query: str
) -> tuple[int, str]:
    """(status, everything that was said) of one build."""
    status, answer = machine.request(
        "POST", f"/build?{urlencode(query)}", raw=tar({"Dockerfile": dockerfile, **(files or {})}),
        headers={"Content-Type": "application/x-tar"},
    )  # fmt: skip
    messages = [json.loads(line) for line in answer.decode().splitlines() if line]
    return status, "".join(
        str(message.get("stream") or message.get("error") or message.get("message") or "")
        for message in messages
    )


def looked(place: Path) -> list[tuple[str, int, bytes]]:
    """Every path below, its kind and mode, and its content."""
    return sorted(
        (
            str(path.relative_to(place)),
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in place.rglob("*")
    )


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host with a file, and an empty file and an empty directory, as stubs are."""
    (tmp_path / "canary").write_text("sings")
    (tmp_path / "stub").mkdir()
    (tmp_path / "empty").touch()
    return tmp_path


@pytest.mark.parametrize("whence", ["stage", "context"])
@pytest.mark.parametrize("target", ["/", "/../../..", "OUTSIDE", "OUTSIDE/canary", "/proc/self/root"])
def test_cve_2024_1753_a_source_that_is_a_link_stays_in_its_root(
    machine: Machine, outside: Path, whence: str, target: str
) -> None:
    """`/x -> /` of a stage or of the context is that root, never the host's: nothing of it is seen, nothing is written."""
    link = target.replace("OUTSIDE", str(outside))
    before = looked(outside)
    look = f"for f in /m /m/canary /m{outside}/canary; do cat $f 2>&- && echo; done; touch /m/made /m{outside}/made; true"
    files: dict[str, Any] = {}
    if whence == "stage":
        text = f"FROM busybox AS evil\nRUN mkdir -p {outside} && ln -s {link} /x\n"
        mount = "type=bind,from=evil,source=/x,target=/m,rw"
    else:
        text, mount = "", "type=bind,source=x,target=/m,rw"
        files["x"] = member(tarfile.SYMTYPE, link=link)
    status, said = post(
        machine, f"{text}FROM busybox\nRUN --mount={mount} {look}; echo was here\n", files, nocache="1"
    )

    assert status == 200 and "sings" not in said
    assert "was here\n ---> " in said or "file does not exist" in said, said
    assert looked(outside) == before and not os.path.lexists("/made")


def test_cve_2024_23652_a_stub_that_became_a_link(machine: Machine, outside: Path) -> None:
    """The step moves the directory of its mount points away and puts a link to the host's there: what is there stays."""
    before = looked(outside)
    status, said = post(
        machine,
        "FROM busybox\nRUN --mount=type=tmpfs,target=/a/stub --mount=type=bind,source=f,target=/a/empty "
        f"mv /a /gone && ln -s {outside} /a && test -L /a && echo moved\n",
        {"f": "file"},
        nocache="1",
    )

    assert status == 200 and "\nmoved\n" in said and "Successfully built" in said, said
    assert looked(outside) == before


@pytest.mark.parametrize("word", ["insecure", "INSECURE", "privileged", "sandbox,insecure", "$MODE"])
def test_cve_2024_23653_no_step_is_privileged(machine: Machine, word: str) -> None:
    """No entitlement exists, so none is given, whatever the request says of them; an ordinary step has Docker's capabilities."""
    for query in ({}, {"entitlements": "security.insecure"}, {"allow": "security.insecure"}):
        status, said = post(
            machine, f"ARG MODE=insecure\nFROM busybox\nRUN --security={word} true\n", **query
        )
        assert status == 400 and f'security mode "{word}" is not allowed for a build' in said


def test_cve_2024_23653_what_a_step_has(machine: Machine) -> None:
    """Neither the words of the request nor an explicit `sandbox` change it."""
    status, said = post(
        machine, "FROM busybox\nRUN --security=sandbox grep ^Cap /proc/self/status\n",
        nocache="1", privileged="1", entitlements="security.insecure",
    )  # fmt: skip
    assert status == 200 and "CapEff:\t00000000a80425fb" in said and "CapInh:\t0000000000000000" in said, said


@pytest.mark.parametrize(
    "fields",
    ["bind-propagation=rshared", "propagation=up", "rshared", "rw=rshared", "suid", "options=dev",
     "bind-propagation=", "ro=maybe", "target=/y=z,shared"],
)  # fmt: skip
def test_cve_2024_9407_a_builds_mounts_have_no_propagation(machine: Machine, fields: str) -> None:
    """Only keys and values of the table are taken: nothing unknown reaches a mount."""
    for kind in ("bind", "cache", "tmpfs"):
        status, said = post(machine, f"FROM busybox\nRUN --mount=type={kind},target=/x,{fields} true\n")
        assert status == 400 and "dockerfile parse error line 2" in said, (kind, said)


def test_ghsa_4c29_8rgm_jvjj_no_frontend_is_fetched(machine: Machine) -> None:
    """Nobody is even called: a frontend that is not built in is refused by its name."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        name = f"127.0.0.1:{listener.getsockname()[1]}/docker/dockerfile:1"
        for query in ({}, {"buildargs": json.dumps({"BUILDKIT_SYNTAX": name})}):
            status, said = post(machine, f"# syntax={name}\nFROM busybox\n", **query)
            assert status == 400 and "names another frontend" in said, said
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_ghsa_4c29_8rgm_jvjj_there_is_no_session(machine: Machine) -> None:
    """Nothing takes a client's messages with paths."""
    for path in ("/session", "/grpc", "/v1.43/session", "/v1.43/grpc"):
        status, answer = machine.request(
            "POST", path, raw=b"",
            headers={"Upgrade": "h2c", "Connection": "Upgrade", "X-Docker-Expose-Session-Sharedkey": "../../x"},
        )  # fmt: skip
        assert status in (404, 501), answer
    status, said = post(machine, "FROM busybox\n", remote="client-session", session="../../../etc")
    assert status == 501 and "client session" in said


PARTS = st.lists(st.sampled_from(["..", ".", "a", "up", "canary", "OUTSIDE"]), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    members=st.lists(
        st.tuples(PARTS, st.sampled_from(["file", "link", "hardlink", "directory"]), PARTS, st.booleans()),
        max_size=5,
    ),
    dockerfile=PARTS,
    copied=PARTS,
)
def test_ghsa_4c29_8rgm_jvjj_no_path_of_a_client_leads_out(
    machine: Machine, outside: Path, members: list[Any], dockerfile: list[str], copied: list[str]
) -> None:
    """Names and links of a context, the Dockerfile's own, a COPY's source: with `..`, absolute, through links.

    Whatever comes of the build, nothing beside the data root changes and nothing of the host is in the answer."""

    def path(parts: list[str]) -> str:
        return "/".join(parts).replace("OUTSIDE", str(outside))

    files: dict[str, Any] = {"up": member(tarfile.SYMTYPE, link="..")}
    for name, kind, target, absolute in members:
        made = ("/" if absolute else "") + path(name)
        if kind == "file":
            files[made] = "changed"
        elif kind == "directory":
            files[f"{made}/"] = ""
        else:
            files[made] = member(tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE, link=path(target))
    before, beside = looked(outside), sorted(os.listdir(machine.base))

    for query in ({}, {"dockerfile": path(dockerfile)}):
        status, said = post(
            machine, f"FROM busybox\nCOPY {path(copied)} /got/\nRUN cat /got/* || true\n", files, **query
        )
        assert status in (200, 400, 404, 500) and "sings" not in said and "Traceback" not in said, said
        assert looked(outside) == before and sorted(os.listdir(machine.base)) == beside
