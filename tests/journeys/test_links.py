"""--link on the default bridge, as programs from before user-defined networks use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.clients import Client

pytestmark = [needs_root, pytest.mark.root]
Ask = Callable[..., tuple[int, Any]]


def run(client: Client, name: str, *options: str) -> str:
    """A container that waits for its end."""
    return client(
        "run", "-d", "--name", name, "--stop-signal", "KILL", *options, "busybox", "sleep", "1000"
    ).strip()


def test_the_other_is_known_by_three_names_and_its_variables(client: Client) -> None:
    """Its alias, its host name and its name lead to it; its ports and variables are in the environment, an exec's too."""
    run(client, "db", "--hostname", "fred", "--expose", "5432", "-e", "COLOUR=red")
    address = client.inspect("db")["NetworkSettings"]["IPAddress"]
    run(client, "web", "--link", "db:data", "--link", "db")

    hosts = client("exec", "web", "cat", "/etc/hosts")
    assert f"{address}\tdata fred db\n" in hosts and f"{address}\tdb fred\n" in hosts
    told = client("exec", "web", "env").splitlines()
    assert f"DATA_PORT_5432_TCP=tcp://{address}:5432" in told
    assert {"DATA_NAME=/web/data", "DATA_ENV_COLOUR=red", "DB_ENV_COLOUR=red"} <= set(told)
    assert sorted(client.inspect("web")["HostConfig"]["Links"]) == ["/db:/web/data", "/db:/web/db"]
    client("exec", "web", "ping", "-c", "1", "-W", "10", "data")


def test_a_link_follows_its_container(ketch: Client) -> None:
    """A new address is in the hosts file of those that run; a new name is what inspect says."""
    run(ketch, "db")
    run(ketch, "web", "--link", "db:data")
    before = ketch.inspect("db")["NetworkSettings"]["IPAddress"]
    ketch("stop", "db")
    run(ketch, "squatter")  # it takes the address that was given back
    ketch("start", "db")
    ketch("rename", "db", "base")
    ketch("rename", "web", "site")

    after = ketch.inspect("base")["NetworkSettings"]["IPAddress"]
    assert f"{after}\tdata " in ketch("exec", "site", "cat", "/etc/hosts")
    assert after == before or f"{before}\tdata" not in ketch("exec", "site", "cat", "/etc/hosts")
    assert ketch.inspect("site")["HostConfig"]["Links"] == ["/base:/site/data"]
    assert ketch.inspect("site/data")["Name"] == "/base"


def test_a_link_is_a_name_until_it_is_removed(ask: Ask, ketch: Client) -> None:
    run(ketch, "db")
    web = run(ketch, "web", "--link", "db:data")

    def names() -> list[str]:
        rows = ask("GET", "/containers/json")[1]
        return next(row["Names"] for row in rows if row["Id"] != web)

    assert names() == ["/db", "/web/data"]
    status, answer = ask("DELETE", "/containers/db?link=1")
    assert (status, answer["message"]) == (
        500,
        "Conflict, cannot remove the default link name of the container",
    )
    assert ask("DELETE", "/containers/web/data?link=1") == (204, None)
    assert ask("DELETE", "/containers/web/data?link=1")[0] == 404
    assert names() == ["/db"]
    assert "\tdata " not in ketch("exec", "web", "cat", "/etc/hosts")
    assert ketch.inspect("web")["HostConfig"]["Links"] is None
    assert ketch.inspect("db")["State"]["Running"]


def test_links_that_cannot_be(client: Client) -> None:
    """dockerd's words: at the create for whom nobody is, at the start for who does not run."""
    said = client.says("create", "--link", "nobody:x", "busybox", "true", code=1)
    assert "could not get container for nobody: No such container: nobody" in said
    run(client, "hosted", "--network", "host")
    said = client.says("create", "--link", "hosted:x", "busybox", "true", code=1)
    assert "host type networking can't be used with links" in said
    client("create", "--name", "db", "busybox", "true")
    client("create", "--name", "web", "--link", "db", "busybox", "true")
    said = client.says("start", "web", code=1)
    assert "Cannot link to a non running container: /db AS /web/db" in said
