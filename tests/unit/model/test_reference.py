"""References: Docker's normalisation, round trips, and dockerd's words for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.model.digest import Digest
from ketchd.model.reference import Reference, familiar_text

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("me/app:1", "docker.io/me/app:1", "me/app:1"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("foo.bar", "docker.io/library/foo.bar", "foo.bar"),
        ("docker.io/foo.bar/x", "docker.io/foo.bar/x", "docker.io/foo.bar/x"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("Host/x", "Host/x", "Host/x"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        (f"reg.io/x@{DIGEST}", f"reg.io/x@{DIGEST}", f"reg.io/x@{DIGEST}"),
        (f"x:1@{DIGEST}", f"docker.io/library/x:1@{DIGEST}", f"x:1@{DIGEST}"),
    ],
)
def test_names_are_completed_and_shortened(text: str, canonical: str, familiar: str) -> None:
    """What is left out means Docker Hub, and is left out again for users."""
    reference = Reference.parse(text)

    assert reference.canonical() == canonical
    assert reference.familiar() == familiar


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("ä", "invalid reference format"),
        ("a:" + "x" * 129, "invalid reference format"),
        ("foo/Bar", "invalid reference format: repository name (foo/Bar) must be lowercase"),
        ("Bar", "invalid reference format: repository name (library/Bar) must be lowercase"),
        ("a" * 64, f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings"),
        ("a@sha512:" + "b" * 128, "unsupported digest algorithm"),
        ("a@sha256:" + "b" * 63, "invalid checksum digest length"),
        ("a@sha256:" + "B" * 64, "invalid checksum digest format"),
        ("b" + "/x" * 130, "repository name must not be more than 255 characters"),
    ],
)
def test_what_is_no_reference_is_refused(text: str, message: str) -> None:
    """In dockerd's words."""
    with pytest.raises(InvalidInput) as caught:
        Reference.parse(text)

    assert caught.value.message == message


def test_tags_and_digests_replace_each_other() -> None:
    """A digest drops the tag; a tag the digest; the default comes only where there is neither."""
    plain, digest = Reference.parse("busybox"), Digest(DIGEST)

    assert plain.with_default_tag().familiar() == "busybox:latest"
    assert plain.with_digest(digest).with_default_tag().familiar() == f"busybox@{DIGEST}"
    assert plain.with_tag("2").with_default_tag().familiar() == "busybox:2"
    assert plain.with_tag("2").without_tag() == plain
    assert plain.with_digest(digest).with_tag("3").familiar() == "busybox:3"
    with pytest.raises(InvalidInput, match="invalid tag format"):
        plain.with_tag("not valid")


_COMPONENT = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-)[a-z0-9]{1,4}){0,2}", fullmatch=True)
_DOMAIN = st.one_of(
    st.just("docker.io"), st.from_regex(r"[a-z][a-z0-9]{0,5}\.[a-z]{2,3}(:[0-9]{1,5})?", fullmatch=True)
)


@given(
    _DOMAIN,
    st.lists(_COMPONENT, min_size=1, max_size=4),
    st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)),
    st.booleans(),
)
def test_both_forms_lead_back(domain: str, parts: list[str], tag: str | None, digested: bool) -> None:
    """The canonical and the familiar form of a reference parse to that reference."""
    text = f"{domain}/{'/'.join(parts)}" + (f":{tag}" if tag else "") + (f"@{DIGEST}" if digested else "")
    reference = Reference.parse(text)

    assert Reference.parse(reference.canonical()) == reference
    assert Reference.parse(reference.familiar()) == reference


@given(st.text(max_size=80))
def test_any_text_gives_a_reference_or_the_fault(text: str) -> None:
    """Nothing else is raised, and what parses is stable."""
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(reference.canonical()) == reference


@given(
    st.sampled_from(["docker.io", "reg.io", "localhost:5000"]),
    st.from_regex(r"(library/)?[a-z]{1,6}(\.[a-z]{1,3})?(/[a-z.]{0,3}[a-z]){0,2}", fullmatch=True),
    st.one_of(st.just("@sha256:" + "a" * 64), st.from_regex(r":[a-z0-9]{1,8}", fullmatch=True)),
)
def test_the_familiar_form_needs_no_parsing(domain: str, path: str, suffix: str) -> None:
    """The list's short cut says what the parsed reference says."""
    try:
        canonical = Reference.parse(f"{domain}/{path}{suffix}").canonical()
    except InvalidInput:
        return
    assert familiar_text(canonical) == Reference.parse(canonical).familiar()
