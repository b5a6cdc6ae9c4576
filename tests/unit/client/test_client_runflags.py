"""What `run` and `create` were asked, as the body of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ketch.commands.run import CREATE_COMMAND
from ketch.faults import CommandFailed
from ketch.options import parse
from ketch.runflags import create_body


def body(*words: str, proxies: dict[str, str | None] | None = None) -> dict[str, Any]:
    return create_body(parse(CREATE_COMMAND, "ketch create", [*words, "busybox"]), proxies)


def host(*words: str) -> dict[str, Any]:
    found = body(*words)["HostConfig"]
    assert isinstance(found, dict)
    return found


def test_nothing_asked() -> None:
    """The sentinels of docker's CLI: what is unset there is not zero everywhere."""
    made = body()

    assert made["Cmd"] is None and made["Entrypoint"] is None and made["Env"] is None
    assert (made["AttachStdin"], made["AttachStdout"], made["AttachStderr"]) == (False, True, True)
    assert made["HostConfig"]["MemorySwappiness"] == -1
    assert made["HostConfig"]["PidsLimit"] == 0
    assert made["HostConfig"]["NetworkMode"] == "default"
    assert made["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert made["HostConfig"]["MaskedPaths"] is None
    assert "Init" not in made["HostConfig"]
    assert list(made["NetworkingConfig"]["EndpointsConfig"]) == ["default"]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["-v", "/a:/b:ro", "-v", "data:/d", "-v", "/anon"], "Binds", ["/a:/b:ro", "data:/d"]),
        (["-m", "1.5g"], "Memory", 1610612736),
        (["--cpus", "1.5"], "NanoCpus", 1500000000),
        (["--memory-swap", "-1"], "MemorySwap", -1),
        (["--cap-add", "net_admin", "--cap-add", "CAP_SYS_PTRACE"], "CapAdd", ["CAP_NET_ADMIN", "CAP_SYS_PTRACE"]),
        (["--cap-add", "all", "--cap-add", "chown"], "CapAdd", ["ALL"]),
        (["--cap-add", "chown", "--cap-drop", "chown", "--cap-drop", "kill"], "CapDrop", ["CAP_KILL"]),
        (["--restart", "on-failure:3"], "RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 3}),
        (["--ulimit", "nofile=1:2", "--ulimit", "core=-1"], "Ulimits",
         [{"Name": "core", "Hard": -1, "Soft": -1}, {"Name": "nofile", "Hard": 2, "Soft": 1}]),
        (["--device", "/dev/fuse:/dev/f:r"], "Devices",
         [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/f", "CgroupPermissions": "r"}]),
        (["--device-read-bps", "/dev/sda:1mb"], "BlkioDeviceReadBps", [{"Path": "/dev/sda", "Rate": 1048576}]),
        (["--tmpfs", "/run:size=1m"], "Tmpfs", {"/run": "size=1m"}),
        (["--sysctl", "net.a=1"], "Sysctls", {"net.a": "1"}),
        (["--add-host", "a=[::1]"], "ExtraHosts", ["a:::1"]),
        (["--security-opt", "systempaths=unconfined"], "MaskedPaths", []),
        (["--init=false"], "Init", False),
        (["--log-driver", "local", "--log-opt", "a=b"], "LogConfig", {"Type": "local", "Config": {"a": "b"}}),
        (["--net", "host"], "NetworkMode", "host"),
        (["-p", "127.0.0.1:8080-8081:80-81/udp"], "PortBindings",
         {"80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "81/udp": [{"HostIp": "127.0.0.1", "HostPort": "8081"}]}),
        (["-p", "8000-8010:80"], "PortBindings", {"80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]}),
        (["-p", "[::1]:80:80"], "PortBindings", {"80/tcp": [{"HostIp": "::1", "HostPort": "80"}]}),
        (["--mount", "type=bind,src=/a,dst=/b,ro"], "Mounts",
         [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]),
        (["--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777"], "Mounts",
         [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 0o1777}}]),
        (["--mount", "src=v,dst=/v,volume-nocopy,volume-opt=o=uid=1"], "Mounts",
         [{"Type": "volume", "Source": "v", "Target": "/v",
           "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Options": {"o": "uid=1"}}}}]),
        (["--mount", 'type=bind,"src=/a,b",dst=/x'], "Mounts", [{"Type": "bind", "Source": "/a,b", "Target": "/x"}]),
    ],
)  # fmt: skip
def test_host_config(words: list[str], field: str, value: object) -> None:
    assert host(*words)[field] == value


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["-a", "STDOUT"], "AttachStderr", False),
        (["-i"], "StdinOnce", True),
        (["--entrypoint", ""], "Entrypoint", [""]),
        (["--entrypoint", "x"], "Entrypoint", ["x"]),
        (["-v", "/anon"], "Volumes", {"/anon": {}}),
        (["-l", "a=b", "-l", "c"], "Labels", {"a": "b", "c": ""}),
        (["-e", "A=1", "-e", "B=2", "-e", "A=3"], "Env", ["A=3", "B=2"]),
        (["--expose", "90-91/udp", "-p", "80"], "ExposedPorts", {"80/tcp": {}, "90/udp": {}, "91/udp": {}}),
        (["--stop-signal", "INT"], "StopSignal", "INT"),
        (["--stop-timeout", "0"], "StopTimeout", 0),
        (["--no-healthcheck"], "Healthcheck", {"Test": ["NONE"]}),
        (["--health-cmd", "x", "--health-interval", "3s"], "Healthcheck",
         {"Test": ["CMD-SHELL", "x"], "Interval": 3_000_000_000}),
    ],
)  # fmt: skip
def test_config(words: list[str], field: str, value: object) -> None:
    assert body(*words)[field] == value


