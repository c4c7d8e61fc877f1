"""The trainer's stream against a WebDataset and a flat file of the same images, in one run.

    python -m benchmarks.stream [--images 400] [--rounds 5] [--epoch 100000]

Images are those of benchmarks/crops.py: 1500 x 2250 px, about 0.9 MB, some distinct ones in turn.
The store has two regions per image; its reader also reads their boxes, masks and embeddings and
pairs them with the image, which the other two do not have. Each way is timed once a round, rounds
alternate, and medians are compared: everything lies in the page cache, so what differs is the
format's own work. CPU time of the process stands beside the time, for a machine that is not idle.
Last, one epoch of a store of many tiny images, with the process's memory.
"""

import argparse
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import webdataset
from PIL import Image

from benchmarks.crops import SIZE_HW, make_jpeg
from tap_engine.train.data.augment import AugmentConfig
from tap_engine.train.data.examples import ExampleConfig
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.data.stream import Share, Stream, StreamConfig
from tap_engine.train.run_log import memory_gb
from tests.train.small_store import make_store

DISTINCT = 16
SHARD_IMAGES = 100
READ_AHEAD = StreamConfig().read_ahead


def make_all(root: Path, images: int) -> None:
    """The same images three times."""
    jpegs = tuple(make_jpeg(np.random.default_rng(seed)) for seed in range(DISTINCT))
    make_store(
        root / "store", images, unit_images=100, size_hw=SIZE_HW, regions=2, pixels=False,
        jpegs=jpegs,
    )  # fmt: skip
    offsets = [0]
    with (root / "flat").open("wb") as flat:
        for start in range(0, images, SHARD_IMAGES):
            with tarfile.open(root / f"{start:06}.tar", "w") as tar:
                for index in range(start, min(start + SHARD_IMAGES, images)):
                    jpeg = jpegs[(index + 1) % DISTINCT]
                    info = tarfile.TarInfo(f"{index:06}.jpg")
                    info.size = len(jpeg)
                    tar.addfile(info, io.BytesIO(jpeg))
                    offsets.append(offsets[-1] + flat.write(jpeg))
    np.save(root / "offsets.npy", offsets)


def flat_file(root: Path) -> Iterator[bytes]:
    offsets = np.load(root / "offsets.npy")
    with (root / "flat").open("rb", buffering=0) as file:
        for low, high in itertools.pairwise(offsets):
            yield file.read(int(high - low))


def web_dataset(root: Path) -> Iterator[bytes]:
    shards = sorted(str(path) for path in root.glob("*.tar"))
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        yield sample["jpg"]


def store(root: Path, shuffle: bool = False) -> Iterator[bytes]:
    stream = Stream(
        StreamConfig(stores=(str(root / "store"),), shuffle=shuffle, mixed_runs=8), samples()
    )
    reader: StoreReader = stream.readers[0]
    for start in range(0, reader.rows, READ_AHEAD):
        places = np.arange(start, min(start + READ_AHEAD, reader.rows))
        for image in reader.read(stream.locate(places)[2]):
            yield image.jpeg


def samples() -> ExampleConfig:
    return ExampleConfig(
        image_px=32,
        mask_px=8,
        regions=2,
        soft_masks=False,
        fill_rgb=(0, 0, 0),
        columns=("embedding",),
        augment=AugmentConfig(),
        seed=0,
    )


class Timing(NamedTuple):
    seconds: float
    cpu: float
    bytes: int


def through(images: Iterator[bytes], limit: int = 0, decode: bool = False) -> Timing:
    """All images, or the first ones."""
    began, cpu, total = time.perf_counter(), time.process_time(), 0
    for jpeg in itertools.islice(images, limit or None):
        total += len(jpeg)
        if decode:
            with Image.open(io.BytesIO(jpeg)) as file:
                np.asarray(file.convert("RGB"))
    return Timing(time.perf_counter() - began, time.process_time() - cpu, total)


def compare(root: Path, rounds: int, decoded: int) -> None:
    ways: dict[str, Callable[[], Timing]] = {
        "flat file": lambda: through(flat_file(root)),
        "WebDataset": lambda: through(web_dataset(root)),
        "store": lambda: through(store(root)),
        "store, shuffled": lambda: through(store(root, shuffle=True)),
        "flat file, decoded": lambda: through(flat_file(root), decoded, decode=True),
        "store, decoded": lambda: through(store(root), decoded, decode=True),
    }
    found: dict[str, list[Timing]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            timing = way()
            if turn:  # the first fills the page cache
                found[name].append(timing)
    print("| way | GB | median s | all s | CPU s | MB/s |\n|---|---|---|---|---|---|")
    middle, cpu = {}, {}
    for name, timings in found.items():
        middle[name] = statistics.median(t.seconds for t in timings)
        cpu[name] = statistics.median(t.cpu for t in timings)
        every = " ".join(f"{t.seconds:.2f}" for t in timings)
        size = timings[0].bytes
        print(
            f"| {name} | {size / 1e9:.2f} | {middle[name]:.3f} | {every} | {cpu[name]:.2f} | "
            f"{size / middle[name] / 1e6:,.0f} |"
        )
    for what, a, b in (
        ("bytes in order: speed of WebDataset x", "WebDataset", "store"),
        ("decoded: time of the flat file x", "store, decoded", "flat file, decoded"),
        ("shuffled: time of the flat file in order x", "store, shuffled", "flat file"),
    ):
        print(f"{what} {middle[a] / middle[b]:.3f} (CPU {cpu[a] / cpu[b]:.3f})")


def epoch(root: Path, images: int) -> None:
    """Memory along an epoch of tiny images."""
    make_store(root / "many", images, unit_images=500, regions=1, pixels=False, size_hw=(32, 32))
    config = StreamConfig(stores=(str(root / "many"),), workers=0)
    batches = Stream(config, samples()).batches(
        Share(images=50), consumed=0, steps=images // 50, pin=False
    )
    began = time.perf_counter()
    for step, _ in enumerate(batches, 1):
        if step % (images // 500) == 0:
            print(
                f"{step * 50:,} images, {time.perf_counter() - began:.0f} s, {memory_gb():.3f} GB"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoded", type=int, default=60)
    parser.add_argument("--epoch", type=int, default=100_000)
    options = parser.parse_args()
    print(f"{options.images} images, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        make_all(Path(folder), options.images)
        compare(Path(folder), options.rounds, options.decoded)
        if options.epoch:
            epoch(Path(folder), options.epoch)
