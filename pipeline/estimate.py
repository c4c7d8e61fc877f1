"""`--dry-run`: what a build would read, write and cost, from an index and a measured sample.

Nothing is written and Ray is not started; the sample is built in this process.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tap_engine.pipeline.concepts import parse_top_k
from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.layout import WorkerLayout, choose_layout
from tap_engine.pipeline.planning import make_plan
from tap_engine.pipeline.sources.records import ImageRecord, Shard, Source, Unit
from tap_engine.pipeline.teacher import pending_download
from tap_engine.pipeline.unit_builder import UnitBuilder, crops_of, open_builder
from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError
from tap_engine.schemas.progress import Say
from tap_engine.schemas.store_settings import CropConfig
from tap_engine.schemas.vocabulary import load_vocabulary

_INDEXED_SHARDS = 16
_SAMPLED_IMAGES = 32
_TEACHER_S = 10.0
"""How long the teacher is timed, after one batch to warm up."""

_EMBEDDING_WITHOUT_TEACHER = 1024
"""Width and input size assumed where the teacher's weights are not here: EVA-CLIP-E's."""

_FIXED_REGION_BYTES = 8 + 8 + 8 + 1 + 8 + 16 + 4 + 4 + 4
"""Columns of `regions` but for mask, embedding and concepts."""


@dataclass
class Estimate:
    """The numbers of a dry run.

    Attributes:
        shards, shard_bytes: number and size of all shards.
        images: usable ones; exact when every shard was indexed.
        exact: whether `images` was counted rather than extrapolated from some shards' bytes.
        regions: images times the sampled regions per image.
        sampled_images: number of images that were read.
        jpeg_bytes, rle_bytes: mean bytes per image and per region of the sample.
        store_bytes: what the store will take.
        prepare_s: core-seconds to read, decode and crop one image; measured here.
        crops_per_s: speed of the teacher on this machine; None if it could not be loaded.
        layout: the workers that this machine would start.
        warnings: what will not fit, or could not be measured.
    """

    shards: int = 0
    shard_bytes: int = 0
    images: int = 0
    exact: bool = True
    regions: int = 0
    sampled_images: int = 0
    jpeg_bytes: float = 0.0
    rle_bytes: float = 0.0
    store_bytes: int = 0
    prepare_s: float = 0.0
    crops_per_s: float | None = None
    device: str = ""
    layout: WorkerLayout | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def core_hours(self) -> float:
        """To read, decode and crop everything."""
        return self.images * self.prepare_s / 3600

    @property
    def teacher_hours(self) -> float | None:
        """Hours that one device such as this machine's takes to embed everything."""
        return self.regions / self.crops_per_s / 3600 if self.crops_per_s else None


def estimate(source: Source, config: BuildConfig, say: Say) -> Estimate:
    """Index some shards, read a sample, time crops and teacher.

    Raises:
        SourceError: nothing to build from.
        ConfigError: settings that cannot work.
    """
    if config.teacher is None:
        raise ConfigError("an estimate is of a build with a teacher; this one has none")
    source.prepare(None, say)
    shards = source.shards()
    if not shards:
        raise SourceError("no shards found")
    found = Estimate(shards=len(shards), shard_bytes=sum(shard.size for shard in shards))
    units = _index(source, shards, config, found, say)
    say(f"reading a sample of {_SAMPLED_IMAGES} images")
    records = _sample(source, units, found)
    if not records:
        raise SourceError("no usable image in the sample; run without --dry-run to see the rejects")
    builder = _open_builder(source, config, found, say)
    if builder:
        _time_teacher(builder, found)
    crop = builder.crop if builder else None
    _time_crops(records, crop or CropConfig(mean_rgb=(0.5, 0.5, 0.5)), found)
    teacher = builder.teacher if builder else None
    dim = teacher.info.embed_dim if teacher else _EMBEDDING_WITHOUT_TEACHER
    top_k = parse_top_k(config.concepts, len(load_vocabulary(config.vocabulary)))
    region = _FIXED_REGION_BYTES + found.rle_bytes + 2 * dim + (4 * top_k + 4 if top_k else 0)
    found.store_bytes = int(found.images * (found.jpeg_bytes + 64) + found.regions * region)
    _warn(config, found)
    return found


