"""`tap-data check-source`: everything that a build would leave out or note, before it starts."""

import re
from dataclasses import dataclass, field
from typing import Any

from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sources.annotated import Problem
from tap_engine.pipeline.sources.photo_folder import PhotoFolderSource
from tap_engine.pipeline.sources.records import Source
from tap_engine.schemas.rejects import BOOKKEEPING, Reject

_UNIT_IMAGES = 512


@dataclass
class CheckReport:
    """What a source holds.

    Attributes:
        images, regions: that a build would store.
        problems: by file and line; notes among them.
    """

    images: int = 0
    regions: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many of the problems leave something out."""
        return sum(not problem.note for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """For machines; `line` is null where a problem is of a whole file."""
        rows = []
        for problem in self.problems:
            file, line = _place(problem)
            rows.append(
                {
                    "file": file,
                    "line": line or None,
                    "text": problem.text,
                    "reason": str(problem.reason),
                    "photo": problem.photo or None,
                    "note": problem.note,
                }
            )
        return {"images": self.images, "regions": self.regions, "problems": rows}


def check(source: Source) -> CheckReport:
    """Read every photo and every annotation.

    Raises:
        SourceError: nothing can be read.
    """
    report = CheckReport()
    source.prepare(None, lambda text: None)
    for shard in source.shards():
        units, rejects = source.index(shard, _UNIT_IMAGES)
        report.problems += [_of_reject(reject) for reject in rejects]
        for unit in units:
            for index in range(len(unit)):
                if isinstance(source, PhotoFolderSource):
                    record, problems = source.annotate(unit.entries[index], decode_image)  # type: ignore[attr-defined]
                else:
                    record, rejects = source.load(unit, index)
                    problems = [_of_reject(reject) for reject in rejects]
                report.problems += problems
                if record is None:
                    continue
                report.images += 1
                report.regions += len(record.regions)
    report.problems.sort(key=_place)
    return report


def _of_reject(reject: Reject) -> Problem:
    note = reject.reason in BOOKKEEPING
    return Problem("", reject.detail, reject.reason, "", reject.region_id, note)


def _place(problem: Problem) -> tuple[str, int]:
    """File and line, for sorting; line 0 for a whole file."""
    match = re.match(r"(.*?):(\d+)(?=:|$)", problem.place or problem.text)
    return (match[1], int(match[2])) if match else (problem.place or problem.text[:80], 0)
