"""The same words typed to docker's CLI and to ours, against the same engine: same requests, same output, same exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.fakeengine import CONTAINER, Asked, FakeEngine, Reply, messages
from ketch_wire.stdcopy import STDERR, STDOUT, frame

DOCKER = shutil.which("docker")
KETCH = str(Path(sys.executable).parent / "ketch")

pytestmark = pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")

NOW = int(time.time())
BOX = {
    "Id": CONTAINER, "Names": ["/web"], "Image": "busybox", "ImageID": "sha256:" + "b" * 64,
    "Command": 'sh -c "echo hello world"', "Created": NOW - 86400 * 3, "State": "running", "Status": "Up 3 days",
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, {"PrivatePort": 90, "Type": "tcp"}],
    "Labels": {"a": "b"}, "HostConfig": {}, "NetworkSettings": {"Networks": {"bridge": {}}}, "Mounts": [],
}  # fmt: skip
IMAGES = [
    {"Id": "sha256:" + "a" * 64, "RepoTags": ["busybox:latest", "busybox:1"], "RepoDigests": ["busybox@sha256:" + "1" * 64],
     "Created": NOW - 86400 * 40, "Size": 123456789, "SharedSize": -1, "Containers": -1, "Labels": None, "ParentId": ""},
    {"Id": "sha256:" + "c" * 64, "RepoTags": [], "RepoDigests": [], "Created": NOW - 86400 * 3, "Size": 0, "SharedSize": -1,
     "Containers": -1, "Labels": None, "ParentId": ""},
]  # fmt: skip
HISTORY = [
    {"Id": "sha256:" + "a" * 64, "Created": NOW - 86400 * 3, "CreatedBy": "CMD " + "x" * 60, "Tags": None, "Size": 0, "Comment": ""},
    {"Id": "<missing>", "Created": NOW - 86400 * 3, "CreatedBy": "RUN a", "Tags": None, "Size": 1234567, "Comment": "k"},
]  # fmt: skip
FOUND = {
    "Id": CONTAINER, "Name": "/web", "State": {"Running": True}, "Config": {"Tty": False, "OpenStdin": True}, "HostConfig": {},
    "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "9/udp": None}},
}  # fmt: skip
NETWORK = {
    "Name": "n",
    "Id": "f1" * 32,
    "Driver": "bridge",
    "Scope": "local",
    "Labels": {},
    "Created": "2026-01-02T03:04:05Z",
}
OUTPUT = frame(STDOUT, b"out\n") + frame(STDERR, b"err\n")
PULLED = messages(
    {"status": "Pulling from library/busybox", "id": "latest"},
    {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "9ad6"},
    {"status": "Pull complete", "progressDetail": {}, "id": "9ad6"},
    {"status": "Status: Downloaded newer image for busybox:latest"},
)
BUILT = messages(
    {"stream": "Step 1/1 : FROM busybox"}, {"stream": "\n"}, {"stream": " ---> e513\n"},
    {"aux": {"ID": "sha256:" + "a" * 64}}, {"stream": "Successfully built aaaa\n"},
)  # fmt: skip
FAILED = messages(
    {"stream": "x\n"}, {"errorDetail": {"code": 3, "message": "returned 3"}, "error": "returned 3"}
)


def build(asked: Asked) -> Any:
    return FAILED if asked.query.get("target") == ["bad"] else BUILT


ROUTES = [
    ("GET", "/containers/json", [BOX]),
    *(
        (method, path, Reply(404, {"message": "No such thing: none"}))
        for method, path in (
            ("GET", "/(containers|images)/none/.*"), ("POST", "/(containers|images)/none/.*"),
            ("DELETE", "/(containers|images|networks|volumes)/none"), ("GET", "/(networks|volumes)/none"),
        )
    ),
    ("POST", "/containers/bad/start", Reply(400, {"message": 'exec: "x": executable file not found in $PATH'})),
    ("POST", ".*/attach", Reply(101, OUTPUT)),
    ("POST", "/containers/.*/exec", Reply(201, {"Id": "e1"})),
    ("POST", "/exec/e1/start", Reply(101, OUTPUT)),
    ("GET", "/exec/e1/json", {"ExitCode": 3}),
    ("GET", "/containers/.*/logs", OUTPUT),
    ("GET", "/containers/.*/top", {"Titles": ["UID", "PID"], "Processes": [["root", "1"]]}),
    ("GET", "/containers/.*/changes", [{"Path": "/a", "Kind": 0}, {"Path": "/b", "Kind": 1}]),
    ("GET", "/containers/.*/json", FOUND),
    ("POST", "/containers/[^/]*/(stop|restart|kill|pause|unpause|rename)", Reply(204)),
    ("POST", "/containers/.*/update", {"Warnings": None}),
    ("DELETE", "/(containers|networks|volumes)/.*", Reply(204)),
    ("POST", "/commit", Reply(201, {"Id": "sha256:" + "e" * 64})),
    ("GET", "/images/json", IMAGES),
    ("GET", "/images/.*/history", HISTORY),
    ("DELETE", "/images/.*", [{"Untagged": "a:latest"}, {"Deleted": "sha256:aa"}]),
    ("POST", "/images/.*/tag", Reply(201)),
    ("POST", "/images/create", PULLED),
    ("POST", "/images/.*/push", messages({"status": "1: digest: sha256:1 size: 5"})),
    ("POST", "/images/load", messages({"stream": "Loaded image: busybox:latest\n"})),
    ("POST", "/build", build),
    ("GET", "/networks", [NETWORK]),
    ("POST", "/networks/create", Reply(201, {"Id": "n1", "Warning": ""})),
    ("POST", "/volumes/create", Reply(201, {"Name": "v"})),
    ("GET", "/volumes", {"Volumes": [{"Name": "v", "Driver": "local", "Mountpoint": "/v", "Scope": "local"}]}),
    ("POST", "/containers/prune", {"ContainersDeleted": ["a"], "SpaceReclaimed": 5}),
    ("POST", "/networks/prune", {"NetworksDeleted": ["n"]}),
    ("POST", "/volumes/prune", {"VolumesDeleted": None, "SpaceReclaimed": 0}),
    ("POST", "/images/prune", {"ImagesDeleted": [{"Untagged": "a:b"}], "SpaceReclaimed": 7000}),
    ("POST", "/build/prune", {"CachesDeleted": ["q"], "SpaceReclaimed": 77}),
]  # fmt: skip

COMMANDS = """\
create busybox ls -l
create -v /a:/b:ro -v data:/d -v /anon -v ./x:/y busybox
create -p 80 -p 127.0.0.1:8080-8081:80-81/udp -p [::1]:90:90 --expose 5-7 busybox
create --mount type=bind,src=/a,dst=/b,ro,bind-propagation=rslave --mount type=tmpfs,dst=/t,tmpfs-size=1m busybox
create --network name=a,alias=b,ip=1.2.3.4 --network c --mac-address 92:d0:c6:0a:29:33 busybox
create --network host busybox
create --network container:x busybox
create -m 1g --cpus 1.5 --pids-limit 5 --ulimit nofile=1:2 --memory-swap -1 --shm-size 1m --blkio-weight 20 busybox
create --kernel-memory 10m busybox
create --device /dev/null:/x:r --device-read-bps /dev/sda:1mb --cap-add net_admin --cap-drop all --privileged busybox
create --health-cmd x --health-interval 3s --restart on-failure:3 --stop-signal INT --stop-timeout 3 --init busybox
create --add-host a=[::1] --dns 8.8.8.8 --dns-search a.b --dns-option x -h host --domainname d busybox
create -e A=1 -l b=c --log-driver local --log-opt x=y --security-opt no-new-privileges --sysctl net.x=1 busybox
create --entrypoint= -u 3 -w /x --tmpfs /r:size=1m --read-only --group-add 5 --ipc host --pid host --userns host busybox
create -m 1z busybox
create -e =x busybox
create -p x:y busybox
create --pid x busybox
create --rm --restart always busybox
create --foo busybox
create Busybox
create
run busybox
run -d -p 80 busybox x
run --rm -i busybox cat
run -it busybox
run --pull always busybox
run --pull foo busybox
start a none b
start bad
start -a web
exec web ls
exec -i -u me -w /x -e A=1 web ls -l
exec none ls
exec web
attach none
ps
ps -a -q
ps -l --no-trunc
ps -s -f status=running
ps --format '{{.Names}} {{.Ports}} {{.Label "a"}}'
ps --format 'table {{.ID}}\\t{{.Status}}'
ps --format '{{'
ps x
ps --format raw
ps -s --format raw
ps --format '{{js .Image}} {{urlquery .Command}} {{.Platform}}'
help ps nosuch
help nosuch
ps --help=false -q
-l nosuch ps
-l debug ps -q
--nosuch
-H nosuch:// ps
-H ssh:// ps
-H 'ssh://h?x' ps
-H tcp://127.0.0.1:1/path ps
-H :1 ps
-H 127.0.0.1:1 ps
container
stop web
stop -t 3 -s INT none
kill -s INT web
restart web
rm -fv web
rm none
wait web
rename a b
port web
port web 80
port web 81
top web aux
diff web
commit -a me -m hi -c 'CMD x' web r:t
logs -t --tail 3 --since 1700000000 web
logs none
images
images -q
images --digests --no-trunc
images --format raw
images --digests --format raw
images -q --format raw
images -q --format '{{.Tag}}'
images -q --format table
images --format '{{'
ps -q --format raw
ps -q --format 'table {{.Names}}'
ps -q --format '{{'
history -q --format '{{.CreatedBy}}' x
network ls -q --format raw
network ls -q --format '{{.Name}}'
network ls -q --format 'table {{.Name}}'
network ls -q
volume ls -q --format raw
volume ls -q --format '{{.Driver}}'
volume ls --format '{{'
context ls -q --format '{{'
events --format '{{'
ps --help=maybe
images busybox
history x
history -q --no-trunc x
rmi a none
rmi -f none
tag a b:c
tag a BAD
inspect -f '{{.Name}} {{.State.Running}}' web
inspect -f '{{index .NetworkSettings.Ports "80/tcp"}}' web
inspect -f '{{.ID}} {{.Config.Tty}} {{.Config.Env}} {{.Config.Volumes}} {{json .Config.Cmd}} {{range .Config.Env}}x{{end}}' web
inspect -f '{{if .State.Health}}a{{else}}b{{end}} {{.HostConfig.Binds}} {{.Config.Labels.none}} {{len .HostConfig.Binds}}' web
inspect -f '{{' web
inspect -f '{{nosuch .Name}}' web
inspect -f '{{break}}' web
inspect -f '{{printf "%b %c" 5 65}}' web
inspect -f '{{html "a\\"b<c>&"}} {{html 1 2}}' web
inspect -f '{{js "é\\n\\t\\u2028x"}} {{js "a" 1 2 "b"}} {{urlquery "a b/é~*" 1}}' web
inspect -f '{{print 1 2 "a" "b" 3}} {{println "a" 1 true nil}}' web
inspect -f '{{printf "%5d|%-5s|%05d|%x|%q|%v|%t" 42 "ab" 7 255 "q\\"x" 1.5 true}}' web
inspect -f '{{printf "%d %s %T %v %s" "a" 1 "a" nil "b" "more"}}' web
inspect -f '{{printf "%s %d" (split "a,b" ",")}} {{printf "%q %x %U" (split "a,b" ",") "ab" 65}}' web
inspect -f '{{slice "abcdef" 1 3}} {{slice "abc" 2}} {{slice "abc"}}' web
inspect -f '{{title "hello world"}} {{eq "a" "b" "a"}} {{ne 1 2}}' web
version -f '{{.Client.APIVersion}} {{.Client.DefaultAPIVersion}}'
-H unix:///nosuch version -f '{{.Server.Version}}'
-D info -f '{{.ClientInfo.Debug}}'
events --since 1m --until nosuch
pull busybox
pull -q reg:5000/x:1
push me/x
push -a me/x
load -i TAR
import TAR r:t
network ls
network ls --format raw
network create --subnet 10.0.0.0/24 --gateway 10.0.0.1 --label a=b n
network connect --ip 1.2.3.4 --alias a n c
network disconnect -f n c
volume ls
volume ls -q
volume ls --format raw
volume rm v none
container prune -f
image prune -af
network prune -f
volume prune -af
system prune -af --volumes
update -m 32m web
update --kernel-memory 10m web
update --kernel-memory x web
update web
"""

# Where ours asks less, or says it in its own words.
LENIENT_REQUESTS = {
    "run -d",
    "volume create",
    "commit",
    "system prune",
    "attach",
    "network rm",
    "start a",
    "-D info",
    "images --format '{{'",
    "volume ls --format '{{'",
}


@pytest.fixture
def like_docker(tmp_path: Path) -> Any:
    (tmp_path / "work").mkdir()
    with tarfile.open(tmp_path / "work" / "TAR", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    (tmp_path / "work" / "Dockerfile").write_text("FROM busybox\n")

    def both(words: list[str], stdin: bytes = b"") -> tuple[Any, Any]:
        with (
            FakeEngine(tmp_path / "docker.sock", ROUTES) as theirs,
            FakeEngine(tmp_path / "ketch.sock", ROUTES) as ours,
        ):
            begun = [begin(str(DOCKER), theirs, words), begin(KETCH, ours, words)]
            ended = [one.communicate(stdin, timeout=60) for one in begun]
            asked = [[request(one) for one in engine.asked] for engine in (theirs, ours)]
        docker, ketch = (
            (one.returncode, said(out), said(err), requests)
            for one, (out, err), requests in zip(begun, ended, asked, strict=True)
        )
        return docker, ketch

    def begin(program: str, engine: FakeEngine, words: list[str]) -> subprocess.Popen[bytes]:
        env = {
            **os.environ, "DOCKER_HOST": engine.host, "DOCKER_CONFIG": str(tmp_path / "config"), "DOCKER_BUILDKIT": "0",
            "TZ": "Europe/Berlin",
        }  # fmt: skip
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [program, *words], stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=tmp_path / "work"
        )

    return both


def said(text: bytes) -> str:
    """Without what names the program, and docker's notice that its classic builder is old."""
    lines = text.decode().replace("Docker daemon", "ketch daemon").replace("docker", "ketch").splitlines()
    marks = (
        "DEPRECATED: The legacy",
        "BuildKit is currently",
        "environment-variable",
        "Sending build context",
    )
    return "\n".join(
        line.rstrip() for line in lines if line.strip() and not any(mark in line for mark in marks)
    )