def _index(
    source: Source,
    shards: Sequence[Shard],
    config: BuildConfig,
    found: Estimate,
    say: Say,
) -> list[Unit]:
    # Spread over the list: the first shards of a set are not like the last.
    some = [
        shards[i] for i in sorted({*np.linspace(0, len(shards) - 1, _INDEXED_SHARDS, dtype=int)})
    ]
    say(f"indexing {len(some)} of {len(shards)} shards")
    plan = make_plan(
        source, some, unit_images=512, limit=config.limit, done_images=np.empty(0, np.int64)
    )
    found.images = plan.total_images
    if len(some) < len(shards) and not (config.limit and plan.total_images >= config.limit):
        found.exact = False
        scaled = plan.total_images * found.shard_bytes / max(sum(s.size for s in some), 1)
        found.images = min(round(scaled), config.limit or round(scaled))
    return [unit for unit in plan.units if len(unit)]


def _sample(source: Source, units: Sequence[Unit], found: Estimate) -> list[ImageRecord]:
    places = [(unit, index) for unit in units for index in range(len(unit))]
    picks = sorted({*np.linspace(0, len(places) - 1, _SAMPLED_IMAGES, dtype=int)}) if places else []
    if picks:
        source.load(*places[picks[0]])  # compiles the kernels
    start = time.perf_counter()
    loaded = [source.load(*places[pick])[0] for pick in picks]
    found.prepare_s += (time.perf_counter() - start) / max(len(picks), 1)
    records = [record for record in loaded if record is not None]
    found.sampled_images = len(picks)
    if records:
        regions = [region for record in records for region in record.regions]
        found.regions = round(found.images * len(regions) / len(records))
        found.jpeg_bytes = float(np.mean([len(record.jpeg) for record in records]))
        sizes = [len(region.rle) for region in regions if region.rle]
        found.rle_bytes = float(np.mean(sizes)) if sizes else 0.0
    return records


def _time_crops(records: Sequence[ImageRecord], crop: CropConfig, found: Estimate) -> None:
    def one(record: ImageRecord) -> None:
        try:
            crops_of(record.regions, decode_image(record.jpeg), crop)
        except SchemaError:
            return  # the build will reject it

    one(records[0])  # compiles the kernels
    start = time.perf_counter()
    for record in records:
        one(record)
    found.prepare_s += (time.perf_counter() - start) / len(records)


def _open_builder(
    source: Source, config: BuildConfig, found: Estimate, say: Say
) -> UnitBuilder | None:
    assert config.teacher is not None
    resources = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count(), "memory": 1 << 62}
    found.layout = choose_layout(config, resources)
    if pending := pending_download(config.teacher):
        found.warnings.append(f"the teacher was not timed: it needs {pending}")
        return None
    say(f"loading and timing teacher {config.teacher.name}")
    return open_builder(None, source, config, found.layout.cpus)


def _time_teacher(builder: UnitBuilder, found: Estimate) -> None:
    teacher = builder.teacher
    assert teacher is not None
    found.device = str(teacher.device)
    side = teacher.info.image_px
    batch = np.random.default_rng(0).integers(0, 255, (teacher.batch_size, side, side, 3), np.uint8)
    teacher.encode_crops(batch[:1]).cpu()
    start = time.perf_counter()
    crops, size = 0, 1
    while (spent := time.perf_counter() - start) < _TEACHER_S:
        teacher.encode_crops(batch[:size]).cpu()
        crops += size
        size = min(2 * size, teacher.batch_size)  # a slow teacher answers in seconds, too
    found.crops_per_s = crops / spent


def _warn(config: BuildConfig, found: Estimate) -> None:
    if "://" not in config.out:
        place = config.out
        while not os.path.exists(place):
            place = os.path.dirname(place) or "."
        free = shutil.disk_usage(place).free
        if found.store_bytes > free:
            found.warnings.append(
                f"the store will take {gigabytes(found.store_bytes)}, {place} has "
                f"{gigabytes(free)} free"
            )


def gigabytes(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
