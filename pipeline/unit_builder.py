"""Builds one unit of work: reads, decodes, crops, embeds, projects, writes fragments.

Crops never leave the process that made them. At 150 kB per crop, handing 1.1 billion of them from
task to task would move 165 TB through Ray's object store; here threads prepare crops while the
teacher works on the batch before (docs/decisions/0002-one-actor-per-teacher.md). Knows no Ray.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tap_engine.pipeline.concepts import ConceptPacker, fixed_size_lists
from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.pipeline.ledger import UnitResult
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Source, Unit
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import Teacher
from tap_engine.pipeline.unit_rows import StageClock, UnitRows
from tap_engine.schemas.errors import SchemaError, StoreError
from tap_engine.schemas.rejects import Reason, Reject, Stage
from tap_engine.schemas.store_settings import CropConfig
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, images_schema, regions_schema

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(slots=True)
class _Decoded:
    """An image on its way: undecodable ones come with an empty record and rejects."""

    record: ImageRecord | None
    pixels: npt.NDArray[np.uint8] | None
    rejects: list[Reject]


@dataclass(slots=True, eq=False)
class _Embedded:
    """An image whose regions wait for their embeddings, which come in order."""

    record: ImageRecord
    parts: list[Tensor] = field(default_factory=list)
    missing: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Crops of one forward pass, written in place by the threads, and whose they are.

    Its memory is used again and again: new pages cost as much as the crops themselves.
    """

    crops: npt.NDArray[np.uint8]
    owners: list[tuple[_Embedded, int]] = field(default_factory=list)
    filled: int = 0


_Step = tuple[_Embedded | None, _Batch | None]


def open_builder(
    store: Store | None, source: Source, config: BuildConfig, threads: int
) -> "UnitBuilder":
    """A builder with its teacher loaded, which is proved to be the one that made the store.

    Args:
        store: the store that fragments go to; None for an estimate, which builds nothing.
        source: the source of the units.
        config: the settings of the build.
        threads: number of threads that read, decode and crop, and of torch on a CPU.

    Raises:
        ConfigError: the teacher cannot be loaded.
        SchemaError: the store was made with other settings.
    """
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    teacher = Teacher(config.teacher) if config.teacher else None
    crop = config.crop.for_teacher(teacher.info) if teacher else None
    packer = None
    if store is not None:
        # The driver has compared all settings (open_store.py); what only a worker can tell is
        # whether its teacher is the same. It need not have the vocabulary's file.
        stored = store.settings()
        own = replace(stored, teacher=teacher.info if teacher else None)
        own.provenance().require_same(store.provenance(REGIONS), f"the store {store.uri}")
        if teacher and own.top_k:
            column = store.open(CONCEPTS).to_table(columns=["target_embedding"]).column(0)
            target = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
            packer = ConceptPacker.of(target, teacher.info.logit_scale, own.top_k)
    return UnitBuilder(source, store, teacher, packer, crop, threads)


