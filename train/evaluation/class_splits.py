"""Base and novel classes of open-vocabulary detection, by the data sets' own ids.

COCO: 48 base and 17 novel of its 80 classes (Bansal et al., "Zero-Shot Object Detection", 2018, as
later work fixed it); 15 are in neither. LVIS v1: the 866 frequent and common classes are base, the
337 rare ones novel; which is which stands in the annotation file.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tap_engine.schemas.errors import ConfigError

# fmt: off
COCO_BASE = frozenset((
    1, 2, 3, 4, 7, 8, 9, 15, 16, 19, 20, 23, 24, 25, 27, 31, 33, 34, 35, 38, 42, 44, 48, 50,
    51, 52, 53, 54, 55, 56, 57, 59, 60, 62, 65, 70, 72, 73, 74, 75, 78, 79, 80, 82, 84, 85,
    86, 90,
))
COCO_NOVEL = frozenset((5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87))
# fmt: on


def coco_split() -> tuple[frozenset[int], frozenset[int]]:
    """(base, novel) category ids of COCO, 1 to 90."""
    return COCO_BASE, COCO_NOVEL


def lvis_split(
    categories: Iterable[Mapping[str, Any]],
) -> tuple[frozenset[int], frozenset[int]]:
    """(base, novel) category ids of LVIS.

    Args:
        categories: of the annotation file, with "id" and "frequency": f, c or r.

    Raises:
        ConfigError: a category without a frequency: it is another data set.
    """
    groups: dict[str, set[int]] = {"f": set(), "c": set(), "r": set()}
    for category in categories:
        frequency = category.get("frequency")
        if frequency not in groups:
            raise ConfigError(
                f"category {category.get('id')} has frequency {frequency!r}, expected f, c or r: "
                "is this an annotation file of LVIS v1?"
            )
        groups[frequency].add(int(category["id"]))
    return frozenset(groups["f"] | groups["c"]), frozenset(groups["r"])