def request(asked: Asked) -> Any:
    kept = {key: asked.headers.get(key, "") for key in ("x-registry-auth", "x-registry-config", "upgrade")}
    body: Any = asked.body
    if asked.headers.get("content-type") == "application/json":
        body = json.loads(asked.body)
        body["Env"] = sorted(body.get("Env") or [])
        host = body.get("HostConfig") or {}
        host["Binds"] = sorted(host.get("Binds") or [])
    elif asked.path == "/build":
        with tarfile.open(fileobj=io.BytesIO(asked.body)) as tar:
            body = [(one.name, one.size, one.mode, one.uid) for one in tar.getmembers()]
    query = {key: sorted(value) for key, value in asked.query.items()}
    filters = query.pop("filters", [""])[0]
    if filters:
        query["filters"] = [json.dumps(json.loads(filters), sort_keys=True)]
    return asked.method, asked.path, query, kept, body


@pytest.mark.parametrize("line", COMMANDS.splitlines())
def test_like_docker(like_docker: Any, line: str) -> None:
    docker, ketch = like_docker(shlex.split(line), b"input")

    assert ketch[:3] == docker[:3]
    if not line.startswith(tuple(LENIENT_REQUESTS)):
        key = repr if line.startswith(("stop", "kill", "rm")) else None
        assert (sorted(ketch[3], key=key) if key else ketch[3]) == (
            sorted(docker[3], key=key) if key else docker[3]
        )


