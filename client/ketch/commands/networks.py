"""`network create`, `connect`, `disconnect`, `ls` and `rm`."""

from __future__ import annotations

from typing import Any

from ketch.faults import CommandFailed, EngineAnswer
from ketch.filters import build_filters
from ketch.networkflags import ENDPOINT
from ketch.options import Command, Given
from ketch.quantities import local_time, parse_time
from ketch.runoptions import check_link
from ketch.session import Session
from ketch.variables import check_label, pair_map
from ketch.views import (
    FORMAT_HELP,
    chosen_format,
    label_list,
    label_of,
    label_title,
    quiet_format,
    render_rows,
    short_id,
)

TITLES: dict[str, Any] = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
    "Label": label_title,
}


def listing(session: Session, given: Given) -> int:
    """List networks."""
    form = chosen_format(session, given, "networksFormat")
    query = {"filters": build_filters(given.many("filter"))} if given.many("filter") else {}
    trunc = not given.on("no-trunc")
    rows = [
        _row(one, trunc)
        for one in sorted(session.engine.get("/networks", query), key=lambda one: one["Name"])
    ]
    if given.on("quiet"):
        form = quiet_format(form, "{{.ID}}", "network_id: {{.ID}}")
    table = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
    raw = "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n"
    session.write(render_rows(form, rows, TITLES, table, raw).encode("utf-8", "surrogateescape"))
    return 0


def _row(one: dict[str, Any], trunc: bool) -> dict[str, Any]:
    return {
        "ID": short_id(one["Id"]) if trunc else one["Id"],
        "Name": one["Name"],
        "Driver": one.get("Driver", ""),
        "Scope": one.get("Scope", ""),
        "IPv4": str(bool(one.get("EnableIPv4"))).lower(),
        "IPv6": str(bool(one.get("EnableIPv6"))).lower(),
        "Internal": str(bool(one.get("Internal"))).lower(),
        "Labels": label_list(one.get("Labels")),
        "CreatedAt": created_text(one.get("Created", "")),
        "Label": label_of(one.get("Labels")),
    }


def created_text(text: str) -> str:
    """A time of the API with its fraction, as Go prints it."""
    try:
        moment = parse_time(text)
    except ValueError:
        return text
    _, dot, fraction = text.partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))].rstrip("0") if dot else ""
    head, _, tail = (
        local_time(moment.timestamp()).partition(" +") if moment.tzinfo is None else _zoned(moment)
    )
    return f"{head}{'.' + digits if digits else ''} {tail}"


def _zoned(moment: Any) -> tuple[str, str, str]:
    name = moment.tzname() or ""
    return f"{moment:%Y-%m-%d %H:%M:%S}", "", f"{moment:%z} {name if name == 'UTC' else f'{moment:%z}'}"


def create(session: Session, given: Given) -> int:
    """Make a network; print its ID."""
    try:
        pools = address_pools(
            given.many("subnet"),
            given.many("ip-range"),
            given.many("gateway"),
            pair_map(given.many("aux-address")),
        )
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    body: dict[str, Any] = {
        "Name": given.arguments[0],
        "Driver": given.text("driver"),
        "Scope": given.text("scope"),
        "IPAM": {
            "Driver": given.text("ipam-driver"),
            "Options": pair_map(given.many("ipam-opt")),
            "Config": pools,
        },
        "Internal": given.on("internal"),
        "Attachable": given.on("attachable"),
        "Ingress": given.on("ingress"),
        "ConfigOnly": given.on("config-only"),
        "ConfigFrom": {"Network": given.text("config-from")} if given.text("config-from") else None,
        "Options": pair_map(given.many("opt")),
        "Labels": pair_map(given.many("label")),
    }
    for option, field in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if given.has(option):
            body[field] = given.on(option)
    made = session.engine.json("POST", "/networks/create", send=body)
    if made.get("Warning"):
        session.warn(f"WARNING: {made['Warning']}")
    session.say(made["Id"])
    return 0


