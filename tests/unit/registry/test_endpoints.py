"""Where to ask, in which order, and what may follow to another place."""

from __future__ import annotations

import pytest

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.registry import endpoints, hosts
from ketchd.registry.endpoints import Endpoint, Settings


def bases(found: list[Endpoint]) -> list[str]:
    return [endpoint.base for endpoint in found]


def test_a_registry_is_asked_over_tls_only() -> None:
    """With its certificate verified."""
    (found,) = endpoints.choose("reg.io:5000", Settings(), None, insecure=False)

    assert found.base == "https://reg.io:5000/v2" and found.verify and found.is_secure and found.own


def test_an_insecure_one_is_asked_over_tls_first() -> None:
    """Then in plain text; neither counts as secure."""
    found = endpoints.choose("localhost:5000", Settings(), None, insecure=True)

    assert bases(found) == ["https://localhost:5000/v2", "http://localhost:5000/v2"]
    assert not any(endpoint.is_secure for endpoint in found)


def test_docker_hub_has_an_api_host_of_its_own() -> None:
    """And the daemon's mirrors before it, for pulls only, without the user's credentials."""
    settings = Settings(mirrors=("https://m.io", "http://n.io/cache/"))
    found = endpoints.choose("docker.io", settings, None, insecure=False)

    assert bases(found) == ["https://m.io/v2", "http://n.io/cache/v2", "https://registry-1.docker.io/v2"]
    assert [endpoint.own for endpoint in found] == [False, False, True]
    assert bases(endpoints.choose("docker.io", settings, None, insecure=False, push=True)) == [
        "https://registry-1.docker.io/v2"
    ]
    assert bases(endpoints.choose("reg.io", settings, None, insecure=False)) == ["https://reg.io/v2"]


def test_any_registry_may_have_mirrors() -> None:
    """hosts.toml: order, capabilities, the namespace for shared caches, tags only where trusted."""
    file = hosts.parse(
        'server = "https://reg.io"\n[host."https://cache.io/p"]\ncapabilities = ["pull"]\n'
        '[host."http://near:5000"]\ncapabilities = ["pull", "resolve"]\nskip_verify = true\n'
        '[host."https://reg.io:9"]\ncapabilities = ["push"]\n',
        "/c",
    )
    found = endpoints.choose("reg.io", Settings(), file, insecure=False)

    assert bases(found) == ["https://cache.io/p/v2", "http://near:5000/v2", "https://reg.io/v2"]
    assert [endpoint.resolves for endpoint in found] == [False, True, True]
    assert [endpoint.namespace for endpoint in found] == ["reg.io", "reg.io", ""]
    assert [endpoint.own for endpoint in found] == [False, False, True]
    pushed = endpoints.choose("reg.io", Settings(), file, insecure=False, push=True)
    assert bases(pushed) == ["https://reg.io:9/v2", "https://reg.io/v2"]


@pytest.mark.parametrize(
    ("host", "addresses", "insecure", "expected"),
    [
        ("127.0.0.1:5000", [], (), True),
        ("[::1]:5000", [], (), True),
        ("localhost", ["127.0.0.1"], (), True),
        ("reg.io", ["192.0.2.1"], (), False),
        ("reg.io", ["192.0.2.1"], ("192.0.2.0/24",), True),
        ("reg.io:5000", [], ("reg.io:5000",), True),
        ("reg.io:5000", [], ("reg.io:5001",), False),
        ("10.1.2.3", [], ("10.0.0.0/8",), True),
        ("reg.io", [], ("not/a/network",), False),
        ("docker.io", ["127.0.0.1"], (), False),
    ],
)
def test_who_may_be_asked_unverified(
    host: str, addresses: list[str], insecure: tuple[str, ...], expected: bool
) -> None:
    """Loopback, and what the administrator lists."""
    assert endpoints.is_insecure(host, addresses, insecure) is expected


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("reg.io:5000", "reg.io:5000"),
        ("https://reg.io/v1/", "reg.io"),
        ("http://127.0.0.1:5", "127.0.0.1:5"),
    ],
)
def test_a_login_names_its_server_in_many_forms(address: str, host: str) -> None:
    """They mean the same host."""
    assert endpoints.server_host(address) == host


@pytest.mark.parametrize("address", ["a b", "https://", "reg.io:port", "https://[::1"])
def test_a_server_address_must_be_one(address: str) -> None:
    """Or it is refused."""
    with pytest.raises(InvalidInput, match="unable to parse server address"):
        endpoints.server_host(address)


def test_redirects_are_followed_upwards_only() -> None:
    """Relative, absolute, to another host; not to another scheme, not out of TLS."""
    base = "https://reg.io/v2/a/blobs/x"
    assert endpoints.follow(base, "/other?sig=1") == "https://reg.io/other?sig=1"
    assert endpoints.follow(base, "https://cdn.io/x?sig=a%2Fb") == "https://cdn.io/x?sig=a%2Fb"
    assert endpoints.follow("http://reg.io/v2/", "https://reg.io/") == "https://reg.io/"
    for location in ("ftp://x/", "file:///etc/passwd", "http://reg.io/", "https://[bad"):
        with pytest.raises(EngineFailure):
            endpoints.follow(base, location)


def test_the_origin_is_scheme_host_and_port() -> None:
    """Default ports and case do not matter."""
    assert endpoints.same_origin("https://Reg.io/a", "https://reg.io:443/b")
    assert not endpoints.same_origin("https://reg.io/", "http://reg.io/")
    assert not endpoints.same_origin("https://reg.io/", "https://reg.io:444/")
    assert not endpoints.same_origin("https://reg.io/", "https://reg.io.evil/")


def test_messages_hold_no_signature_and_no_password() -> None:
    """Queries and user names are cut off."""
    assert endpoints.shown("https://u:p@cdn.io/x?X-Amz-Signature=s") == "https://cdn.io/x"


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://reg.io/v2/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://reg.io/v2/", {"https_proxy": "p:3128"}, "http://p:3128"),
        ("https://reg.io/v2/", {"HTTP_PROXY": "http://p"}, None),
        ("http://reg.io/v2/", {"HTTP_PROXY": "http://p"}, "http://p"),
        ("http://127.0.0.1:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://localhost:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://[::1]:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://reg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": "other, reg.io"}, None),
        ("http://a.reg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": "reg.io"}, None),
        ("http://reg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": ".reg.io"}, "http://p"),
        ("http://a.reg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": "*.reg.io"}, None),
        ("http://xreg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": "reg.io"}, "http://p"),
        ("http://reg.io/", {"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("http://10.1.2.3/", {"HTTP_PROXY": "http://p", "no_proxy": "10.0.0.0/8"}, None),
        ("http://reg.io:81/", {"HTTP_PROXY": "http://p", "NO_PROXY": "reg.io:80"}, "http://p"),
        ("http://reg.io:80/", {"HTTP_PROXY": "http://p", "NO_PROXY": "reg.io:80"}, None),
    ],
)
def test_proxies_are_taken_from_the_environment(
    url: str, environment: dict[str, str], expected: str | None
) -> None:
    """As Go takes them."""
    assert endpoints.proxy_for(url, environment) == expected
