"""`images --tree`: an image, the names it has, and the platforms that are here. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ketch.quantities import human_size
from ketch.views import columns, short_id


def tree(found: Iterable[dict[str, Any]]) -> str:
    """Rows: names of the image, then one for every platform of an index."""
    rows = [["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "IN USE"]]
    for one in found:
        names = one.get("RepoTags") or ["<untagged>"]
        used = int(one.get("Containers", -1)) > 0
        manifests = [item for item in one.get("Manifests") or () if item.get("Kind") == "image"]
        content = sum(int((item.get("Size") or {}).get("Content") or 0) for item in manifests)
        size = human_size(float(one.get("Size") or 0), 3)
        rows.append(
            [
                names[0],
                short_id(one["Id"]),
                size,
                human_size(content, 3) if content else "",
                "✔" if used else "",
            ]
        )
        rows += [[f"{name}", "", "", "", ""] for name in names[1:]]
        for at, item in enumerate(manifests):
            platform = (item.get("ImageData") or {}).get("Platform") or {}
            shown = "/".join(
                str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key)
            )
            sizes = item.get("Size") or {}
            branch = "└─" if at == len(manifests) - 1 else "├─"
            rows.append(
                [
                    f"{branch} {shown}",
                    short_id(str(item.get("ID", ""))),
                    human_size(float(sizes.get("Total") or 0), 3),
                    human_size(float(sizes.get("Content") or 0), 3),
                    "✔" if (item.get("ImageData") or {}).get("Containers") else "",
                ]
            )
    return columns(rows)