def test_words_behind_the_image_are_the_command() -> None:
    given = parse(CREATE_COMMAND, "ketch create", ["-t", "busybox", "ls", "-l", "--all"])

    assert create_body(given)["Cmd"] == ["ls", "-l", "--all"]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments and empty lines are left out; a bare name takes our own value, or is left out."""
    monkeypatch.setenv("OURS", "here")
    monkeypatch.delenv("NOBODYS", raising=False)
    file = tmp_path / "env"
    file.write_text("# no\n\nA=1 2\n  B=x\nOURS\nNOBODYS\n")

    assert body("--env-file", str(file), "-e", "C=3")["Env"] == ["A=1 2", "B=x", "OURS=here", "C=3"]
    assert body("--label-file", str(file))["Labels"] == {"A": "1 2", "B": "x"}


def test_typed_variables_win_over_configured_proxies() -> None:
    made = body("-e", "HTTP_PROXY=mine", proxies={"HTTP_PROXY": "p", "http_proxy": "p"})

    assert made["Env"] == ["HTTP_PROXY=mine", "http_proxy=p"]


def test_networks() -> None:
    made = body(
        "--network",
        "name=a,alias=x,ip=10.0.0.5,gw-priority=3",
        "--network",
        "b",
        "--mac-address",
        "92:d0:c6:0a:29:33",
    )

    assert made["HostConfig"]["NetworkMode"] == "a"
    ends = made["NetworkingConfig"]["EndpointsConfig"]
    assert ends["a"]["Aliases"] == ["x"] and ends["a"]["IPAMConfig"] == {"IPv4Address": "10.0.0.5"}
    assert ends["a"]["GwPriority"] == 3 and ends["a"]["MacAddress"] == "92:d0:c6:0a:29:33"
    assert ends["b"]["Aliases"] is None
    assert body("--network", "a")["NetworkingConfig"] == {"EndpointsConfig": {}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "1z"], 'invalid argument "1z" for "-m, --memory" flag: invalid suffix: \'z\''),
        (["-e", "=x"], 'invalid argument "=x" for "-e, --env" flag: invalid environment variable: =x'),
        (["--mount", "type=bind"], 'invalid argument "type=bind" for "--mount" flag: target is required'),
        (
            ["--mount", "type=bind,dst=/x,volume-nocopy"],
            "cannot mix 'volume-*' options with mount type 'bind'",
        ),
        (["-p", "x:y"], "invalid containerPort: y"),
        (["-p", "80-81:80-82"], "invalid ranges specified for container and host Ports: 80-82 and 80-81"),
        (["--pid", "x"], "--pid: invalid PID mode"),
        (["--device", "x"], "x is not an absolute path"),
        (["-v", ":/x"], "invalid spec: :/x: empty section between colons"),
        (["--sysctl", "x=1"], "sysctl 'x=1' is not allowed"),
        (["--rm", "--restart", "always"], "conflicting options: cannot specify both --restart and --rm"),
        (["--no-healthcheck", "--health-retries", "3"], "--no-healthcheck conflicts with --health-* options"),
        (
            ["--security-opt", "seccomp=/none"],
            "opening seccomp profile (/none) failed: open /none: no such file or directory",
        ),
        (
            ["--network", "host", "--network", "n"],
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
        (["--network", "n", "--network", "n"], 'network "n" is specified multiple times'),
        (["--network-alias", "x"], "network-scoped aliases are only supported for user-defined networks"),
        (["--gpus", "all"], "--gpus is not available"),
        (["--env-file", "/none"], "open /none: no such file or directory"),
        (["--ulimit", "nofile=5:3"], "ulimit soft limit must be less than or equal to hard limit: 5 > 3"),
        (["--stop-timeout", "9" * 30], "value out of range"),
        (["--foo"], "unknown flag: --foo"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    """One clear message, and 125: docker's code for a fault before the container."""
    with pytest.raises(CommandFailed) as caught:
        body(*words)

    assert message in caught.value.message
    assert caught.value.code == 125
