"""The options of `run` and `create`, with what each value is asked. Pure but for looking up the client's own variables."""

from __future__ import annotations

import re

from ketch.limits import parse_byte_rate, parse_operation_rate, parse_weight
from ketch.networkflags import parse_network
from ketch.options import Check
from ketch.variables import check_label, check_variable

_DEVICE_RULE = re.compile(r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}", re.ASCII)
_DOMAIN = re.compile(
    r"([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(\.([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*\.?\s*"
)
_SYSCTLS = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)


def _check_attach(text: str) -> str:
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def check_link(text: str) -> str:
    """`name[:alias]`. Raises ValueError."""
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    return text


def check_address(text: str) -> str:
    """An IP address. Raises ValueError."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"IP address is not correctly formatted: {text}") from None


def check_host(text: str) -> str:
    """`name:address` or `name=address`, the address possibly in brackets. Raises ValueError."""
    name, sign, address = text.partition("=")
    if not sign:
        name, sign, address = text.partition(":")
    if not sign or not name or ":" in name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address != "host-gateway":
        if len(address) > 2 and address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        try:
            address = check_address(address)
        except ValueError:
            raise ValueError(f'invalid IP address in add-host: "{address}"') from None
    return f"{name}:{address}"


def _check_search(text: str) -> str:
    text = text.strip(" ")
    if text == ".":
        return text
    if not any(letter.isalpha() for letter in text) or not _DOMAIN.fullmatch(text) or len(text) > 255:
        raise ValueError(f"{text} is not a valid domain")
    return text


def _check_sysctl(text: str) -> str:
    name, assigned, _ = text.partition("=")
    if not assigned or not (name in _SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def _check_rule(text: str) -> str:
    if not _DEVICE_RULE.fullmatch(text):
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def _check_weight(text: str) -> str:
    parse_weight(text)
    return text


def _check_bytes(text: str) -> str:
    parse_byte_rate(text)
    return text


def _check_operations(text: str) -> str:
    parse_operation_rate(text)
    return text


def _check_network(text: str) -> str:
    parse_network(text)
    return text


CHECKS: dict[str, Check] = {
    "add-host": check_host,
    "attach": _check_attach,
    "blkio-weight-device": _check_weight,
    "device-cgroup-rule": _check_rule,
    "device-read-bps": _check_bytes,
    "device-read-iops": _check_operations,
    "device-write-bps": _check_bytes,
    "device-write-iops": _check_operations,
    "dns": check_address,
    "dns-search": _check_search,
    "env": check_variable,
    "label": check_label,
    "link": check_link,
    "network": _check_network,
    "sysctl": _check_sysctl,
}

CREATE = """
--add-host list  Add a host name and its address to /etc/hosts (host:ip)
--annotation map  Add an annotation for the OCI runtime (default map[])
-a, --attach list  Attach to STDIN, STDOUT or STDERR
--blkio-weight uint16  Relative weight of block I/O, 10 to 1000, or 0 for none (default 0)
--blkio-weight-device list  Relative weight of block I/O on one device (default [])
--cap-add list  Add Linux capabilities
--cap-drop list  Drop Linux capabilities
--cgroup-parent string  Parent cgroup of the container
--cgroupns string  Cgroup namespace (host|private)
--cidfile string  Write the container ID to this file
--cpu-period int  Length of a CPU period in microseconds (CFS)
--cpu-quota int  CPU time within a period in microseconds (CFS)
--cpu-rt-period int  Length of a real-time CPU period in microseconds
--cpu-rt-runtime int  Real-time CPU time within a period in microseconds
-c, --cpu-shares int  CPU shares (relative weight)
--cpus decimal  Number of CPUs
--cpuset-cpus string  CPUs that may be used (0-3, 0,1)
--cpuset-mems string  Memory nodes that may be used (0-3, 0,1)
--device list  Add a device of the host
--device-cgroup-rule list  Add a rule to the devices the container may use
--device-read-bps list  Limit bytes read from a device each second (default [])
--device-read-iops list  Limit reads from a device each second (default [])
--device-write-bps list  Limit bytes written to a device each second (default [])
--device-write-iops list  Limit writes to a device each second (default [])
--disable-content-trust  Accepted; images are not verified by signature (default true)
--dns list  Use these DNS servers
--dns-option list  Set resolver options
--dns-opt = --dns-option
--dns-search list  Use these DNS search domains
--domainname string  NIS domain name of the container
--entrypoint string  Use this instead of the image's ENTRYPOINT
-e, --env list  Set environment variables
--env-file list  Read environment variables from a file
--expose list  Expose a port or a range of ports
--gpus string  GPU devices to add (not available on this engine)
--group-add list  Join additional groups
--health-cmd string  Command that checks the container's health
--health-interval duration  Time between two checks (ms|s|m|h) (default 0s)
--health-retries int  Failures in a row that make the container unhealthy
--health-start-interval duration  Time between two checks during the start period (ms|s|m|h) (default 0s)
--health-start-period duration  Time to start up before failures count (ms|s|m|h) (default 0s)
--health-timeout duration  Longest time one check may take (ms|s|m|h) (default 0s)
-h, --hostname string  Host name of the container
--init  Run an init in the container that forwards signals and reaps processes
-i, --interactive  Keep STDIN open even if not attached
--ip string  IPv4 address (e.g., 172.30.100.104)
--ip6 string  IPv6 address (e.g., 2001:db8::33)
--ipc string  IPC mode to use
--isolation string  Accepted; there is one isolation technology on Linux
--kernel-memory bytes  Accepted; kernels do not honour it any more
-l, --label list  Set a label
--label-file list  Read labels from a file
--link list  Add a link to another container
--link-local-ip list  IPv4/IPv6 link-local addresses
--log-driver string  Logging driver
--log-opt list  Options of the logging driver
--mac-address string  MAC address (e.g., 92:d0:c6:0a:29:33)
-m, --memory bytes  Memory limit
--memory-reservation bytes  Memory soft limit
--memory-swap bytes  Limit of memory and swap together: '-1' for unlimited swap
--memory-swappiness int  How readily memory is swapped out (0 to 100) (default -1)
--mount mount  Attach a mount
--name string  Name of the container
--net = --network
--network network  Connect to a network
--network-alias list  Add a name within the network
--net-alias = --network-alias
--no-healthcheck  Disable the image's HEALTHCHECK
--oom-kill-disable  Do not kill when memory runs out
--oom-score-adj int  How readily the host kills the container when memory runs out (-1000 to 1000)
--pid string  PID namespace to use
--pids-limit int  Limit of processes (-1 for unlimited)
--platform string  Platform, where the engine has several
--privileged  Give extended privileges to this container
-p, --publish list  Publish a port of the container on the host
-P, --publish-all  Publish all exposed ports on random ports
--pull string  When to pull the image ("always", "missing", "never") (default "missing")
-q, --quiet  Do not show the pull
--read-only  Mount the root filesystem read-only
--restart string  When to start again after an exit (default "no")
--rm  Remove the container and its anonymous volumes when it exits
--runtime string  Runtime to use
--security-opt list  Security options
--shm-size bytes  Size of /dev/shm
--stop-signal string  Signal that stops the container
--stop-timeout int  Seconds to wait before killing on stop
--storage-opt list  Options of the storage driver
--sysctl map  Kernel parameters (default map[])
--tmpfs list  Mount a tmpfs
-t, --tty  Allocate a pseudo-TTY
--ulimit ulimit  Ulimits (default [])
-u, --user string  User name or UID (format: <name|uid>[:<group|gid>])
--userns string  User namespace to use
--uts string  UTS namespace to use
-v, --volume list  Mount a directory of the host or a volume
--volume-driver string  Volume driver
--volumes-from list  Mount the volumes of these containers
-w, --workdir string  Working directory inside the container
"""

# In the order of help, which is that of the names.
_RUN = {
    "--device list": """-d, --detach  Run in the background and print the container ID
--detach-keys string  Keys that leave a container with a terminal
""",
    "--stop-signal": """--sig-proxy  Pass signals on to the process (default true)
""",
}


def run_options() -> str:
    """The options of `run`: those of `create`, and what attaching needs."""
    text = CREATE
    for before, added in _RUN.items():
        text = text.replace("\n" + before, "\n" + added + before, 1)
    return text
