"""Pull one image: what `pull` does and `run` does for a missing image. Acting."""

from __future__ import annotations

from typing import TextIO

from ketch.credentials import encode_header
from ketch.progressview import show
from ketch.references import ImageName
from ketch.session import Session


def pull_image(
    session: Session,
    name: ImageName,
    out: TextIO | None,
    *,
    platform: str = "",
    tag: str | None = None,
    everything: bool = False,
    referrers: bool = False,
) -> None:
    """Pull `name`, with the credentials of its registry; progress on `out`. `tag`: empty for all tags. everything: all platforms.
    referrers: what refers to the image, too.

    Raises CommandFailed.
    """
    headers = {"X-Registry-Auth": encode_header(session.auth_for(name.domain))}
    query = {
        "fromImage": name.repository,
        "tag": name.tag_or_digest if tag is None else tag,
        "platform": platform,
    }
    if everything:
        query["allPlatforms"] = "1"
    if referrers:
        query["referrers"] = "1"
    answer = session.engine.request("POST", "/images/create", query, headers=headers)
    show(session.engine.messages(answer), out)