@pytest.mark.parametrize(
    "words", ["build .", "build -q -t a:b .", "build --target bad .", "build -", "build none"]
)
def test_builds_like_docker(like_docker: Any, words: str) -> None:
    docker, ketch = like_docker(words.split(), b"FROM busybox\n")

    assert ketch == docker


def test_every_flag_of_docker_is_known() -> None:
    """Names of options, command by command; what cannot be on Linux, or needs what we have not, is left out."""
    unknown = {}
    for command in EVERY:
        docker, ours = (flags_of(program, command) for program in (str(DOCKER), KETCH))
        missing = docker - ours - LEFT_OUT.get(command, set()) - {"help"}
        if missing:
            unknown[command] = sorted(missing)
    assert unknown == {}


WINDOWS = {"cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"}
CLUSTER = {
    "availability", "group", "limit-bytes", "required-bytes", "scope", "secret", "sharing", "topology-preferred",
    "topology-required", "type", "cluster",
}  # fmt: skip
LEFT_OUT = {
    "run": WINDOWS | {"use-api-socket"},
    "create": WINDOWS | {"use-api-socket"},
    "start": {"checkpoint", "checkpoint-dir"},
    "volume create": CLUSTER,
    "volume ls": CLUSTER,
}
EVERY = (
    """\
run create start attach exec ps build pull push images login logout search version info commit cp diff events export history
import inspect kill load logs pause port rename restart rm rmi save stats stop tag top unpause update wait
""".split()
    + """\
container inspect, container prune, image inspect, image prune, system df, system prune, builder prune, network connect,
network create, network disconnect, network inspect, network ls, network prune, network rm, volume create, volume inspect,
volume ls, volume prune, volume rm""".replace("\n", " ").split(", ")
)


def flags_of(program: str, command: str) -> set[str]:
    env = {**os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_HOST": "unix:///nowhere"}
    done = subprocess.run(
        [program, *command.split(), "--help"],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    return {
        word.strip(",").removeprefix("--").partition("=")[0]
        for line in done.stdout.splitlines()
        if line.lstrip().startswith("-")
        for word in line.split()[:2]
        if word.startswith("--") and len(word) > 3
    }
