"""What ketchd listens on, from what `-H` and `hosts` say. The answers are those of dockerd 20.10's own function."""

from __future__ import annotations

import pytest

from ketch_wire.defaults import DEFAULT_SOCKET
from ketch_wire.faults import InvalidInput
from ketchd.listening import addresses, open_doors

UNIX, TLS = f"unix://{DEFAULT_SOCKET}", "tcp://localhost:2376"


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:2375"), ("127.0.0.1:1", "tcp://127.0.0.1:1"), (":2375", "tcp://localhost:2375"),
        (":", "tcp://localhost:2375"), ("host", "tcp://host:2375"), ("host:", "tcp://host:2375"), ("a_b:1", "tcp://a_b:1"),
        ("[::1]:", "tcp://[::1]:2375"), ("[::1]:5", "tcp://[::1]:5"), ("::1", "tcp://[::1]:2375"), ("::", "tcp://[::]:2375"),
        ("::1:5", "tcp://[::1:5]:2375"), ("tcp://", "tcp://localhost:2375"), ("tcp://tcp://1.2.3.4:5", "tcp://1.2.3.4:5"),
        (" tcp://h:0 ", "tcp://h:0"), ("unix://", UNIX), ("unix:///x", "unix:///x"), ("unix://unix:///x", "unix:///x"), ("unix://x", "unix://x"),
        ("fd://", "fd://"), ("fd://*", "fd://"), ("fd://3", "fd://3"),
        ("[::1]", "tcp://[::1]:2375"),  # as dockerd 23; 20.10 refuses it
    ],
)  # fmt: skip
def test_what_is_left_out_is_filled_in(typed: str, place: str) -> None:
    assert addresses([typed], tls=False) == addresses([typed], tls=True) == [place]
    assert addresses([place], tls=False) == [place]


@pytest.mark.parametrize(
    "typed",
    ["ftp://x", "UNIX:///x", "://x", "h:x", "a:b:c", "a b", "h:+5", "h:٣", "h:99999", "[x", "unix:///a://b", "tcp://a://b",
     "/run/x.sock", "h:5/p", "fd://x", "fd://2", "npipe://x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInput, match=r'invalid argument ".*" for "-H, --host" flag: invalid '):
        addresses([typed], tls=False)


@pytest.mark.parametrize(("tls", "default"), [(False, UNIX), (True, TLS)])
def test_nothing_is_the_default(tls: bool, default: str) -> None:
    """With TLS that is no unix socket."""
    assert addresses([], tls=tls) == addresses([""], tls=tls) == [default]


def test_the_same_place_is_listened_on_once() -> None:
    assert addresses([":1", "unix:///x", "localhost:1", "unix:///x"], tls=False) == [
        "tcp://localhost:1",
        "unix:///x",
    ]


def test_open_doors_are_warned_of() -> None:
    """In dockerd's words; a unix socket is as closed as its mode."""
    hosts = ["unix:///x", "tcp://0.0.0.0:2375", "fd://"]
    assert (
        open_doors(hosts, tls=True, verified=True) == open_doors(hosts[:1], tls=False, verified=False) == []
    )
    plain, encrypted = (open_doors(hosts, tls=tls, verified=False) for tls in (False, True))
    assert [one.partition("\n")[0] for one in plain + encrypted] == [
        "WARNING: API is accessible on http://0.0.0.0:2375 without encryption.",
        "WARNING: API is accessible on https://0.0.0.0:2375 without TLS client verification.",
    ]