def address_pools(
    subnets: list[str], ranges: list[str], gateways: list[str], auxiliary: dict[str, str]
) -> list[dict[str, Any]]:
    """The pools of a network: what belongs to a subnet is found by its address. Raises ValueError.

    Source: docker/cli cli/command/network/create.go, createIPAMConfig.
    """
    import ipaddress

    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise ValueError("every ip-range or gateway must have a corresponding subnet")
    pools: dict[str, dict[str, Any]] = {}
    parsed: dict[str, Any] = {}
    for text in subnets:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"invalid subnet {text}: invalid CIDR block notation") from None
        for other, known in parsed.items():
            if network.version == known.version and network.overlaps(known):
                raise ValueError(
                    f"multiple overlapping subnet configuration is not supported: {other}, {text}"
                )
        parsed[text] = network
        pools[text] = {"Subnet": text}

    def place(text: str, field: str, what: str) -> None:
        address = ipaddress.ip_interface(text).ip
        for subnet, network in parsed.items():
            if address.version == network.version and address in network:
                if field in pools[subnet]:
                    raise ValueError(
                        f"cannot configure multiple {what} ({text}, {pools[subnet][field]}) on the same subnet ({subnet})"
                    )
                pools[subnet][field] = text
                return
        raise ValueError(f"no matching subnet for {what[:-1] if what.endswith('s') else what} {text}")

    for text in ranges:
        place(text, "IPRange", "ranges")
    for text in gateways:
        place(text, "Gateway", "gateways")
    for name, text in auxiliary.items():
        address = ipaddress.ip_address(text)
        for subnet, network in parsed.items():
            if address.version == network.version and address in network:
                pools[subnet].setdefault("AuxiliaryAddresses", {})[name] = text
                break
        else:
            raise ValueError(f"no matching subnet for aux-address {text}")
    return list(pools.values())


def connect(session: Session, given: Given) -> int:
    """Connect a container to a network."""
    network, container = given.arguments
    options: dict[str, str] = {}
    for text in given.many("driver-opt"):
        name, assigned, value = text.partition("=")
        if not assigned or not name:
            raise CommandFailed("invalid key/value pair format in driver options")
        options[name.strip()] = value.strip()
    address = {
        key: value
        for key, value in (
            ("IPv4Address", given.text("ip")),
            ("IPv6Address", given.text("ip6")),
            ("LinkLocalIPs", given.many("link-local-ip")),
        )
        if value
    }
    endpoint = {
        **ENDPOINT,
        "IPAMConfig": address,
        "Links": given.many("link") or None,
        "Aliases": given.many("alias"),
        "DriverOpts": options,
        "GwPriority": given.number("gw-priority"),
    }
    session.engine.call(
        "POST", f"/networks/{network}/connect", send={"Container": container, "EndpointConfig": endpoint}
    )
    return 0


def disconnect(session: Session, given: Given) -> int:
    """Take a container off a network."""
    network, container = given.arguments
    body = {"Container": container, "Force": given.on("force")}
    session.engine.call("POST", f"/networks/{network}/disconnect", send=body)
    return 0


def remove(session: Session, given: Given) -> int:
    """Remove networks."""
    failures = 0
    for name in given.arguments:
        try:
            session.engine.call("DELETE", f"/networks/{name}")
        except EngineAnswer as error:
            if error.status == 404 and given.on("force"):
                continue
            session.warn(error.message)
            failures += 1
        else:
            session.say(name)
    return 1 if failures else 0


COMMANDS = {
    "network ls": (
        Command(
            "[OPTIONS]",
            f"""
-f, --filter filter  Show only networks that fulfil the conditions (e.g. "driver=bridge")
--format string  Format output using a custom template:{FORMAT_HELP}
--no-trunc  Do not truncate the output
-q, --quiet  Show network IDs alone
""",
        ),
        listing,
    ),
    "network create": (
        Command(
            "[OPTIONS] NETWORK",
            """
--attachable  Accepted; every network here can be attached to
--aux-address map  Addresses of the network that others have (default map[])
--config-from string  Network to take the configuration from
--config-only  Make a configuration alone
-d, --driver string  Driver of the network (default "bridge")
--gateway strings  Gateway of a subnet
--ingress  Accepted for docker's sake
--internal  No way out of the network
--ip-range strings  Part of a subnet that addresses are taken from
--ipam-driver string  Driver of the addresses (default "default")
--ipam-opt map  Options of that driver (default map[])
--ipv4  Enable or disable IPv4 addresses (default true)
--ipv6  Enable or disable IPv6 addresses
--label list  Set a label
-o, --opt map  Options of the driver (default map[])
--scope string  Scope of the network
--subnet strings  Subnet in CIDR notation
""",
            (1, 1),
            checks={"label": check_label},
        ),
        create,
    ),
    "network connect": (
        Command(
            "[OPTIONS] NETWORK CONTAINER",
            """
--alias strings  Add a name within the network
--driver-opt strings  Options of the driver
--gw-priority int  The network with the highest has the default gateway; may be negative
--ip string  IPv4 address (e.g., "172.30.100.104")
--ip6 string  IPv6 address (e.g., "2001:db8::33")
--link list  Add a link to another container
--link-local-ip strings  Add a link-local address
""",
            (2, 2),
            checks={"link": check_link},
        ),
        connect,
    ),
    "network disconnect": (
        Command("[OPTIONS] NETWORK CONTAINER", "-f, --force  Disconnect whatever the container says", (2, 2)),
        disconnect,
    ),
    "network rm": (
        Command("NETWORK [NETWORK...]", "-f, --force  What is not there is no fault", (1, None)),
        remove,
    ),
}
