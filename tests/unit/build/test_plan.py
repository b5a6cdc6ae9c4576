"""The graph: scopes of ARG and ENV, what each step needs, what is left out, what history says."""

from __future__ import annotations

import json

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.build import explain, instructions, keys, lexer, plan, schedule, snapshot, stages
from ketchd.build.ops import CopyOp, Graph, Node, RunOp
from ketchd.build.stages import Base, Options
from ketchd.model.imageconfig import ImageConfig

BASE = Base(
    "sha256:" + "a" * 64, ("sha256:" + "b" * 64,), {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Hostname": "x"}
)


def graph(text: str, options: Options | None = None, **bases: Base) -> Graph:
    """The plan of `text` over busybox and whatever else is given."""
    options = options or Options()
    known = {(name, ""): base for name, base in {"busybox": BASE, **bases}.items()}
    source = lexer.read(text)
    return plan.make_graph(stages.split(source, instructions.parse(source), options), options, known)


def runs(made: Graph) -> list[RunOp]:
    """The RUN steps."""
    return [node.op for node in made.nodes if isinstance(node.op, RunOp)]


def target(made: Graph) -> Node:
    """The node whose state is the image."""
    return made.nodes[made.target]


def test_global_args_need_their_own_line_in_a_stage() -> None:
    """A global ARG is FROM's alone until a stage names it; a build argument overrides both defaults."""
    text = "ARG V=1\nFROM busybox\nRUN a\nARG V\nRUN b\nARG V=2\nRUN c\n"

    assert [run.args for run in runs(graph(text))] == [(), ("V=1",), ("V=2",)]
    assert [run.args for run in runs(graph(text, Options(build_args={"V": "9"})))] == [(), ("V=9",), ("V=9",)]


def test_env_beats_arg() -> None:
    """Whatever their order; ARG ends with its stage but for stages that stand on it."""
    made = graph(
        "FROM busybox AS a\nARG X=1\nENV X=2\nARG Y=3\nRUN a\nFROM a\nRUN b\nFROM busybox\nCOPY --from=1 / /\nRUN c\n"
    )

    assert [(run.args, run.env) for run in runs(made)] == [
        (("Y=3",), ("PATH=/bin", "X=2")), (("Y=3",), ("PATH=/bin", "X=2")), ((), ("PATH=/bin",)),
    ]  # fmt: skip


def test_a_line_sees_the_old_values() -> None:
    """ENV replaces all its pairs at once."""
    assert target(graph("FROM busybox\nENV a=1\nENV a=2 b=$a\n")).config["Env"] == ["PATH=/bin", "a=2", "b=1"]


def test_unneeded_stages_are_not_built() -> None:
    """What the target does not lead to is not in the graph; a mount leads too."""
    text = (
        "FROM busybox AS a\nRUN a\nFROM busybox AS b\nRUN b\nFROM busybox AS c\nRUN --mount=from=a,target=/a c\n"
        "FROM busybox AS last\nRUN last\n"
    )
    made = graph(text, Options(target="C"))

    assert [run.argv[2] for run in runs(made)] == ["a", "c"]
    assert schedule.needed(made) == {0, 1, 2, 3}
    assert made.steps == 4


def test_stages_are_ready_together() -> None:
    """Every step whose needs are done may begin: two stages side by side, the third when its source is there."""
    made = graph(
        "FROM busybox AS a\nRUN a\nFROM busybox AS b\nRUN b\nFROM busybox\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    wanted = schedule.needed(made)

    assert schedule.ready(made, set(), set(), wanted) == [0, 2, 4]
    assert schedule.ready(made, {0, 2, 4}, {0, 2, 4}, wanted) == [1, 3]
    assert schedule.ready(made, {0, 1, 2, 4}, {0, 1, 2, 3, 4}, wanted) == [5]


def test_unknown_target() -> None:
    """dockerd's words, and a hint."""
    with pytest.raises(
        InvalidInput, match=r"failed to reach build target bild in Dockerfile.*did you mean build\?"
    ):
        graph("FROM busybox AS build\n", Options(target="bild"))


def test_triggers_run_after_from() -> None:
    """ONBUILD of the base runs first, is not counted and not inherited."""
    parent = Base(BASE.image_id, BASE.layers, {"OnBuild": ["RUN trigger", "COPY . /src"]})
    made = graph("FROM parent\nRUN own\nONBUILD RUN later\n", parent=parent)

    assert [(node.number, node.text) for node in made.nodes] == [
        (1, "FROM parent"), (0, "RUN trigger"), (0, "COPY . /src"), (2, "RUN own"), (3, "ONBUILD RUN later"),
    ]  # fmt: skip
    assert target(made).config["OnBuild"] == ["RUN later"]


def test_a_stages_triggers_are_those_of_its_own_lines() -> None:
    """They run in each stage that stands on it, and not in the one after that."""
    made = graph(
        "FROM busybox AS a\nONBUILD RUN later\nFROM a AS b\nFROM b AS c\nFROM a\nCOPY --from=c / /\n"
    )

    assert [(node.number, node.text) for node in made.nodes] == [
        (1, "FROM busybox AS a"), (2, "ONBUILD RUN later"), (3, "FROM a AS b"), (0, "RUN later"), (4, "FROM b AS c"),
        (5, "FROM a"), (0, "RUN later"), (6, "COPY --from=c / /"),
    ]  # fmt: skip
    assert "OnBuild" not in target(made).config


def test_entrypoint_resets_an_inherited_cmd() -> None:
    """Only one that this stage did not set."""
    assert "Cmd" not in target(graph('FROM busybox\nENTRYPOINT ["x"]\n')).config
    assert target(graph('FROM busybox\nCMD ["y"]\nENTRYPOINT ["x"]\n')).config["Cmd"] == ["y"]


@pytest.mark.parametrize(
    ("line", "history"),
    [
        ('CMD ["sh"]', '/bin/sh -c #(nop)  CMD ["sh"]'),
        ("CMD echo hi", '/bin/sh -c #(nop)  CMD ["/bin/sh" "-c" "echo hi"]'),
        ("ENV A=1 B=2", "/bin/sh -c #(nop)  ENV A=1 B=2"),
        ("WORKDIR x", "/bin/sh -c #(nop) WORKDIR /x"),
        ("EXPOSE 443 80/udp", "/bin/sh -c #(nop)  EXPOSE 80/udp 443/tcp"),
        ("VOLUME /a /b", "/bin/sh -c #(nop)  VOLUME [/a /b]"),
        ('SHELL ["/bin/bash","-c"]', "/bin/bash -c #(nop)  SHELL [/bin/bash -c]"),
        ("RUN echo hi", "/bin/sh -c echo hi"),
        ('RUN ["a","b"]', "a b"),
        ("COPY --chown=1:2 a b /d/", "/bin/sh -c #(nop) COPY --chown=1:2 multi:x in /d/ "),
        ("LABEL a=b", "/bin/sh -c #(nop)  LABEL a=b"),
        ("HEALTHCHECK NONE", '/bin/sh -c #(nop)  HEALTHCHECK &{["NONE"] "0s" "0s" "0s" \'\\x00\'}'),
        ("STOPSIGNAL 9", "/bin/sh -c #(nop)  STOPSIGNAL 9"),
        ("ARG A=1", "/bin/sh -c #(nop)  ARG A=1"),
    ],
)
def test_history(line: str, history: str) -> None:
    """As the classic builder writes it."""
    assert snapshot.created_by(target(graph(f"FROM busybox\n{line}\n")), "multi:x") == history


def test_shell_wraps_what_follows() -> None:
    """SHELL counts for RUN, CMD and history."""
    made = graph('FROM busybox\nSHELL ["/bin/ash", "-ec"]\nARG A=1\nRUN x\n')

    assert snapshot.created_by(target(made)) == "|1 A=1 /bin/ash -ec x"


def test_destinations() -> None:
    """Relative to WORKDIR; what must be a directory keeps its slash."""
    made = graph("FROM busybox\nWORKDIR /w\nCOPY a .\nCOPY a b/\nCOPY a c\nCOPY a /\nCOPY a ..\n")

    assert [node.op.destination for node in made.nodes if isinstance(node.op, CopyOp)] == [
        "/w/",
        "/w/b/",
        "/w/c",
        "/",
        "/",
    ]


def test_proxies_are_no_part_of_the_key() -> None:
    """Given to RUN, not to history, not to the key."""
    plain = graph("FROM busybox\nRUN x\n")
    proxied = graph("FROM busybox\nRUN x\n", Options(build_args={"http_proxy": "http://p"}))
    made = [keys.inputs(target(one), "", BASE.layers, "linux/amd64") for one in (plain, proxied)]

    assert runs(proxied)[0].proxies == ("http_proxy=http://p",)
    assert made[0] == made[1]
    assert proxied.unconsumed == ()


def test_unconsumed_build_args() -> None:
    """Declared nowhere that is built."""
    assert graph(
        "ARG G\nFROM busybox\nARG S\n", Options(build_args={"S": "1", "G": "2", "Z": "3", "Q": None})
    ).unconsumed == (
        "Q",
        "Z",
    )


def test_image_config() -> None:
    """Readable as an image config; the base's container fields are gone."""
    made = graph("FROM busybox\nMAINTAINER me\nLABEL a=<b>\n", Options(labels={"z": "1"}))
    state = snapshot.of_base(made.nodes[0].op, "c")  # type: ignore[arg-type]
    for node in made.nodes[1:]:
        state = snapshot.after(state, node, chain="d", created_ns=10**9, layer=None)
    content = snapshot.image_config(state)
    parsed = ImageConfig.parse(content)

    assert state.image_id.startswith("sha256:") and len(state.short_id) == 12
    assert parsed.author == "me" and parsed.run.labels == {"a": "<b>", "z": "1"}
    assert parsed.created == "1970-01-01T00:00:01Z" and "Hostname" not in parsed.raw["config"]
    assert b"<" not in content and list(json.loads(content)) == sorted(json.loads(content))
    assert [entry.empty_layer for entry in parsed.history] == [True, True, True]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"command": ["a"]}, {"command": ["b"]}, "command changed"),
        ({"args": ["A=1"]}, {"args": ["A=2"]}, "build argument A changed"),
        ({"env": []}, {"env": ["B=1"]}, "environment variable B added"),
        (
            {"content": "1", "files": {"page.txt": "1"}},
            {"content": "2", "files": {"page.txt": "2"}},
            "page.txt changed",
        ),
        (
            {"content": "1", "files": {"a": "1", "b": "1"}},
            {"content": "2", "files": {"a": "2"}},
            "a and 1 more changed",
        ),
        ({"root": "1"}, {"root": "2"}, "base image changed"),
        ({"user": "a"}, {"user": "b"}, "user changed"),
        ({}, {}, "its earlier result is no longer here"),
    ],
)
def test_reasons(before: dict[str, object], after: dict[str, object], reason: str) -> None:
    """The first input that differs."""
    past = explain.Past(0, "RUN x", before)

    assert explain.why(past, "RUN x", after, any_past=True, after_base=True) == reason


