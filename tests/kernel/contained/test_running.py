"""Running a contained process: exit codes, dockerd's words for what cannot start, signals, what it sees of itself."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ketch_testing.contained import ALL_NEW, Contained, attached, has_ended, read_all, split_frames, until
from ketch_wire.launch import CgroupPlan, MountPlan
from ketchd.containers.shims import LaunchFailed, read_exit
from ketchd.sandbox import defaults

INIT = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
async def test_the_exit_code_comes_home_and_is_recorded(box: Contained, code: int) -> None:
    plan = box.plan("sh", "-c", f"exit {code}")
    link = await box.start(plan)

    ended = await box.end(link)

    assert ended is not None and ended.code == code and not ended.ooms
    assert read_exit(Path(plan.state_dir)) == ended


async def test_a_directory_is_no_program(box: Contained) -> None:
    """The last words are those by which older clients know an exit code of 126."""
    with pytest.raises(LaunchFailed) as caught:
        await box.start(box.plan("/bin"))

    assert caught.value.message == f'{INIT}exec: "/bin": is a directory: unknown: permission denied'
    assert (caught.value.exit_code, caught.value.status) == (126, 400)


@pytest.mark.parametrize(
    ("argv", "message", "exit_code", "status"),
    [
        (("nope",), 'exec: "nope": executable file not found in $PATH', 127, 400),
        (("/nope",), 'exec: "/nope": stat /nope: no such file or directory', 127, 400),
        (("./nope",), 'exec: "./nope": stat ./nope: no such file or directory', 127, 400),
        (("/etc/passwd",), 'exec: "/etc/passwd": permission denied', 126, 400),
        (("",), 'exec: "": executable file not found in $PATH', 127, 400),
    ],
)
async def test_what_cannot_start_says_why_as_dockerd_does(
    box: Contained, argv: tuple[str, ...], message: str, exit_code: int, status: int
) -> None:
    plan = box.plan(*argv)

    with pytest.raises(LaunchFailed) as caught:
        await box.start(plan)

    hint = ": permission denied" if "directory" in message and exit_code == 126 else ""
    assert caught.value.message == f"{INIT}{message}: unknown{hint}"
    assert (caught.value.exit_code, caught.value.status) == (exit_code, status)
    assert read_exit(Path(plan.state_dir)) is None


async def test_a_path_with_a_file_in_it_is_not_searched(box: Contained) -> None:
    """`tools` lies along PATH but may not be executed: then the next element counts."""
    (box.layer / "first").mkdir()
    (box.layer / "first/echo").write_text("no program")

    code, output = await box.run("echo", "found", env=("PATH=/first:/etc/passwd:/bin",))

    assert (code, output) == (0, "found\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/no/interpreter\n", "exec /script: no such file or directory\n"),
        (b"\x7fELFrubbish", "exec /script: exec format error\n"),
    ],
)
async def test_what_execve_refuses_has_started_and_ends_with_255(
    box: Contained, content: bytes, message: str
) -> None:
    (box.layer / "script").write_bytes(content)
    (box.layer / "script").chmod(0o755)

    code, output = await box.run("/script")

    assert (code, output) == (255, message)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143), (signal.SIGUSR1, 7)]
)
async def test_signals_reach_the_first_process(box: Contained, number: signal.Signals, code: int) -> None:
    plan = box.plan(
        "sh", "-c", "trap 'exit 143' TERM; trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done"
    )
    client, stream = attached()
    link = await box.start(plan, stream)
    await asyncio.get_running_loop().sock_recv(client, 100)

    await link.signal(number)

    ended = await box.end(link)
    client.close()
    assert ended is not None and ended.code == code


async def test_signalling_what_has_ended_is_no_error(box: Contained) -> None:
    link = await box.start(box.plan("true"))
    await box.end(link)

    await link.signal(signal.SIGTERM)


async def test_environment_hostname_and_directory(box: Contained) -> None:
    code, output = await box.run(
        "sh", "-c", "env; hostname; pwd; umask; cat /proc/sys/kernel/domainname", env=("PATH=/bin", "A=b=c"),
        cwd="/made/here", hostname="somebody", domainname="example.org",
    )  # fmt: skip

    assert code == 0
    assert "A=b=c\n" in output and "HOME=/root\n" in output
    assert output.endswith("somebody\n/made/here\n0022\nexample.org\n")


async def test_cve_2024_21626_nothing_of_the_daemon_is_open_inside(box: Contained) -> None:
    """CVE-2024-21626, the first half."""
    os.environ["KETCH_TEST_SECRET"] = "1"
    listener = os.open(box.base, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(listener, True)
    try:
        code, output = await box.run("sh", "-c", "cd /proc/self/fd; echo *; env")
    finally:
        os.close(listener)
        del os.environ["KETCH_TEST_SECRET"]

    assert code == 0
    # 3 is the shell's own, for the directory that it lists
    assert output.splitlines()[0] in ("0 1 2", "0 1 2 3")
    assert "SECRET" not in output and "KETCH" not in output


async def test_cve_2022_24769_capabilities_are_dockers_and_none_can_be_inherited(box: Contained) -> None:
    """CVE-2022-24769."""
    _, output = await box.run("grep", "^Cap", "/proc/self/status")

    seen = dict(line.split(":\t") for line in output.splitlines())
    assert seen["CapInh"] == seen["CapAmb"] == "0" * 16
    assert seen["CapPrm"] == seen["CapEff"] == seen["CapBnd"] == "00000000a80425fb"


async def test_cve_2022_24769_another_user_has_no_capabilities_but_the_bounding_set(box: Contained) -> None:
    _, output = await box.run("grep", "^Cap", "/proc/self/status", user="1000")

    seen = dict(line.split(":\t") for line in output.splitlines())
    assert seen["CapInh"] == seen["CapAmb"] == seen["CapPrm"] == seen["CapEff"] == "0" * 16
    assert seen["CapBnd"] == "00000000a80425fb"


async def test_privileged_is_clipped_to_what_the_daemon_has(box: Contained) -> None:
    _, output = await box.run(
        "grep", "^CapEff", "/proc/self/status", capabilities=defaults.ALL_CAPABILITIES, seccomp=b""
    )

    own = Path("/proc/self/status").read_text().split("CapPrm:\t")[1].split("\n")[0]
    assert output == f"CapEff:\t{own}\n"


@pytest.mark.parametrize("no_new_privileges", [False, True])
@pytest.mark.parametrize("user", ["", "1000"])
async def test_the_filter_is_on(box: Contained, no_new_privileges: bool, user: str) -> None:
    _, output = await box.run(
        "sh", "-c", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; chmod 0700 /tmp/x; mount -t tmpfs x /mnt",
        no_new_privileges=no_new_privileges, user=user,
    )  # fmt: skip

    assert f"NoNewPrivs:\t{int(no_new_privileges)}\nSeccomp:\t2\n" in output
    assert (
        "Operation not permitted" in output or "permission denied" in output or "must be superuser" in output
    )


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), "uid=0(root) gid=0(root) groups=0(root)"),
        ("user", (), "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra),2001(more)"),
        ("1000", (), "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra),2001(more)"),
        ("user:staff", (), "uid=1000(user) gid=50(staff) groups=50(staff)"),
        ("4242", (), "uid=4242 gid=0(root) groups=0(root)"),
        ("4242:77", (), "uid=4242 gid=77 groups=77"),
        ("user:staff", ("extra", "99"), "uid=1000(user) gid=50(staff) groups=50(staff),99,2000(extra)"),
    ],
)
async def test_users_are_looked_up_in_the_container(
    box: Contained, user: str, groups: tuple[str, ...], expected: str
) -> None:
    _, output = await box.run("id", user=user, groups=groups)

    found, wanted = output.strip().split(" groups="), expected.split(" groups=")
    assert found[0] == wanted[0]
    assert sorted(found[1].split(",")) == sorted(wanted[1].split(","))


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nosuch", "unable to find user nosuch: no matching entries in passwd file"),
        ("user:nosuch", "unable to find group nosuch: no matching entries in group file"),
        ("4294967295", "uids and gids must be in range 0-2147483647"),
    ],
)
async def test_users_that_are_not_there(box: Contained, user: str, message: str) -> None:
    with pytest.raises(LaunchFailed) as caught:
        await box.start(box.plan("true", user=user))

    assert (caught.value.message, caught.value.exit_code, caught.value.status) == (message, 128, 500)


async def test_home_is_the_users(box: Contained) -> None:
    _, output = await box.run("sh", "-c", "echo $HOME", user="user")

    assert output == "/home/user\n"


async def test_a_user_may_open_his_own_output_again(box: Contained) -> None:
    """Programs that write to /dev/stdout by name."""
    _, output = await box.run("sh", "-c", "echo one > /dev/stdout; echo two > /dev/stderr", user="user")

    assert sorted(output.split()) == ["one", "two"]


async def test_rlimits(box: Contained) -> None:
    _, output = await box.run(
        "sh", "-c", "ulimit -n; ulimit -c", rlimits={"nofile": (64, 128), "core": (0, 0)}
    )

    assert output == "64\n0\n"


async def test_a_limit_above_the_daemons_is_lowered_with_a_warning(box: Contained) -> None:
    """Without CAP_SYS_RESOURCE a hard limit cannot be raised: podman fails here."""
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("the hard limit of open files is infinite")
    code, output = await box.run("sh", "-c", "ulimit -n", rlimits={"nofile": (1 << 30, 1 << 30)})

    assert code == 0
    lowered = int(output) < 1 << 30
    warned = any("nofile" in values.get("warning", "") for _, _, values in box.log.lines)
    assert lowered == warned


async def test_pid_namespace_and_orphans(box: Contained) -> None:
    _, output = await box.run("sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l")

    assert output.split("\n")[0] == "1"
    assert int(output.split("\n")[1]) <= 4


async def test_init_reaps_and_forwards(box: Contained) -> None:
    """`--init`: our PID 1 is not the program, ends as the program, and forwards what comes."""
    plan = box.plan(
        "sh", "-c", "echo $$; cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline; echo; (sleep 0.01 & ) ; trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done",
        init=True,
    )  # fmt: skip
    link = await box.start(plan)
    await until(lambda: "ready" in box.logged(plan).splitlines())  # the word is in the command line as well

    await link.signal(signal.SIGTERM)

    ended = await box.end(link)
    assert ended is not None and ended.code == 9
    assert box.logged(plan).splitlines()[:2] == ["2", "docker-init"]
    assert box.logged(plan).splitlines()[2].startswith("/sbin/docker-init -- sh -c echo $$;")


async def test_init_has_no_more_rights_than_the_program(box: Contained) -> None:
    """PID 1 is the program's user, with the program's capabilities and privileges."""
    for user in ("0", "1000:1000"):
        plan = box.plan(
            "sh", "-c", "of() { grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/$1/status; }; "
            "of 1; test \"$(of 1)\" = \"$(of self)\" || of self",
            init=True, user=user, no_new_privileges=True,
        )  # fmt: skip
        link = await box.start(plan)
        ended = await box.end(link)
        assert ended is not None and ended.code == 0, box.logged(plan)
        uid, lines = user.partition(":")[0], box.logged(plan).splitlines()
        assert len({line.partition(":")[0] for line in lines}) == len(lines), lines  # told once: the same
        assert lines[0].split() == ["Uid:", uid, uid, uid, uid]


async def test_init_says_the_programs_failure(box: Contained) -> None:
    with pytest.raises(LaunchFailed, match="executable file not found"):
        await box.start(box.plan("nope", init=True))


async def test_devices_and_links(box: Contained) -> None:
    _, output = await box.run(
        "sh",
        "-c",
        "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' $d; done; for l in fd stdin stdout stderr ptmx; do readlink $l; done",
    )

    assert output.splitlines() == [
        "null 1:3 666", "zero 1:5 666", "full 1:7 666", "random 1:8 666", "urandom 1:9 666", "tty 5:0 666",
        "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx",
    ]  # fmt: skip


async def test_masked_and_readonly_paths_hold(box: Contained) -> None:
    _, output = await box.run(
        "sh", "-c",
        "for p in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do [ -e $p ] && cat $p | wc -c; done; "
        "ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : ; "
        "for p in /proc/sys/kernel/hostname /proc/sysrq-trigger; do echo x > $p; done; touch /sys/x; echo done",
    )  # fmt: skip

    lines = [line for line in output.splitlines() if line.strip()]
    assert set(lines[: [*map(str.isdigit, lines), False].index(False)]) <= {"0"}
    there = [
        "/proc/sys/kernel/hostname",
        "/sys/x",
        *["/proc/sysrq-trigger"] * os.path.exists("/proc/sysrq-trigger"),
    ]
    assert output.count("Read-only file system") == len(there)


async def test_a_readonly_root_leaves_the_rest_writable(box: Contained) -> None:
    _, output = await box.run(
        "sh",
        "-c",
        "touch /x; touch /dev/shm/x && echo shm; echo > /dev/null && echo null; pwd",
        readonly=True,
        cwd="/made",
    )

    assert "/x: Read-only file system" in output
    assert output.endswith("shm\nnull\n/made\n")


async def test_cgroup_limits_hold_and_the_oom_killer_is_told(box: Contained) -> None:
    if not box.cgroups.has("memory/memory.limit_in_bytes") and not box.cgroups.has("memory.max"):
        pytest.skip("the host has no memory cgroup")
    plan = box.plan("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60",
                    host={"Memory": 16 << 20, "MemorySwap": 16 << 20},
                    mounts=defaults.default_mounts(privileged=False, shm_size=1 << 27, ipc_mode="private",
                                                   cgroup_version=box.cgroups.version, shm_source=""))  # fmt: skip
    link = await box.start(plan)

    ended = await box.end(link)

    assert ended is not None and ended.code == 137
    assert ended.ooms == link.ooms >= 1


async def test_the_cgroup_holds_the_process_before_it_runs(box: Contained) -> None:
    plan = box.plan("cat", "/proc/self/cgroup", namespaces=ALL_NEW | {"cgroup": "host"})
    if not plan.cgroup.join:
        pytest.skip("no cgroups can be made here")
    link = await box.start(plan)
    await box.end(link)

    joined = [line for line in box.logged(plan).splitlines() if line.endswith(plan.id)]
    assert len(joined) >= len(plan.cgroup.join)


async def test_port_sockets_are_held_as_long_as_the_container_runs(box: Contained) -> None:
    import socket

    held = socket.create_server(("127.0.0.1", 0))
    port = held.getsockname()[1]
    link = await box.start(box.plan("sleep", "60"), port_fds=[held.fileno()])
    held.close()

    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port), reuse_port=False).close()

    await link.signal(signal.SIGKILL)
    await box.end(link)
    socket.create_server(("127.0.0.1", port)).close()


async def test_the_network_is_configured_before_the_program_runs(box: Contained) -> None:
    """on_pid holds the gate; the pid is one whose network namespace is already new."""
    seen: list[bool] = []

    async def on_pid(pid: int, network_pid: int) -> None:
        seen.append(os.stat(f"/proc/{network_pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino)
        await asyncio.sleep(0.05)
        seen.append(Path(f"/proc/{pid}/comm").read_text() != "sleep\n")

    link = await box.start(box.plan("sleep", "60"), on_pid=on_pid)

    assert seen == [True, True]
    assert Path(f"/proc/{link.pid}/comm").read_text() == "sleep\n"
    await link.signal(signal.SIGKILL)
    await box.end(link)


async def test_a_failing_network_leaves_nothing(box: Contained) -> None:
    pids: list[int] = []

    async def on_pid(pid: int, network_pid: int) -> None:
        pids.append(pid)
        raise RuntimeError("no address left")

    with pytest.raises(RuntimeError, match="no address left"):
        await box.start(box.plan("sleep", "60"), on_pid=on_pid)

    box.pids += pids
    assert pids and not Path(f"/proc/{pids[0]}").exists()


async def test_a_cancelled_start_leaves_nothing(box: Contained) -> None:
    pids: list[int] = []
    reached = asyncio.Event()

    async def on_pid(pid: int, network_pid: int) -> None:
        pids.append(pid)
        reached.set()
        await asyncio.Event().wait()

    starting = asyncio.ensure_future(box.start(box.plan("sleep", "60"), on_pid=on_pid))
    await reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert not Path(f"/proc/{pids[0]}").exists()


async def test_another_containers_network_is_joined(box: Contained) -> None:
    donor = await box.start(box.plan("sleep", "60"))
    plan = box.plan("readlink", "/proc/self/ns/net", namespaces=ALL_NEW | {"network": f"pid:{donor.pid}"})

    link = await box.start(plan)
    await box.end(link)

    assert box.logged(plan).strip() == os.readlink(f"/proc/{donor.pid}/ns/net")
    await donor.signal(signal.SIGKILL)
    await box.end(donor)


async def test_another_containers_processes_are_seen(box: Contained) -> None:
    donor = await box.start(box.plan("sleep", "61"))
    plan = box.plan("ps", namespaces=ALL_NEW | {"pid": f"pid:{donor.pid}"})

    link = await box.start(plan)
    await box.end(link)

    assert "sleep 61" in box.logged(plan)
    await donor.signal(signal.SIGKILL)
    await box.end(donor)


async def test_in_the_hosts_pid_namespace_children_end_with_the_first_process(box: Contained) -> None:
    plan = box.plan("sh", "-c", "sleep 4242 & echo $!; exit 0", namespaces=ALL_NEW | {"pid": "host"})
    if not plan.cgroup.join:
        pytest.skip("no cgroups can be made here")
    link = await box.start(plan)
    await box.end(link)

    child = int(box.logged(plan))
    await until(lambda: has_ended(child))


async def test_seven_hundred_layers_are_no_problem_of_ours(box: Contained) -> None:
    """Chains longer than a page of options go through the new mount API."""
    layers = []
    for number in range(60):
        layer = box.base / f"layers-with-rather-long-names-so-that-a-page-of-options-is-full/{number:04}"
        layer.mkdir(parents=True)
        (layer / f"f{number}").write_text("x")
        layers.append(layer)

    code, output = await box.run("sh", "-c", "ls / | grep -c ^f", layers=tuple(layers))

    assert (code, output) == (0, "60\n")


async def test_output_arrives_in_frames(box: Contained) -> None:
    client, stream = attached()
    link = await box.start(box.plan("sh", "-c", "echo out; echo err >&2"), stream)

    frames = split_frames(await read_all(client))

    await box.end(link)
    client.close()
    assert frames == {1: b"out\n", 2: b"err\n"}


async def test_ipc_and_shm_of_another_container(box: Contained) -> None:
    donor = await box.start(box.plan("sh", "-c", "echo shared > /dev/shm/f; sleep 60"))
    await until(lambda: Path(f"/proc/{donor.pid}/root/dev/shm/f").exists())
    mounts = defaults.default_mounts(
        privileged=False, shm_size=0, ipc_mode="container:x", cgroup_version=box.cgroups.version,
        shm_source=f"/proc/{donor.pid}/root/dev/shm",
    )  # fmt: skip
    code, output = await box.run(
        "cat", "/dev/shm/f", mounts=mounts, namespaces=ALL_NEW | {"ipc": f"pid:{donor.pid}"}
    )

    assert (code, output) == (0, "shared\n")
    await donor.signal(signal.SIGKILL)
    await box.end(donor)


async def test_sysctls_of_own_namespaces(box: Contained) -> None:
    _, output = await box.run(
        "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/msgmax",
        sysctls={"net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "4242"},
    )  # fmt: skip

    assert output == "0\n4242\n"


async def test_the_socket_file_is_for_root_alone(box: Contained) -> None:
    plan = box.plan("sleep", "60")
    link = await box.start(plan)

    mode = os.stat(Path(plan.run_dir) / "shim.sock").st_mode

    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    await link.signal(signal.SIGKILL)
    await box.end(link)


async def test_a_start_of_a_plan_that_cannot_be_leaves_nothing(box: Contained) -> None:
    plan = box.plan("true")
    broken = replace(plan, root=replace(plan.root, upper=str(box.base / "not there")))

    with pytest.raises(LaunchFailed, match="error preparing rootfs"):
        await box.start(broken)


def unified() -> Path | None:
    """Where cgroup version 2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    return None


