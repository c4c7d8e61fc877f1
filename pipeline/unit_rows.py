"""Turns a unit's images into Arrow batches for its fragments. Knows no Ray."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from tap_engine.pipeline.concepts import fixed_size_lists
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Source
from tap_engine.pipeline.store import FragmentWriter, blob_column
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import SOURCE_TYPE

_ROWS_A_BATCH = 1024
_IMAGES_A_BATCH = 8


class StageClock:
    """Seconds by stage; of several threads, so they may add up to more than the wall's."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the seconds of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._seconds[stage] = self._seconds.get(stage, 0.0) + spent


class UnitRows:
    """Collects finished images and writes them in batches.

    Args:
        images: rows of the table `images`, in `images_schema`.
        regions: rows of the table `regions`, in `regions_schema`.
        unit_id: the unit the rows are of.
        source: the name of their source.
        clock: takes the seconds of writing.
    """

    def __init__(
        self,
        images: FragmentWriter,
        regions: FragmentWriter,
        unit_id: int,
        source: Source,
        clock: StageClock,
    ) -> None:
        self._images, self._regions = images, regions
        self._unit_id, self._source = unit_id, source
        self._clock = clock
        self._pending_images: list[tuple[ImageRecord, int]] = []
        self._pending_regions: list[list[pa.Array]] = []

    def add(
        self, record: ImageRecord, regions: list[RegionRecord], derived: list[pa.Array]
    ) -> None:
        """One image and those of its regions that stay.

        Args:
            record: the image.
            regions: regions in the order of their ordinals.
            derived: the teacher's columns, a row per region; may be empty.
        """
        self._pending_images.append((record, len(regions)))
        if regions:
            self._pending_regions.append(self._region_columns(record, regions, derived))
        if len(self._pending_images) >= _IMAGES_A_BATCH:
            self._flush_images()
        if sum(len(columns[0]) for columns in self._pending_regions) >= _ROWS_A_BATCH:
            self._flush_regions()

    def close(self) -> tuple[list[FragmentMetadata], list[FragmentMetadata]]:
        """Writes what is left; fragments of images and of regions, as the commit takes them."""
        self._flush_images()
        self._flush_regions()
        return self._images.close(), self._regions.close()

    def abort(self) -> None:
        """Gives up: files that were written become orphans, which the next build removes."""
        self._images.abort()
        self._regions.abort()

    def _region_columns(
        self, record: ImageRecord, regions: list[RegionRecord], derived: list[pa.Array]
    ) -> list[pa.Array]:
        count = len(regions)
        ordinals = np.array([region.ordinal for region in regions], np.int64)
        boxes = np.array([region.bbox_xywh for region in regions], np.float32)
        ids = np.full(count, record.image_id, np.int64)
        columns = [
            pa.array(region_key(ids, ordinals)),
            pa.array(ids),
            pa.array([region.region_id for region in regions], pa.int64()),
            self._source_column(count),
            pa.array(np.full(count, self._unit_id, np.int64)),
            fixed_size_lists(boxes, pa.float32()),
            pa.array([region.area for region in regions], pa.int32()),
            pa.array([region.rle for region in regions], pa.binary()),
            pa.array([region.predicted_iou for region in regions], pa.float32()),
            pa.array([region.stability_score for region in regions], pa.float32()),
            *derived,
            pa.array([region.caption for region in regions], pa.string()),
        ]
        if self._source.labelled:
            columns.append(pa.array([region.label for region in regions], pa.string()))
        if self._source.captioned:
            columns.append(pa.array([region.caption_raw for region in regions], pa.string()))
            columns.append(pa.array([record.split] * count, pa.string()))
        return columns

    def _flush_images(self) -> None:
        if not (pending := self._pending_images):
            return
        records = [record for record, _ in pending]
        columns = [
            pa.array([record.image_id for record in records], pa.int64()),
            self._source_column(len(records)),
            pa.array(np.full(len(records), self._unit_id, np.int64)),
            pa.array([record.file_name for record in records], pa.string()),
            pa.array([record.width for record in records], pa.int32()),
            pa.array([record.height for record in records], pa.int32()),
            blob_column([record.jpeg for record in records]),
            pa.array([count for _, count in pending], pa.int32()),
        ]
        if self._source.captioned:
            columns.append(pa.array([record.split for record in records], pa.string()))
        self._pending_images = []
        with self._clock("write"):
            self._images.write(columns)

    def _flush_regions(self) -> None:
        if not (pending := self._pending_regions):
            return
        self._pending_regions = []
        columns = [pa.concat_arrays(parts) for parts in zip(*pending, strict=True)]
        with self._clock("write"):
            self._regions.write(columns)

    def _source_column(self, count: int) -> pa.Array:
        indices = pa.array(np.zeros(count, np.int8))
        names = pa.array([self._source.name])
        return pa.DictionaryArray.from_arrays(indices, names).cast(SOURCE_TYPE)
