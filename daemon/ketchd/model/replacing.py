"""An index in which some of what it points to has become something else. Pure.

The rest of it stays: the order, the platforms, annotations, fields that nobody here knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index

_ABOUT = "vnd.docker.reference.digest"
_INDENT = re.compile(rb"\{\r?\n( +)\"")
_OF_THE_CONTENT = ("data", "urls")  # the old content itself, and where that can be had


def with_replaced(index: Index, changes: Mapping[Digest, Descriptor]) -> bytes:
    """The index' bytes with the entries for `changes` replaced; its own bytes, each of them, when it has none of those.

    changes: by the digest that is in the index, what is to be there: media type, digest and size. What is said to be about a
    changed entry (an attestation) is about what replaces it. Written as the old one, indented or not; the same bytes for the same
    arguments always. Raises InvalidInput: it has numbers that JSON cannot write.
    """
    document = json.loads(index.content)
    named = {str(digest): replacement for digest, replacement in changes.items()}
    is_changed = False
    for entry in document["manifests"]:
        if isinstance(entry, dict):
            is_changed = _replace(entry, named) or is_changed
    if not is_changed:
        return index.content
    indented = _INDENT.match(index.content)
    try:
        return json.dumps(
            document,
            indent=len(indented[1]) if indented else None,
            separators=(",", ": " if indented else ":"),
            allow_nan=False,
        ).encode()
    except ValueError as error:
        raise InvalidInput("manifest list has numbers beyond JSON's") from error


def _replace(entry: dict[str, Any], named: Mapping[str, Descriptor]) -> bool:
    replacement = named.get(str(entry.get("digest")))
    if replacement is not None:
        entry |= replacement.to_json()
        for key in _OF_THE_CONTENT:
            entry.pop(key, None)
    annotations = entry.get("annotations")
    if isinstance(annotations, dict) and (about := named.get(str(annotations.get(_ABOUT)))) is not None:
        annotations[_ABOUT] = str(about.digest)
        return True
    return replacement is not None