async def test_a_version_two_cgroup_is_the_birthplace(box: Contained) -> None:
    """Born in it by clone3: no migration, so no waiting for RCU; its exec likewise."""
    mounted = unified()
    if mounted is None:
        pytest.skip("cgroup version 2 is not mounted")
    directory = mounted / f"ketch-test-{os.getpid()}"
    plan = box.plan(
        "sh",
        "-c",
        "grep ^0: /proc/self/cgroup; sleep 60",
        namespaces=ALL_NEW | {"cgroup": "host"},
        cgroup=False,
    )
    plan = replace(plan, cgroup=CgroupPlan((str(directory),)))
    try:
        link = await box.start(plan)
        await until(lambda: box.logged(plan))
        assert box.logged(plan) == f"0::/{directory.name}\n"

        code, output = await box.execute(link, "grep", "^0:", "/proc/self/cgroup")

        assert (code, output) == (0, f"0::/{directory.name}\n".encode())
        await link.signal(signal.SIGKILL)
        await box.end(link)
    finally:
        await until(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


async def test_a_tmpfs_has_the_mode_of_what_it_covers(box: Contained) -> None:
    (box.layer / "var/private").mkdir(mode=0o700)
    mounts = (
        *box.mounts(), MountPlan("/var/private", "tmpfs", "tmpfs", ("nosuid",)),
        MountPlan("/new", "tmpfs", "tmpfs", ()), MountPlan("/mine", "tmpfs", "tmpfs", ("mode=750",)),
    )  # fmt: skip
    _, output = await box.run("stat", "-c", "%n %a", "/var/private", "/new", "/mine", mounts=mounts)

    assert output == "/var/private 700\n/new 1777\n/mine 750\n"


async def test_thousands_of_ports_are_held_and_the_program_has_the_daemons_limit(box: Contained) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the hard limit of open files is too low")
    one = os.open("/dev/null", os.O_RDONLY)
    plan = box.plan("sh", "-c", "ulimit -n; sleep 60")
    link = await box.start(plan, port_fds=[one] * 900)
    os.close(one)
    await until(lambda: box.logged(plan))

    shim = Path(f"/proc/{link.pid}/stat").read_text().rpartition(")")[2].split()[1]
    assert len(os.listdir(f"/proc/{shim}/fd")) > 900
    assert box.logged(plan).strip() == str(soft)
    await link.signal(signal.SIGKILL)
    await box.end(link)
