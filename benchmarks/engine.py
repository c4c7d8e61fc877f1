"""What Ray costs, and how much memory a build takes, on SA-1B-like shards made here.

    python -m benchmarks.engine speed [--images 768] [--repeats 5]
    python -m benchmarks.engine memory [--gigabytes 10] [--limit 384]

An image is 1500 x 2250 px, about 0.9 MB, with 100 masks of which 70 are under 100^2 px
(benchmarks/crops.py draws them); a dozen different ones are repeated under different numbers.

`speed` builds one tar twice in turn: by `build` on a local Ray with its default layout, and by a
hand-written loop over `multiprocessing` with as many processes, no ledger, lease or retries. Both
read members of the tar by offset, check the masks, decode, crop, "embed" and write Lance fragments
of units of 32 images, and commit at the end. The teacher is a stub of 1,024 numbers per crop whose
forward does nothing, so that all that is left is the engine. It gets into the engine's workers by
`StubActor` below, which knows the engine's inside: the engine itself has no door for it.
Steady: images per second from when each worker has delivered a unit until the last unit. Whole:
from a started Ray, or from nothing for the loop, until the rows are committed.

`memory` runs `tap-data build-semantic` with its default settings, but for the teacher (a tiny real
open_clip model of 224 px input), over one large tar; the whole index is read, `--limit` images are
built. The peak is VmHWM of every process of the build, the kernel's own high-water mark.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from benchmarks.crops import SIZE_HW, make_jpeg, make_masks
from tap_engine.jobs.cluster import ray_session
from tap_engine.pipeline import build as engine
from tap_engine.pipeline import unit_builder
from tap_engine.pipeline.concepts import fixed_size_lists
from tap_engine.pipeline.config import BuildConfig, CropOptions
from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.pipeline.key_index import index_keys
from tap_engine.pipeline.ledger import UnitResult
from tap_engine.pipeline.sources.records import Unit
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.store import Store, blob_column, stored_schema
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.schemas import rle
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.store_settings import CropConfig
from tap_engine.schemas.tables import (
    IMAGES,
    REGIONS,
    SOURCE_TYPE,
    images_schema,
    regions_schema,
)

WORKERS, UNIT_IMAGES, WIDTH = 2, 32, 1024
DISTINCT = 12


def make_pairs() -> list[tuple[bytes, list[dict[str, Any]]]]:
    """A dozen images with their annotations."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(DISTINCT):
        annotations = [
            {
                "id": int(rng.integers(1 << 33)),
                "segmentation": {"size": list(SIZE_HW), "counts": counts.decode()},
                "bbox": [float(v) for v in rle.bbox_xywh(rle.runs(counts, SIZE_HW), SIZE_HW)],
                "area": rle.area(rle.runs(counts, SIZE_HW)),
                "predicted_iou": 0.95,
                "stability_score": 0.97,
                "crop_box": [0, 0, SIZE_HW[1], SIZE_HW[0]],
                "point_coords": [[1.0, 1.0]],
            }
            for counts in make_masks(rng)
        ]
        pairs.append((make_jpeg(rng), annotations))
    return pairs


def write_shard(path: Path, size: int | None, images: int | None) -> int:
    """A tar of so many bytes, or images; returns how many images."""
    pairs, number = make_pairs(), 0
    with tarfile.open(path, "w") as tar:
        while number < images if images else tar.offset < (size or 0):
            jpeg, annotations = pairs[number % DISTINCT]
            number += 1
            name = f"./sa_{number}"
            image = {"image_id": number, "height": SIZE_HW[0], "width": SIZE_HW[1]}
            image["file_name"] = f"sa_{number}.jpg"
            text = json.dumps({"image": image, "annotations": annotations}).encode()
            for end, content in ((".jpg", jpeg), (".json", text)):
                info = tarfile.TarInfo(name + end)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            tar.members.clear()
    return number


def write_clip(folder: Path) -> Path:
    """A real open_clip model that costs little: one layer over one 224 px patch, random weights."""
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 224}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model_cfg = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = open_clip.model.CLIP(**json.loads(json.dumps(model_cfg))).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    return folder


