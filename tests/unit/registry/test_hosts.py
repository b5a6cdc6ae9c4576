"""certs.d: certificates by name, hosts.toml as containerd reads it, mirrors as dockerd checks them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.registry import hosts
from ketchd.registry.hosts import Certificates


def test_certificates_are_found_by_their_names() -> None:
    """*.crt are authorities, *.cert go with their *.key."""
    found = hosts.pick_certificates("/c/h", ["b.crt", "client.key", "client.cert", "a.crt", "README"])

    assert found == Certificates(("/c/h/a.crt", "/c/h/b.crt"), (("/c/h/client.cert", "/c/h/client.key"),))


def test_half_a_pair_is_a_fault() -> None:
    """In dockerd's words."""
    with pytest.raises(InvalidInput, match=r"missing key a\.key for client certificate a\.cert"):
        hosts.pick_certificates("/c", ["a.cert"])
    with pytest.raises(InvalidInput, match=r"missing client certificate a\.cert for key a\.key"):
        hosts.pick_certificates("/c", ["a.key"])


def test_a_whole_file() -> None:
    """Every key that matters here."""
    found = hosts.parse(
        """
        server = "https://reg.io"
        ca = "own.pem"
        [host."mirror.io:5000"]
          capabilities = ["pull"]
          ca = ["/etc/a.pem", "b.pem"]
          client = [["c.cert", "c.key"], "both.pem"]
          skip_verify = true
          [host."mirror.io:5000".header]
            x-team = ["a", "b"]
        [host."https://exact.io/custom"]
          override_path = true
        """,
        "/c/reg.io",
    )

    assert found.server is not None and found.server.url == "https://reg.io/v2"
    assert found.server.certificates.authorities == ("/c/reg.io/own.pem",)
    mirror, exact = found.mirrors
    assert mirror.url == "https://mirror.io:5000/v2" and mirror.skip_verify
    assert mirror.capabilities == {"pull"}
    assert mirror.certificates.authorities == ("/etc/a.pem", "/c/reg.io/b.pem")
    assert mirror.certificates.pairs == (
        ("/c/reg.io/c.cert", "/c/reg.io/c.key"),
        ("/c/reg.io/both.pem", ""),
    )
    assert mirror.headers == (("x-team", "a"), ("x-team", "b"))
    assert exact.url == "https://exact.io/custom" and exact.capabilities == {"pull", "resolve", "push"}


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "server = 1",
        "host = 1",
        '[host]\n"a.io" = 1',
        '[host."ftp://a.io"]',
        '[host."https://u:p@a.io"]',
        '[host."a.io"]\ncapabilities = ["fly"]',
        '[host."a.io"]\ncapabilities = "pull"',
        '[host."a.io"]\nskip_verify = "yes"',
        '[host."a.io"]\nca = 1',
        '[host."a.io"]\nclient = [["a", "b", "c"]]',
        '[host."a.io"]\nheader = {x = "a\\nb"}',
    ],
)
def test_what_is_wrong_is_said(text: str) -> None:
    """With the file's name."""
    with pytest.raises(InvalidInput, match=r"/c/hosts\.toml"):
        hosts.parse(text, "/c")


@given(st.text(max_size=200))
def test_any_file_is_read_or_refused(text: str) -> None:
    """Nothing else is raised."""
    try:
        hosts.parse(text, "/c")
    except InvalidInput:
        pass


def test_mirrors_are_checked_as_dockerd_does() -> None:
    """One slash at the end; no other scheme, no query, no password."""
    assert hosts.check_mirror("https://m.io") == "https://m.io/"
    assert hosts.check_mirror("http://m.io/a//") == "http://m.io/a/"
    with pytest.raises(InvalidInput, match='unsupported scheme "ftp"'):
        hosts.check_mirror("ftp://m.io")
    with pytest.raises(InvalidInput, match="query or fragment"):
        hosts.check_mirror("https://m.io/?x=1")
    with pytest.raises(InvalidInput, match="username/password not allowed") as caught:
        hosts.check_mirror("https://u:secret@m.io/")
    assert "secret" not in caught.value.message
