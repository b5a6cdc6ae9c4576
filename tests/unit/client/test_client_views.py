"""What is shown: tables, ports, images, progress, statistics, disk usage, events. Values in, text out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch import gotemplatefunctions
from ketch.commands.diskusage import summary
from ketch.commands.fsck import finding_line
from ketch.commands.images import image_rows, names_of
from ketch.commands.listing import container_rows, displayed_ports
from ketch.commands.prune import system_warning
from ketch.commands.stats import stats_row
from ketch.commands.system import event_line
from ketch.engine import json_objects
from ketch.faults import CommandFailed, EngineAway
from ketch.gotemplate import FUNCTIONS, TemplateError
from ketch.gotemplaterun import render
from ketch.progressview import View, progress_bar
from ketch.quantities import human_duration, parse_duration, parse_size
from ketch.views import columns, render_rows
from ketch_testing.fakeengine import FakeEngine

NOW = 1_800_000_000.0
BOX: dict[str, Any] = {
    "Id": "a1" * 32,
    "Names": ["/web", "/other/alias"],
    "Image": "busybox",
    "ImageID": "sha256:" + "b" * 64,
    "Command": "httpd -f -p 80 -h /very/long",
    "Created": NOW - 90,
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
    "Labels": {"a": "b", "com.x.some-name": "c"},
    "State": "running",
    "Status": "Up 5 seconds",
    "NetworkSettings": {"Networks": {"bridge": {}}},
    "Mounts": [{"Type": "volume", "Name": "a-volume-with-a-long-name", "Driver": "local"}],
    "SizeRw": 12345,
    "SizeRootFs": 2000000,
}


def test_a_container() -> None:
    (row,) = container_rows([BOX], trunc=True, now=NOW)

    assert row["Label"]("a") == "b" and row["Label"]("none") == ""
    del row["Label"], row["CreatedAt"]
    assert row == {
        "ID": "a1a1a1a1a1a1", "Names": "web", "Image": "busybox", "Command": '"httpd -f -p 80 -h /…"',
        "RunningFor": "About a minute ago", "Ports": "0.0.0.0:8080->80/tcp", "State": "running",
        "Status": "Up 5 seconds", "Size": "12.3kB (virtual 2MB)", "Labels": "a=b,com.x.some-name=c",
        "Mounts": "a-volume-with-…", "LocalVolumes": "1", "Networks": "bridge", "Platform": None,
    }  # fmt: skip
    (whole,) = container_rows([BOX], trunc=False, now=NOW)
    assert whole["Names"] == "web,other/alias" and whole["ID"] == BOX["Id"]


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("busybox:1", "busybox:1"),
        ("me/x@sha256:" + "c" * 64, "me/x"),
        ("sha256:" + "c" * 64, "c" * 12),
        ("b" * 12, "b" * 12),
        ("", "<no image>"),
    ],
)
def test_a_containers_image(image: str, shown: str) -> None:
    assert container_rows([{**BOX, "Image": image}], trunc=True, now=NOW)[0]["Image"] == shown


@pytest.mark.parametrize(
    ("ports", "shown"),
    [
        ([(80, 0, "")], "80/tcp"),
        ([(80, 0, ""), (81, 0, ""), (90, 0, "")], "80-81/tcp, 90/tcp"),
        ([(80, 80, "0.0.0.0"), (81, 81, "0.0.0.0")], "0.0.0.0:80-81->80-81/tcp"),
        ([(80, 8080, "0.0.0.0"), (80, 8080, "::")], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
        ([], ""),
    ],
)
def test_ports(ports: list[tuple[int, int, str]], shown: str) -> None:
    given = [
        {"PrivatePort": inside, "Type": "tcp", **({"PublicPort": outside, "IP": address} if address else {})}
        for inside, outside, address in ports
    ]

    assert displayed_ports(given) == shown


def test_tables() -> None:
    """go-cli's columns: at least ten wide, three apart, the last as it is."""
    rows = [{"A": "x", "B": "y"}, {"A": "longer than ten", "B": "z"}]
    titles = {"A": "FIRST", "B": "SECOND"}

    assert render_rows("", rows, titles, "{{.A}}\t{{.B}}") == (
        "FIRST             SECOND\nx                 y\nlonger than ten   z\n"
    )
    assert (
        render_rows("table {{.B}}\\t{{upper .A}}", rows[:1], titles, "") == "SECOND    FIRST\ny         X\n"
    )
    assert render_rows("{{.B}}", rows, titles, "") == "y\nz\n"
    assert render_rows("json", rows[:1], titles, "") == '{"A":"x","B":"y"}\n'
    assert columns([["a", "b"]]) == "a         b\n"
    for form in ("{{", "{{.C}}"):
        with pytest.raises(CommandFailed, match="template parsing error: "):
            render_rows(form, rows, titles, "")


