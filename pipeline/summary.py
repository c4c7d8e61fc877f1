"""Counts of a build, unit by unit as they are committed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tap_engine.pipeline.ledger import UnitResult
from tap_engine.schemas.rejects import BOOKKEEPING, Reject


@dataclass
class BuildSummary:
    """Counts of a build.

    Attributes:
        images, regions, crops: written in this run.
        built_before: images that were there already.
        total_images: images asked for, once each.
        rejects: rows left out in this run, by reason.
        rejected_images, rejected_regions: number of those that were left out.
        seconds: wall time of this run.
        stage_seconds: work by stage, all workers together.
        units: units of this run.
        failed: units that could not be built, with the reason; the next run tries them again.
    """

    images: int = 0
    regions: int = 0
    crops: int = 0
    built_before: int = 0
    total_images: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    rejected_images: int = 0
    rejected_regions: int = 0
    seconds: float = 0.0
    stage_seconds: Counter[str] = field(default_factory=Counter)
    units: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, result: UnitResult) -> None:
        """Count one committed unit."""
        self.units += 1
        self.images += result.images
        self.regions += result.regions
        self.crops += result.crops
        self.stage_seconds.update(result.seconds)
        self.add_rejects(result.rejects)

    def add_rejects(self, rejects: Sequence[Reject]) -> None:
        """Count committed rejects."""
        for reject in rejects:
            if reject.reason in BOOKKEEPING:
                continue
            self.rejects[reject.reason] += 1
            if reject.region_id is None:
                self.rejected_images += 1
            else:
                self.rejected_regions += 1

    @property
    def reject_share(self) -> float:
        """Larger of the shares of images and of regions left out in this run."""
        shares = [
            left / (left + kept)
            for left, kept in (
                (self.rejected_images, self.images),
                (self.rejected_regions, self.regions),
            )
            if left
        ]
        return max(shares, default=0.0)