class UnitBuilder:
    """Builds units with one loaded teacher; call it with one unit after the other.

    Args:
        source: the source of the units.
        store: the store that fragments go to; None for a builder that only estimates.
        teacher: loaded; None writes regions without embeddings.
        packer: concept columns; None leaves them out.
        crop: the rule by which regions become crops; needed with a teacher only.
        threads: the number of threads that read, decode and crop.
    """

    def __init__(
        self,
        source: Source,
        store: Store | None,
        teacher: Teacher | None,
        packer: ConceptPacker | None,
        crop: CropConfig | None,
        threads: int,
    ) -> None:
        self._source = source
        self._store = store
        self.teacher = teacher
        self._packer = packer.to(teacher.device) if packer and teacher else None
        self.crop = crop
        self._threads = threads
        self._free: list[_Batch] = []
        self._regions_schema = regions_schema(
            teacher.info.embed_dim if teacher else 0,
            packer.top_k if packer else 0,
            captioned=source.captioned,
            labelled=source.labelled,
        )

    def __call__(self, unit: Unit) -> UnitResult:
        """Write a unit's rows as uncommitted fragments and say what came of it.

        Raises:
            StoreError: the store cannot be written.
            SourceError: the shard is not there any more.
        """
        if self._store is None:
            raise StoreError("this builder was opened without a store, so it cannot write")
        result = UnitResult(unit.unit_id)
        clock = StageClock(result.seconds)
        rows = UnitRows(
            self._store.writer(IMAGES, images_schema(captioned=self._source.captioned)),
            self._store.writer(REGIONS, self._regions_schema),
            unit.unit_id,
            self._source,
            clock,
        )
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                for image in self._embed(pool, unit, result, clock):
                    self._emit(image, rows, result, clock)
            unit.require_unchanged()
            with clock("write"):
                result.image_fragments, result.region_fragments = rows.close()
        except BaseException:
            rows.abort()
            raise
        if not result.images:
            detail = f"none of {len(unit)} images was usable"
            result.rejects.append(Reject(stage=Stage.UNIT, reason=Reason.UNIT_EMPTY, detail=detail))
        return result

    def _embed(
        self, pool: ThreadPoolExecutor, unit: Unit, result: UnitResult, clock: StageClock
    ) -> Iterator[_Embedded]:
        """Images in order, each with the embeddings of all its regions.

        Batches cross image borders, so that the teacher always sees full ones.
        """
        waiting: deque[_Embedded] = deque()
        for image, batch in self._cropped(pool, unit, result, clock):
            if image and not (waiting and waiting[-1] is image):
                waiting.append(image)
            if batch:
                self._encode(batch, result, clock)
            while waiting and not waiting[0].missing:
                yield waiting.popleft()

    def _encode(self, batch: _Batch, result: UnitResult, clock: StageClock) -> None:
        assert self.teacher is not None
        with clock("teacher"):
            embeddings = self.teacher.encode_crops(batch.crops[: batch.filled])
        result.crops += batch.filled
        start = 0
        for image, count in batch.owners:
            image.parts.append(embeddings[start : start + count])
            image.missing -= count
            start += count
        batch.owners.clear()
        batch.filled = 0
        self._free.append(batch)

    def _cropped(
        self, pool: ThreadPoolExecutor, unit: Unit, result: UnitResult, clock: StageClock
    ) -> Iterator[_Step]:
        """In order, (image some of whose regions are cropped now, batch that is full now)."""

        def tasks() -> Iterator[Callable[[], _Step]]:
            batch = self._empty_batch()
            ahead = _ordered(pool, range(len(unit)), self._threads + 1, self._decode(unit, clock))
            for decoded in ahead:
                result.rejects += decoded.rejects
                if decoded.record is None or decoded.pixels is None:
                    continue
                regions = decoded.record.regions
                image = _Embedded(decoded.record, missing=len(regions) if self.teacher else 0)
                if not image.missing:
                    yield lambda image=image: (image, None)  # type: ignore[misc]
                    continue
                while regions:
                    start, room = batch.filled, len(batch.crops) - batch.filled
                    part, regions = regions[:room], regions[room:]
                    batch.filled += len(part)
                    batch.owners.append((image, len(part)))
                    out = batch.crops[start : batch.filled]
                    full = batch if batch.filled == len(batch.crops) else None
                    yield self._crop_task(image, decoded.pixels, part, out, full, clock)
                    if full:
                        batch = self._empty_batch()
            if batch.filled:
                yield lambda: (None, batch)
            else:
                self._free.append(batch)

        yield from _ordered(pool, tasks(), self._threads + 1, lambda task: task())

    def _empty_batch(self) -> _Batch:
        if self._free:
            return self._free.pop()
        size = self.crop.size_px if self.crop else 0
        count = self.teacher.batch_size if self.teacher else 0
        return _Batch(np.empty((count, size, size, 3), np.uint8))

    def _decode(self, unit: Unit, clock: StageClock) -> Callable[[int], _Decoded]:
        def run(index: int) -> _Decoded:
            with clock("read"):
                record, rejects = self._source.load(unit, index)
            if record is None:
                return _Decoded(None, None, rejects)

            def reject(reason: Reason, detail: str) -> _Decoded:
                row = Reject(
                    stage=Stage.DECODE, reason=reason, detail=detail, image_id=record.image_id
                )
                return _Decoded(None, None, [row])

            try:
                with clock("decode"):
                    pixels = decode_image(record.jpeg)
            except SchemaError as error:
                return reject(Reason.IMAGE_UNREADABLE, f"{record.file_name}: {error}")
            if pixels.shape[:2] != (record.height, record.width):
                found = f"{pixels.shape[1]} x {pixels.shape[0]}"
                detail = f"{record.file_name}: {record.width} x {record.height} stated, is {found}"
                return reject(Reason.IMAGE_SIZE_MISMATCH, detail)
            return _Decoded(record, pixels, rejects)

        return run

    def _crop_task(
        self,
        image: _Embedded,
        pixels: npt.NDArray[np.uint8],
        regions: list[RegionRecord],
        out: npt.NDArray[np.uint8],
        full: _Batch | None,
        clock: StageClock,
    ) -> Callable[[], _Step]:
        def run() -> _Step:
            assert self.crop is not None
            with clock("crop"):
                crops_of(regions, pixels, self.crop, out)
            return image, full

        return run

    def _emit(
        self, image: _Embedded, rows: UnitRows, result: UnitResult, clock: StageClock
    ) -> None:
        record = image.record
        derived: list[pa.Array] = []
        regions = record.regions
        if self.teacher and regions:
            with clock("concepts"):
                embeddings = torch.cat(image.parts)
                finite = torch.isfinite(embeddings).all(-1) & (embeddings.abs().amax(-1) > 0)
                keep = finite.cpu().numpy()
                if not keep.all():
                    embeddings = embeddings[finite]
                    result.rejects += [
                        _not_finite(record, region)
                        for region, good in zip(regions, keep, strict=True)
                        if not good
                    ]
                    regions = [r for r, good in zip(regions, keep, strict=True) if good]
                stored = embeddings.half()
                derived.append(fixed_size_lists(stored.cpu().numpy(), pa.float16()))
                if self._packer:
                    derived += self._packer.pack(stored)
        rows.add(record, regions, derived)
        result.images += 1
        result.regions += len(regions)


