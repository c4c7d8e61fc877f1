"""Stamps of scores: what makes two comparable, and the refusal to mix unlike ones.

"Visual Genome captioning" has been three different tests for years (232,935 regions, one region an
image, raw or cleaned text) and their numbers stand in one table in print. A score here carries what
was measured on what; side by side stand only scores whose stamps agree.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from tap_engine.schemas.errors import SchemaError

GT = "gt"
"""Box source: the boxes of the ground truth, not of a detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The identity of a test. None: not known, as for most published rows.

    Attributes:
        protocol: name of the scoring rules, such as `lvis-segm`.
        data: name of the data set, where somebody states it, such as `refcocog`.
        images: images of the test.
        regions: annotated regions of the test.
        references: reference texts of the test; one per region, or more.
        boxes: box prompts given to the model.
        box_source: origin of those boxes: `gt`, or the detector.
        text_processing: treatment of captions before scoring.
        split: fingerprint of the ground truth (`GroundTruth.fingerprint`).
    """

    protocol: str
    data: str | None = None
    images: int | None = None
    regions: int | None = None
    references: int | None = None
    boxes: int | None = None
    box_source: str | None = None
    text_processing: str | None = None
    split: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The known fields as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Stamp":
        """Reads what `to_json` wrote.

        Raises:
            SchemaError: not a stamp.
        """
        try:
            return cls(**content)
        except TypeError as error:
            raise SchemaError(f"not a score's stamp: {error}") from error

    def unlike(self, other: "Stamp") -> list[str]:
        """`name: ours against theirs` for what both state and state differently."""
        return [
            f"{name}: {mine!r} against {theirs!r}"
            for name, mine, theirs in self._pairs(other)
            if mine is not None and theirs is not None and mine != theirs
        ]

    def unverified(self, other: "Stamp") -> list[str]:
        """Names of what one states and the other does not."""
        return [
            name for name, mine, theirs in self._pairs(other) if (mine is None) != (theirs is None)
        ]

    def same_test(self, other: "Stamp") -> bool:
        """Nothing speaks against comparing, and at least one fact about the data speaks for it."""
        facts = {"data", "images", "regions", "boxes", "split"}
        agreed = any(
            name in facts and mine is not None and mine == theirs
            for name, mine, theirs in self._pairs(other)
        )
        return agreed and not self.unlike(other)

    def require_like(self, other: "Stamp", ours: str, theirs: str) -> None:
        """Refuse to set two scores side by side that were measured on different things.

        Raises:
            SchemaError: names each difference.
        """
        if different := self.unlike(other):
            raise SchemaError(
                f"{ours} and {theirs} cannot be compared: {'; '.join(different)}. Score both on "
                "the same ground truth with the same protocol, or report them apart"
            )

    def _pairs(self, other: "Stamp") -> list[tuple[str, Any, Any]]:
        return [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
