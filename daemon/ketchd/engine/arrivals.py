"""What a pull or load has brought for one name, recorded all at once when it is named: a kill leaves all of it or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ketchd.content.documents import Document
from ketchd.content.readyimages import ReadyImage
from ketchd.engine.rooms import Rooms


@dataclass(frozen=True, slots=True)
class ReadyArtifact:
    """An artifact whose blobs are here. kind: its type. size: bytes of all that it consists of."""

    document: Document
    kind: str
    size: int


@dataclass(slots=True)
class Arrivals:
    """Images of every platform, and artifacts that are to be listed. Their content is leased."""

    images: list[ReadyImage] = field(default_factory=list)
    artifacts: list[ReadyArtifact] = field(default_factory=list)

    def record(self, rooms: Rooms) -> None:
        """Make them known, in a transaction of the caller's that names them too. Raises NotFound (a layer is missing)."""
        for image in self.images:
            rooms.images.record(image)
        for artifact in self.artifacts:
            rooms.documents.keep(artifact.document)
            rooms.images.register_artifact(artifact.document.digest, artifact.kind, artifact.size)
        self.images.clear()
        self.artifacts.clear()