def test_the_step_of_the_last_build() -> None:
    """Found by its line, else by its place; another instruction there is no relative."""
    past = [explain.Past(0, "RUN a", {}), explain.Past(0, "COPY b /b", {})]

    assert explain.find_past(past, 0, "COPY b /b", 0) == past[1]
    assert explain.find_past(past, 0, "RUN c", 0) == past[0]
    assert explain.find_past(past, 0, "RUN c", 1) is None
    assert explain.find_past(past, 0, "RUN c", 0, ["RUN c", "RUN a"]) is None


def test_a_first_build_has_nothing_to_explain() -> None:
    """A reason only where something like it was built before."""
    assert explain.why(None, "RUN x", {}, any_past=False, after_base=True) == ""
    assert explain.why(None, "RUN x", {}, any_past=True, after_base=True) == "this step is new"


def test_the_same_file_up_to_another_target() -> None:
    """All stages that both builds have are equal."""
    past = [explain.Past(0, "FROM a", None), explain.Past(0, "RUN b", None), explain.Past(2, "FROM d", None)]

    assert explain.is_same_file(past, [(0, "FROM a"), (0, "RUN b")])
    assert explain.is_same_file(past, [(0, "FROM a"), (0, "RUN b"), (1, "FROM c")])
    assert not explain.is_same_file(past, [(0, "FROM a"), (0, "RUN c")])
    assert not explain.is_same_file([], [(0, "FROM a")])


