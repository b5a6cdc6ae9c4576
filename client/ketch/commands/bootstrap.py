"""`image bootstrap`: a base image from a distribution's own tool and mirror; no registry is needed."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from ketch.aptsources import Source, choose, parse_deb822, parse_list, reaching, without_password
from ketch.faults import CommandFailed
from ketch.options import Command, Given
from ketch.progressview import show
from ketch.references import parse_name
from ketch.session import Session

BOOTSTRAP = Command(
    "[OPTIONS] [DISTRIBUTION:]SUITE",
    """
--include strings  Packages to install as well
--keyring string  Keys that sign the packages (default: those of the host's apt)
--mirror string  Where packages come from (default: the mirror of the host's apt, else the distribution's own)
-q, --quiet  Do not show what the tool says
--tag string  Name of the image (default: DISTRIBUTION:SUITE)
--tool string  mmdebstrap or debootstrap (default: the one that is installed)
--variant string  Which packages make the base (default "minbase")
""",
    (1, 1),
    note="Runs mmdebstrap or debootstrap and stores what it makes as an ordinary image.",
)

CHANGES = [
    'CMD ["bash"]',
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
]
CHUNK = 1024 * 1024

# What debootstrap leaves: packages that are installed, and files of this host.
RUBBISH = (
    "var/cache/apt/archives/*.deb",
    "var/lib/apt/lists/*_*",
    "var/log/bootstrap.log",
    "etc/resolv.conf",
    "etc/hostname",
)

# Suites that are typed without their distribution.
SUITES = {
    **dict.fromkeys(
        [
            "buster",
            "bullseye",
            "bookworm",
            "trixie",
            "forky",
            "duke",
            "sid",
            "stable",
            "testing",
            "unstable",
            "oldstable",
            "oldoldstable",
        ],
        "debian",
    ),
    **dict.fromkeys(
        ["bionic", "focal", "jammy", "noble", "oracular", "plucky", "questing", "resolute", "devel"], "ubuntu"
    ),
}
MIRRORS = {"debian": "http://deb.debian.org/debian", "ubuntu": "http://archive.ubuntu.com/ubuntu"}
KEYRINGS = {
    "debian": ("debian-archive-keyring.gpg", "debian-archive-keyring"),
    "ubuntu": ("ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
}


class Plan(NamedTuple):
    """What is to be made, and out of what."""

    distribution: str
    suite: str
    mirror: str
    components: tuple[str, ...]
    keyring: str
    variant: str
    include: tuple[str, ...]
    options: tuple[str, ...]


def bootstrap(session: Session, given: Given) -> int:
    """Make the image; print its ID."""
    distribution, suite = split_suite(given.arguments[0])
    name = parse_name(given.text("tag") or f"{distribution}:{suite}").with_default_tag()
    tool = _tool(given.text("tool"))
    plan = make_plan(
        distribution,
        suite,
        given,
        _host_sources() if distribution == _host_distribution() else [],
        reaching(_apt_config()),
    )
    _check_keyring(plan)
    # An engine that is not there is told before minutes of work.
    session.engine.version  # noqa: B018
    query = {
        "fromSrc": "-",
        "repo": name.repository,
        "tag": name.tag,
        "message": f"made by {tool} from {plan.suite}",
        "changes": CHANGES,
    }
    if not given.on("quiet"):
        session.warn(f"{tool}: {plan.suite} from {plan.mirror}")
    body = (_mmdebstrap if tool == "mmdebstrap" else _debootstrap)(plan, given.on("quiet"))
    answer = session.engine.request(
        "POST", "/images/create", query, body=body, headers={"Content-Type": "application/x-tar"}
    )
    show(session.engine.messages(answer), sys.stdout)
    return 0


def split_suite(text: str) -> tuple[str, str]:
    """`debian:bookworm` or `bookworm`. Raises CommandFailed."""
    distribution, colon, suite = text.partition(":")
    if not colon:
        suite, distribution = text, SUITES.get(text, "")
    if not distribution:
        raise CommandFailed(f"which distribution has the suite {suite!r}? Say so: DISTRIBUTION:{suite}")
    if not all(part and part.replace("-", "").replace(".", "").isalnum() for part in (distribution, suite)):
        raise CommandFailed(f"not a suite: {text!r}")
    return distribution, suite


def make_plan(distribution: str, suite: str, given: Given, sources: list[Source], options: list[str]) -> Plan:
    """Typed values first, then what the host's apt uses, then the distribution's own. Raises CommandFailed."""
    known = choose(sources, suite, distribution)
    mirror = given.text("mirror") or (known.address if known else MIRRORS.get(distribution, ""))
    if not mirror:
        raise CommandFailed(f"no mirror of {distribution!r} is known: give one with --mirror")
    keyring = given.text("keyring") or (known.keyring if known else "")
    if not keyring and distribution in KEYRINGS:
        keyring = f"/usr/share/keyrings/{KEYRINGS[distribution][0]}"
    variant = given.text("variant")
    components = ("main", "universe") if distribution == "ubuntu" else ("main",)
    return Plan(
        distribution,
        suite,
        mirror,
        components,
        keyring,
        variant,
        tuple(given.many("include")),
        tuple(options),
    )


def _check_keyring(plan: Plan) -> None:
    if plan.keyring and os.path.exists(plan.keyring):
        return
    package = KEYRINGS.get(plan.distribution, ("", ""))[1]
    hint = f"install the package {package}, or give" if package else "give"
    raise CommandFailed(
        f"the keys of {plan.distribution} are missing ({plan.keyring or 'no keyring is known'}): {hint} another with --keyring"
    )


def _tool(wanted: str) -> str:
    if wanted not in ("", "mmdebstrap", "debootstrap"):
        raise CommandFailed(f"unknown tool {wanted!r}: must be mmdebstrap or debootstrap")
    for tool in (wanted,) if wanted else ("mmdebstrap", "debootstrap"):
        if shutil.which(tool, path=_search_path()):
            return tool
    raise CommandFailed(
        f"{wanted or 'neither mmdebstrap nor debootstrap'} is {'not ' if wanted else ''}installed:"
        f" install the package {wanted or 'mmdebstrap'} (apt-get install {wanted or 'mmdebstrap'})"
    )


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin"


def _host_distribution() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    return next((line[3:].strip("\"'") for line in lines if line.startswith("ID=")), "")


def _host_sources() -> list[Source]:
    found: list[Source] = []
    paths = ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if path.endswith(".sources"):
            found += parse_deb822(text)
        elif path.endswith(".list"):
            found += parse_list(text)
    return found


def _apt_config() -> str:
    try:
        done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout


def mmdebstrap_command(plan: Plan) -> list[str]:
    """The command line that writes a tar to standard output."""
    command = [
        "mmdebstrap",
        "--format=tar",
        f"--variant={plan.variant}",
        f"--components={','.join(plan.components)}",
        f"--keyring={plan.keyring}",
        # Until the engine has the tar there is nothing that a crash could spoil.
        "--dpkgopt=force-unsafe-io",
        # In the image both would be true only as long as it is made on this host.
        '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"',
    ]
    kept = without_password(plan.mirror)
    if kept != plan.mirror:
        # Names alone: what is in quotes here is a shell's.
        line = f"deb {kept} {plan.suite} {' '.join(plan.components)}"
        command.append(f'--customize-hook=echo {_quoted(line)} > "$1/etc/apt/sources.list"')
    if plan.include:
        command.append(f"--include={','.join(plan.include)}")
    command += [f"--aptopt={option}" for option in plan.options]
    return [*command, plan.suite, "-", plan.mirror]


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _mmdebstrap(plan: Plan, quiet: bool) -> Iterator[bytes]:
    """Its tar, while it makes it. Raises CommandFailed when it fails: then nothing is stored."""
    yield from _output("mmdebstrap", mmdebstrap_command(plan), quiet)


def debootstrap_command(plan: Plan, root: str) -> list[str]:
    """The command line that makes a root in a directory."""
    command = [
        "debootstrap",
        f"--variant={plan.variant}",
        f"--components={','.join(plan.components)}",
        f"--keyring={plan.keyring}",
    ]
    if plan.include:
        command.append(f"--include={','.join(plan.include)}")
    return [*command, plan.suite, root, plan.mirror]


def _debootstrap(plan: Plan, quiet: bool) -> Iterator[bytes]:
    """Makes a root in a directory, then its tar."""
    if os.geteuid() != 0:
        raise CommandFailed("debootstrap needs root: use sudo, or install the package mmdebstrap")
    base = tempfile.mkdtemp(prefix="ketch-bootstrap-", dir="/var/tmp")
    root = os.path.join(base, "root")
    try:
        for _ in _output("debootstrap", debootstrap_command(plan, root), quiet, {"http_proxy": _proxy(plan)}):
            pass
        for pattern in RUBBISH:
            for path in glob.glob(os.path.join(root, pattern)):
                os.unlink(path)
        kept = without_password(plan.mirror)
        with open(os.path.join(root, "etc/apt/sources.list"), "w", encoding="ascii") as file:
            file.write(f"deb {kept} {plan.suite} {' '.join(plan.components)}\n")
        tar = [
            "tar",
            "--numeric-owner",
            "--xattrs",
            "--one-file-system",
            "--sort=name",
            "-C",
            root,
            "-c",
            ".",
        ]
        yield from _output("tar", tar, quiet)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _proxy(plan: Plan) -> str:
    """The proxy that apt uses for http, for tools that do not ask apt."""
    for option in plan.options:
        name, _, value = option.partition(" ")
        if name == "Acquire::http::Proxy":
            return value.rstrip(";").strip('"')
    return os.environ.get("http_proxy", "")


def _output(
    name: str, command: list[str], quiet: bool, variables: dict[str, str] | None = None
) -> Iterator[bytes]:
    """What a program writes, in parts; its complaints go to ours, or into the fault when it is to be quiet."""
    environment = {**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8", **(variables or {})}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name != "debootstrap" else said if quiet else 2,
            stderr=said if quiet else None,
            env={key: value for key, value in environment.items() if value or key in os.environ},
        )
        try:
            while process.stdout is not None and (part := process.stdout.read(CHUNK)):
                yield part
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        if code:
            said.seek(0)
            told = said.read().decode("utf-8", "replace").strip()
            raise CommandFailed(f"{name} failed with exit code {code}" + (f":\n{told}" if told else ""))


COMMANDS = {"image bootstrap": (BOOTSTRAP, bootstrap)}