def _ordered(
    pool: ThreadPoolExecutor, items: Iterable[In], depth: int, work: Callable[[In], Out]
) -> Iterator[Out]:
    """`work` of each item, in order, at most `depth` of them started and not yet taken."""
    started: deque[Future[Out]] = deque()
    try:
        for item in items:
            started.append(pool.submit(work, item))
            if len(started) > depth:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        for future in started:
            future.cancel()


def crops_of(
    regions: Sequence[RegionRecord],
    pixels: npt.NDArray[np.uint8],
    crop: CropConfig,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Crops [N, S, S, 3] uint8 of an image's regions; see `crop_regions`."""
    boxes = np.array([_outer_box(region.bbox_xywh) for region in regions], np.int64)
    return crop_regions(
        pixels, [region.runs for region in regions], boxes.reshape(-1, 4), crop, out
    )


def _outer_box(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Whole pixels that cover a box."""
    left, top = int(np.floor(box[0])), int(np.floor(box[1]))
    right, bottom = int(np.ceil(box[0] + box[2])), int(np.ceil(box[1] + box[3]))
    return left, top, right - left, bottom - top


def _not_finite(record: ImageRecord, region: RegionRecord) -> Reject:
    return Reject(
        stage=Stage.TEACHER,
        reason=Reason.EMBEDDING_NOT_FINITE,
        detail=f"{record.file_name}: the teacher's output for this crop is not finite",
        image_id=record.image_id,
        region_id=region.region_id,
    )
