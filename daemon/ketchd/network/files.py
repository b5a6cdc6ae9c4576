"""hosts, hostname and resolv.conf of a container, as text. Pure.

Source: moby libnetwork/etchosts and internal/resolvconf, version 28.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
EMBEDDED_SERVER = "127.0.0.11"
_LOCAL_LINES = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def render_hosts(
    hostname: str,
    domainname: str,
    address: str | Sequence[str] | None,
    extra: Sequence[tuple[str, str]],
    host_file: str | None,
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """/etc/hosts. address: the container's own, one or several, None without a network. extra: (name, address) of `--add-host`.

    more: (names, address) lines ahead of the container's own, as links have. host_file: with the host's network its own
    file is taken and only `extra` added.
    """
    if host_file is not None:
        base = host_file if host_file.endswith("\n") or not host_file else host_file + "\n"
        return base + "".join(f"{where}\t{name}\n" for name, where in extra)
    lines = [f"{where}\t{names}" for where, names in _LOCAL_LINES]
    lines += [f"{where}\t{name}" for name, where in extra]
    lines += [f"{where}\t{names}" for names, where in more]
    whole = f"{hostname}.{domainname}" if domainname else hostname
    own = f"{whole} {whole.partition('.')[0]}" if "." in whole else whole
    lines += [f"{where}\t{own}" for where in ([address] if isinstance(address, str) else address or ())]
    return "\n".join(lines) + "\n"


def change_hosts(current: str, before: str, after: str) -> str:
    """/etc/hosts of a running container whose networks changed: `before` made `after`, with what it wrote there itself kept.

    before, after: as `render_hosts` makes them. Source: moby libnetwork/etchosts, Add and Delete.
    """
    if current == before:
        return after
    old, new = before.splitlines(), after.splitlines()
    kept = [line for line in current.splitlines() if line not in old or line in new]
    return "\n".join([*kept, *(line for line in new if line not in old and line not in kept)]) + "\n"


def render_hostname(hostname: str) -> str:
    """/etc/hostname."""
    return hostname + "\n"


def nameservers(text: str) -> list[str]:
    """The servers of a resolv.conf, in order."""
    return [
        words[1] for line in text.splitlines() if len(words := line.split()) > 1 and words[0] == "nameserver"
    ]


def host_servers(text: str) -> list[str]:
    """The servers of the host's resolv.conf, asked from the host: its own as well. None at all: Google's, as in dockerd."""
    return nameservers(text) or list(FALLBACK_SERVERS)


def outside_servers(text: str) -> list[str]:
    """The servers of the host's resolv.conf that are reachable from elsewhere than the host itself.

    IPv6 ones are left out: the networks have no IPv6. None left: Google's, as in dockerd.
    """
    kept = []
    for server in nameservers(text):
        try:
            address = ipaddress.ip_address(server.partition("%")[0])
        except ValueError:
            continue
        if address.version == 4 and not address.is_loopback:
            kept.append(server)
    return kept or list(FALLBACK_SERVERS)


def only_loopback(text: str) -> bool:
    """Whether every server of a resolv.conf is the host's own: then the stub's upstream file has the real ones."""
    found = nameservers(text)
    return bool(found) and all(server.startswith("127.") or server == "::1" for server in found)


def render_resolv_conf(
    host_text: str, dns: Sequence[str], search: Sequence[str], options: Sequence[str], keep_loopback: bool = False
) -> str:  # fmt: skip
    """/etc/resolv.conf from the host's, what was asked taking precedence. A search domain `.` means none.

    keep_loopback: with the host's network its file stays as it is but for what was asked.
    """
    if keep_loopback and not dns and not search and not options:
        return host_text
    servers = list(dns) or (nameservers(host_text) if keep_loopback else outside_servers(host_text))
    return _render(host_text, servers, search, options)


def render_embedded_resolv_conf(
    host_text: str, server: str, search: Sequence[str], options: Sequence[str]
) -> str:
    """/etc/resolv.conf on a user-defined network: our own server, and `ndots:0` unless something else was asked."""
    wanted = list(options) or _words(host_text, "options")
    if not any(option.startswith("ndots:") for option in wanted):
        wanted.append("ndots:0")
    return _render(host_text, [server], search, wanted)


def _words(text: str, keyword: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == keyword:
            found = words[1:] if keyword == "search" else found + words[1:]
    return found


def _render(host_text: str, servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    lines = ["# Generated by ketch."]
    lines += [f"nameserver {server}" for server in servers]
    domains = [domain for domain in search if domain != "."] if search else _words(host_text, "search")
    if domains:
        lines.append("search " + " ".join(domains))
    wanted = list(options) or _words(host_text, "options")
    if wanted:
        lines.append("options " + " ".join(wanted))
    return "\n".join(lines) + "\n"