def test_label_columns() -> None:
    (row,) = container_rows([BOX], trunc=True, now=NOW)
    from ketch.commands.listing import TITLES

    shown = render_rows('table {{.ID}}\t{{.Label "com.x.some-name"}}', [row], TITLES, "")
    assert shown == "CONTAINER ID   some name\na1a1a1a1a1a1   c\n"
    assert "Label" in row and '"Label"' not in render_rows("json", [row], TITLES, "")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("{{.A}} {{.B.C}}", "1 [x y]"),
        ("{{range .B.C}}{{.}};{{end}}", "x;y;"),
        ("{{range $i, $e := .B.C}}{{$i}}={{$e}} {{else}}none{{end}}", "0=x 1=y "),
        ("{{if eq .A 1 2}}yes{{else}}no{{end}}", "yes"),
        ("{{with .B}}{{index .C 1}}{{end}}", "y"),
        ("{{json .B}}", '{"C":["x","y"]}'),
        ('{{join .B.C ","}}|{{len .B.C}}|{{printf "%03d %s %q" .A "z" "w"}}', 'x,y|2|001 z "w"'),
        ("a {{- .A -}} b", "a1b"),
        ('{{.A | printf "%d!"}}', "1!"),
        ("{{/* nothing */}}x", "x"),
        ("{{.D}}", "<nil>"),
        ("{{.E}}", "true"),
    ],
)
def test_templates(form: str, text: str) -> None:
    assert render(form, {"A": 1, "B": {"C": ["x", "y"]}, "D": None, "E": True}) == text


@pytest.mark.parametrize(
    "form", ["{{", "{{.A", "{{if}}", "{{end}}", "{{range .A}}", "{{nope .A}}", "{{.A.B.C}}", '{{"x}}']
)
def test_wrong_templates(form: str) -> None:
    with pytest.raises(TemplateError):
        render(form, {"A": {}})


@given(st.text("{}.|$\"'`-/*abif range end0 ", max_size=40))
def test_any_template_is_carried_out_or_refused(form: str) -> None:
    try:
        render(form, {"a": 1, "b": [1]})
    except TemplateError:
        pass


WORDS = [
    *'1 -1 99999999999999999999 1.5 "a" "" "%d%c%x%U%q%b%5.3f%v" true nil .A .B .C .Labels .Env "\\u0041" $'.split(),
    '(split "a,b" ",")',
]


@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.lists(st.sampled_from(WORDS), max_size=4),
)
def test_any_arguments_are_taken_or_refused(name: str, words: list[str]) -> None:
    with contextlib.suppress(TemplateError):
        render(f"{{{{{' '.join([name, *words])}}}}}", {"A": 1, "B": [1, "x"], "C": {"k": "v"}, "Env": None})


def test_images_have_a_row_for_every_name() -> None:
    image = {
        "Id": "sha256:" + "a" * 64,
        "RepoTags": ["busybox:latest", "reg:5000/x:1"],
        "RepoDigests": ["busybox@sha256:" + "1" * 64],
        "Created": NOW - 3600,
        "Size": 123456789,
    }

    assert names_of(image, False) == [("busybox", "latest", "<none>"), ("reg:5000/x", "1", "<none>")]
    assert names_of(image, True)[0] == ("busybox", "latest", "sha256:" + "1" * 64)
    assert names_of({"RepoTags": [], "RepoDigests": []}, True) == [("<none>", "<none>", "<none>")]
    assert names_of({"RepoDigests": image["RepoDigests"]}, False) == [("busybox", "<none>", "<none>")]
    row = image_rows([image], trunc=True, digests=False, now=NOW)[0]
    assert (row["ID"], row["Size"], row["CreatedSince"]) == ("a" * 12, "123MB", "About an hour ago")


def test_progress_without_a_terminal() -> None:
    """Lines alone: what moves is left out."""
    view = View(0)
    said = [
        {"status": "Pulling from library/busybox", "id": "latest"},
        {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "a"},
        {"status": "Pull complete", "progressDetail": {}, "id": "a"},
        {"status": "Digest: sha256:1"},
        {"stream": "Step 1/2"},
    ]

    assert "".join(view.line(one) for one in said) == (
        "latest: Pulling from library/busybox\na: Pull complete\nDigest: sha256:1\nStep 1/2"
    )