def test_an_image_without_path_gets_the_usual_one() -> None:
    """As with dockerd: ENV may speak of it, and what is made has it."""
    bare = Base("sha256:" + "a" * 64, ("sha256:" + "b" * 64,), {"Env": ["A=1"]})
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    assert target(graph("FROM bare\nLABEL a=b\n", bare=bare)).config["Env"] == ["A=1", f"PATH={usual}"]
    assert target(graph("FROM scratch\nENV PATH=/x:$PATH\n")).config["Env"] == [f"PATH=/x:{usual}"]
    assert target(graph("FROM busybox\nENV PATH=/x:$PATH\n")).config["Env"] == ["PATH=/x:/bin"]


def test_a_trigger_that_is_no_instruction_is_kept() -> None:
    """Whoever builds on the image is told."""
    made = target(graph("FROM busybox\nONBUILD /usr/local/bin/make all\n"))
    assert made.config["OnBuild"] == ["/usr/local/bin/make all"]
    standing = Base("sha256:" + "c" * 64, (), {"OnBuild": ["/usr/local/bin/make all"]})
    with pytest.raises(InvalidInput, match="unknown instruction: /USR/LOCAL/BIN/MAKE"):
        graph("FROM parent\n", parent=standing)
    with pytest.raises(InvalidInput, match=r"unknown instruction: MAKE \(ONBUILD of a:1: make all\)"):
        graph("FROM busybox AS a\nONBUILD make all\nFROM a\n")


def test_words_that_mean_the_same_make_the_same_step() -> None:
    """Two ways to write a label, ports and volumes in any order: one key, one config."""

    def key(text: str) -> tuple[str, str]:
        node = target(graph(f"FROM busybox\n{text}\n"))
        found = keys.inputs(node, "chain", (), "linux/amd64")
        assert found is not None
        return keys.key(found), json.dumps(node.config)

    assert key("LABEL a b") == key("LABEL a=b") == key("LABEL  'a'=\"b\"")
    assert key("EXPOSE 80 2375") == key("EXPOSE 2375 80/tcp")
    assert (
        json.dumps(target(graph("FROM busybox\nVOLUME /b\nVOLUME /a\n")).config["Volumes"])
        == '{"/a": {}, "/b": {}}'
    )
    assert key("LABEL a=b") != key("LABEL a=c")


def test_a_copy_from_its_own_stage() -> None:
    """By its number, dockerd says what is wrong."""
    with pytest.raises(InvalidInput, match="invalid from flag value 1: refers to current build stage"):
        graph("FROM busybox\nFROM busybox\nCOPY --from=1 a b\n")