class StubTeacher(Teacher):
    """Loads a real model, then answers with numbers that are there already."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__(config)
        self._answers = torch.nn.functional.normalize(torch.randn(self.batch_size, WIDTH), dim=-1)

    def encode_crops(self, crops: np.ndarray) -> torch.Tensor:
        return self._answers[: len(crops)]


class StubActor(engine._UnitActor):
    """The engine's worker with the stub in place of its teacher, in this worker's process only."""

    def __init__(self, *arguments: Any) -> None:
        unit_builder.Teacher = StubTeacher  # type: ignore[misc]
        super().__init__(*arguments)


def run_engine(shard: Path, teacher: Path, out: Path) -> tuple[float, list[float], float]:
    """(seconds from a started Ray to the end, times of delivered units, seconds to start Ray)."""
    config = BuildConfig(
        out=str(out),
        teacher=TeacherConfig(name=str(teacher)),
        concepts="none",
        vocabulary=str(teacher.parent / "two.txt"),
    )
    own_actor, run_units = engine._UnitActor, engine.run_units
    delivered: list[float] = []

    def watched(*arguments: Any) -> Iterator[UnitResult]:
        for result in run_units(*arguments):
            delivered.append(time.perf_counter())
            yield result

    engine._UnitActor, engine.run_units = StubActor, watched  # type: ignore[misc]
    begun = time.perf_counter()
    try:
        with ray_session(None, WORKERS, None):
            start = time.perf_counter()
            summary = engine.build(Sa1bSource([str(shard)]), config, say=lambda text: None)
            spent = time.perf_counter() - start
    finally:
        engine._UnitActor, engine.run_units = own_actor, run_units  # type: ignore[misc]
    assert not summary.failed and not summary.rejects, summary
    assert summary.stage_seconds["teacher"] < 0.01 * spent, "the stub did not get in"
    stages = {k: f"{v:.1f}" for k, v in sorted(summary.stage_seconds.items())}
    print(f"  engine: {summary.images} images, {summary.regions} regions; work by stage {stages}")
    return spent, delivered, start - begun


class Loop:
    """The hand-written way: one process per core, one unit after the other."""

    def __init__(self, shard: Path, out: Path) -> None:
        import cv2

        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        self.source, self.store = Sa1bSource([str(shard)]), Store(str(out))
        self.crop = CropConfig(mean_rgb=(0.5, 0.5, 0.5))
        self.answers = np.random.default_rng(0).standard_normal((200, WIDTH)).astype(np.float16)
        self.images, self.regions = stored_schema(images_schema()), regions_schema(WIDTH, 0)
        self.crops = np.empty((100, 224, 224, 3), np.uint8)

    def __call__(self, unit: Unit) -> tuple[list[Any], list[Any]]:
        rows: list[list[Any]] = []
        regions = self.write(REGIONS, self.regions, self.region_batches(unit, rows))
        images = self.write(IMAGES, self.images, self.image_batches(rows))
        return images, regions

    def write(self, table: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> list[Any]:
        from lance.fragment import write_fragments

        fragments = write_fragments(
            pa.RecordBatchReader.from_batches(schema, batches),
            self.store.table_uri(table),
            schema=schema,
            data_storage_version="2.2" if table == IMAGES else "2.0",
        )
        return list(fragments)

    def region_batches(self, unit: Unit, rows: list[list[Any]]) -> Iterator[pa.RecordBatch]:
        for index in range(len(unit)):
            record, _ = self.source.load(unit, index)
            assert record is not None
            pixels = decode_image(record.jpeg)
            found = record.regions
            boxes = np.array([region.bbox_xywh for region in found], np.int64)
            crops = crop_regions(pixels, [r.runs for r in found], boxes, self.crop, self.crops)
            n = len(crops)
            image_id, name = record.image_id, record.file_name
            rows.append([image_id, unit.unit_id, name, record.width, record.height, record.jpeg, n])
            yield pa.record_batch(
                [
                    pa.array(image_id << 16 | np.array([r.ordinal for r in found])),
                    pa.array(np.full(n, image_id)),
                    pa.array([r.region_id for r in found], pa.int64()),
                    pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), ["sa1b"]).cast(
                        SOURCE_TYPE
                    ),
                    pa.array(np.full(n, unit.unit_id)),
                    fixed_size_lists(boxes.astype(np.float32), pa.float32()),
                    pa.array([r.area for r in found], pa.int32()),
                    pa.array([r.rle for r in found], pa.binary()),
                    pa.array([r.predicted_iou for r in found], pa.float32()),
                    pa.array([r.stability_score for r in found], pa.float32()),
                    fixed_size_lists(self.answers[:n], pa.float16()),
                    pa.nulls(n, pa.string()),
                ],
                schema=self.regions,
            )

    def image_batches(self, rows: list[list[Any]]) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), 8):
            ids, units, names, widths, heights, jpegs, counts = zip(
                *rows[start : start + 8], strict=True
            )
            source = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int8), ["sa1b"])
            yield pa.record_batch(
                [
                    pa.array(ids, pa.int64()),
                    source.cast(SOURCE_TYPE),
                    pa.array(units, pa.int64()),
                    pa.array(names),
                    pa.array(widths, pa.int32()),
                    pa.array(heights, pa.int32()),
                    blob_column(jpegs),
                    pa.array(counts, pa.int32()),
                ],
                schema=self.images,
            )


def start_worker(shard: Path, out: Path) -> None:
    global _loop
    _loop = Loop(shard, out)


def run_unit(unit: Unit) -> tuple[list[Any], list[Any]]:
    return _loop(unit)


def run_loop(shard: Path, out: Path) -> tuple[float, list[float], float]:
    """As run_engine; there is nothing to start beforehand."""
    start = time.perf_counter()
    store, source = Store(str(out)), Sa1bSource([str(shard)])
    for table, schema in ((IMAGES, images_schema()), (REGIONS, regions_schema(WIDTH, 0))):
        store.create(table, schema.empty_table(), Provenance({}))
    units, _ = source.index(source.shards()[0], UNIT_IMAGES)
    delivered, fragments = [], []
    with multiprocessing.get_context("spawn").Pool(WORKERS, start_worker, (shard, out)) as pool:
        for result in pool.imap_unordered(run_unit, units):
            delivered.append(time.perf_counter())
            fragments.append(result)
        store.append(REGIONS, [f for _, regions in fragments for f in regions])
        store.append(IMAGES, [f for images, _ in fragments for f in images])
        index_keys(store)
        spent = time.perf_counter() - start
    return spent, delivered, 0.0


def speed(images: int, repeats: int, folder: Path) -> None:
    shard = folder / "sa_000000.tar"
    write_shard(shard, None, images)
    teacher = write_clip(folder / "teacher")
    (folder / "two.txt").write_text("dog\ncat\n")
    print(f"{images} images, {shard.stat().st_size / 1e6:,.0f} MB; units of {UNIT_IMAGES} images")
    assert CropOptions().for_teacher(Teacher(TeacherConfig(name=str(teacher))).info) == CropConfig(
        mean_rgb=(0.5, 0.5, 0.5)
    )
    rates: dict[str, list[tuple[float, float, float]]] = {"engine": [], "loop": []}
    for number in range(repeats + 1):
        order = ("engine", "loop") if number % 2 else ("loop", "engine")
        for name in order:
            out = folder / f"{name}-{number}"
            spent, delivered, ray_s = (
                run_engine(shard, teacher, out) if name == "engine" else run_loop(shard, out)
            )
            rows = Store(str(out)).open(REGIONS).count_rows()
            assert rows == images * 100, rows
            assert len(delivered) > WORKERS
            span = delivered[-1] - delivered[WORKERS - 1]
            steady = (len(delivered) - WORKERS) * UNIT_IMAGES / span
            print(
                f"{name:6} {number or 'warm-up'}: steady {steady:.1f} images/s, whole "
                f"{images / spent:.1f} images/s ({spent:.1f} s), Ray started in {ray_s:.1f} s, "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            if number:
                rates[name].append((steady, images / spent, images / (spent + ray_s)))
            subprocess.run(["rm", "-r", out], check=True)
    columns = ("steady", "whole, Ray started before", "whole, with Ray's start")
    for index, column in enumerate(columns):
        ours, theirs = ([row[index] for row in rates[name]] for name in ("engine", "loop"))
        pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{column}: engine {statistics.median(ours):.1f}, loop {statistics.median(theirs):.1f} "
            f"images/s; ratio: medians {statistics.median(ours) / statistics.median(theirs):.2f}, "
            f"bests {max(ours) / max(theirs):.2f}, pairs "
            f"{', '.join(f'{pair:.2f}' for pair in pairs)}"
        )


def memory(gigabytes: float, limit: int, folder: Path) -> None:
    shard = folder / "sa_000000.tar"
    images = write_shard(shard, int(gigabytes * 1e9), None)
    teacher = write_clip(folder / "teacher")
    print(f"{shard.stat().st_size / 1e9:.2f} GB tar of {images:,} images; building {limit}")
    command = [
        *(sys.executable, "-c", "from tap_engine.jobs.data_cli import main; main()"),
        *("build-semantic", str(shard), "--out", str(folder / "store")),
        *("--teacher", str(teacher), "--limit", str(limit)),
    ]
    build = subprocess.Popen(command)
    peaks: dict[int, tuple[str, int]] = {}
    over = threading.Event()

    def watch() -> None:
        parent = psutil.Process(build.pid)
        while not over.wait(0.2):
            try:
                for process in (parent, *parent.children(recursive=True)):
                    peak = high_water(process.pid)
                    title = " ".join(process.cmdline()[:3])[:60] or process.name()
                    if peak >= peaks.get(process.pid, ("", 0))[1]:
                        peaks[process.pid] = (title, peak)
            except (psutil.Error, OSError):
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = build.wait()
    over.set()
    watcher.join()
    assert code == 0, code
    for title, peak in islice(sorted(peaks.values(), key=lambda item: -item[1]), 8):
        print(f"{peak / 1e6:7,.0f} MB  {title}")


def high_water(pid: int) -> int:
    """Bytes of the largest resident set a process has ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("speed")
    timed.add_argument("--images", type=int, default=768)
    timed.add_argument("--repeats", type=int, default=5)
    sized = commands.add_parser("memory")
    sized.add_argument("--gigabytes", type=float, default=10.0)
    sized.add_argument("--limit", type=int, default=384)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if chosen.command == "speed":
            speed(chosen.images, chosen.repeats, Path(place))
        else:
            memory(chosen.gigabytes, chosen.limit, Path(place))