def test_progress_on_a_terminal() -> None:
    """Every layer keeps its line: up, erase, write, down."""
    view = View(80)

    assert (
        view.line({"status": "Waiting", "progressDetail": {}, "id": "a"})
        == "\n\x1b[1A\x1b[2K\ra: Waiting \r\x1b[1B"
    )
    assert (
        view.line({"status": "Waiting", "progressDetail": {}, "id": "b"})
        == "\n\x1b[1A\x1b[2K\rb: Waiting \r\x1b[1B"
    )
    done = view.line({"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "a"})
    assert done == "\x1b[2A\x1b[2K\ra: Downloading       5B/10B\r\x1b[2B"
    assert view.line({"status": "Digest: x"}) == "Digest: x\n"
    assert view.line({"status": "Waiting", "progressDetail": {}, "id": "a"}).startswith("\n")


def test_progress_bars() -> None:
    assert progress_bar({"current": 50, "total": 100}, 200) == f"[{'=' * 25}>{' ' * 25}]      50B/100B"
    assert progress_bar({"current": 200, "total": 100}, 80) == "    200B"
    assert progress_bar({"current": 3, "total": 7, "units": "steps"}, 80) == "3/7 steps"
    assert progress_bar({}, 80) == ""


def test_statistics() -> None:
    sample = {
        "id": "a1" * 32,
        "name": "/web",
        "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
        "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
        "memory_stats": {"usage": 3 << 20, "limit": 8 << 20, "stats": {"inactive_file": 1 << 20}},
        "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 5}, "eth1": {"rx_bytes": 500, "tx_bytes": 5}},
        "blkio_stats": {
            "io_service_bytes_recursive": [{"op": "Read", "value": 7000}, {"op": "write", "value": 3}]
        },
        "pids_stats": {"current": 4},
    }

    assert stats_row("web", sample, True) == {
        "Container": "web", "ID": "a1a1a1a1a1a1", "Name": "web", "CPUPerc": "40.00%",
        "MemUsage": "2MiB / 8MiB", "MemPerc": "25.00%", "NetIO": "1.5kB / 10B", "BlockIO": "7kB / 3B", "PIDs": "4",
    }  # fmt: skip
    assert stats_row("web", None, True)["MemUsage"] == "-- / --"


def test_disk_usage() -> None:
    rows = summary(
        {
            "LayersSize": 1000,
            "Images": [
                {"Size": 600, "SharedSize": 0, "Containers": 1},
                {"Size": 400, "SharedSize": 0, "Containers": 0},
            ],
            "Containers": [{"State": "running", "SizeRw": 10}, {"State": "exited", "SizeRw": 30}],
            "Volumes": [{"UsageData": {"RefCount": 0, "Size": 5}}],
            "BuildCache": [{"Size": 7, "InUse": False, "Shared": False}],
        }
    )

    assert [(one["TotalCount"], one["Active"], one["Size"], one["Reclaimable"]) for one in rows] == [
        ("2", "1", "1kB", "400B (40%)"),
        ("2", "1", "40B", "30B (75%)"),
        ("1", "0", "5B", "5B (100%)"),
        ("1", "0", "7B", "7B"),
    ]


def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        line = event_line(
            {
                "Type": "container",
                "Action": "start",
                "Actor": {"ID": "x", "Attributes": {"name": "web", "image": "busybox"}},
                "timeNano": 1795446749410943132,
            }
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line == "2026-11-23T16:12:29.410943132+01:00 container start x (image=busybox, name=web)"


def test_what_system_prune_warns_of() -> None:
    assert "all dangling images" in system_warning(False, False, [])
    warned = system_warning(True, True, ["until=1h"])
    assert "all anonymous volumes" in warned and "all build cache" in warned and "  - until=1h" in warned


def test_findings() -> None:
    finding = {
        "Kind": "layer",
        "Key": "sha256:1",
        "Problem": "is damaged",
        "Users": ["a:1"],
        "Repaired": "",
        "Reason": "no blob",
    }

    assert finding_line(finding) == "layer sha256:1 is damaged (used by a:1): not repaired: no blob"
    assert finding_line({**finding, "Repaired": "fetched"}).endswith(": fetched")


@given(st.lists(st.integers(1, 9), max_size=40))
def test_json_objects_survive_any_split(cuts: list[int]) -> None:
    """Where the stream is cut changes nothing."""
    wire = '{"a":"ü}{"}\r\n{"b":{"c":[1]}}{"d":"\\"}"}\n'.encode()
    parts, at = [], 0
    for cut in cuts:
        parts.append(wire[at : at + cut])
        at += cut
    parts.append(wire[at:])

    assert list(json_objects(iter(parts))) == [{"a": "ü}{"}, {"b": {"c": [1]}}, {"d": '"}'}]
    with pytest.raises(EngineAway):
        list(json_objects(iter([wire, b'{"half":'])))


@pytest.mark.parametrize(
    ("text", "size"), [("512m", 512 << 20), ("1.5GiB", 3 << 29), ("7", 7), ("-1", -1), ("10 kb", 10240)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "duration"), [("1h2m3.5s", 3723_500_000_000), ("0", 0), ("-1ms", -1_000_000)]
)
def test_durations(text: str, duration: int) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (3600, "About an hour"),
     (86400 * 3, "3 days"), (86400 * 20, "2 weeks"), (86400 * 400, "13 months"), (86400 * 800, "2 years")],
)  # fmt: skip
def test_human_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{.ID}} {{.HTTPProxy}} {{.HostConfig.CPUPeriod}}", "i p 5"),
        ("{{.Config.Env}} {{.Config.Volumes}} {{.Config.Entrypoint}} {{.State.Health}}", "[] map[] [] <nil>"),
        ("{{json .Config.Env}} {{len .Config.Env}} {{range .Config.Env}}x{{else}}none{{end}}", "null 0 none"),
        ("{{.Config.Volumes.x}} {{index .Config.Volumes `x`}}", "<no value> <no value>"),
        ("{{if .State.Health}}a{{else}}b{{end}}", "b"),
        ('{{js "<a\'\\"="}} {{urlquery "a b&c"}}', "\\u003Ca\\'\\\"\\u003D a+b%26c"),
    ],
)
def test_what_go_knows_of_types(template: str, shown: str) -> None:
    """Fields have Go's names, and nothing of a type is shown as Go shows it."""
    value = {
        "Id": "i", "HttpProxy": "p", "HostConfig": {"CpuPeriod": 5}, "State": {}, "Config": {"Env": None, "Volumes": None},
    }  # fmt: skip
    assert render(template, value) == shown


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{.id}}", 'map has no entry for key "id"'),
        ("{{.State.Health.Status}}", "nil pointer evaluating"),
        ("{{upper}}", "wrong number of args for upper"),
        ("{{index .Env 0}}", "index out of range: 0"),
        ('{{slice "abc" 1 9}}', "error calling slice: index out of range: 9"),
        ('{{slice "abc" 2 1}}', "error calling slice: invalid slice index: 2 > 1"),
        ('{{eq "a" 1}}', "error calling eq: incompatible types for comparison"),
        ('{{lt "a" 1}}', "error calling lt: incompatible types for comparison"),
        ("{{index .State.Health 0}}", "index of untyped nil"),
        ('{{join .Id "x"}}', r"expected \[\]string; got string"),
        ("{{.Labels.a.b}}", "nil pointer evaluating"),
        ("{{break}}", "{{break}} outside {{range}}"),
        ("{{range .Id}}{{end}}{{continue}}", "{{continue}} outside {{range}}"),
        ("{{if false}}{{nosuch .Id}}{{end}}", 'function "nosuch" not defined'),
    ],
)
def test_what_go_refuses(template: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        render(template, {"Id": "i", "State": {}, "Labels": {}})


def test_disk_usage_in_full_by_a_template(ketch: Callable[..., Any], engine: FakeEngine) -> None:
    """`-v` with `--format` is every row of every kind."""
    engine.routes[:0] = [
        ("GET", "/system/df", {
            "Images": [{"Id": "sha256:" + "a" * 64, "RepoTags": ["a:1"], "Created": 0, "Size": 10, "SharedSize": 4, "Containers": 2}],
            "Containers": [BOX], "Volumes": [{"Name": "v", "UsageData": {"RefCount": 1, "Size": 5}}],
            "BuildCache": [{"ID": "q", "Type": "regular", "Size": 7, "InUse": False}],
        }),
    ]  # fmt: skip
    done = ketch("system", "df", "-v", "--format", "json")
    found = json.loads(done.out)
    assert [list(found), found["Images"][0]["UniqueSize"], found["Images"][0]["SharedSize"]] == [
        ["Images", "Containers", "Volumes", "BuildCache"], "6B", "4B",
    ]  # fmt: skip
    shown = "{{range .Volumes}}{{.Name}} {{.Links}}{{end}} {{range .BuildCache}}{{.CacheType}}{{end}}"
    assert ketch("system", "df", "-v", "--format", shown).out == "v 1 regular\n"


def test_the_default_platform_is_the_environment_s(
    ketch: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what has `--platform` as docker has it; what is typed comes first."""
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/arm64")
    for words in (
        ("create", "busybox"),
        ("pull", "-q", "busybox"),
        ("create", "--platform", "linux/386", "x"),
    ):
        ketch(*words)
    asked = [
        one.query.get("platform")
        for one in engine.asked
        if one.path in ("/containers/create", "/images/create")
    ]
    assert asked == [["linux/arm64"], ["linux/arm64"], ["linux/386"]]


def test_every_function_is_known_to_the_parser() -> None:
    assert {*gotemplatefunctions.FUNCTIONS, "and", "or"} == FUNCTIONS
