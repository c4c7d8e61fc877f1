"""CaptionSA-400M of full size, planned from made-up image counts.

    python benchmarks/mixing.py FOLDER

Makes two `images` tables with the columns that planning reads: 11,185,362 images with 1.1 G regions
as SA-1B, 108,077 with 5,408,689 as Visual Genome v1.2 (10,000 of them held out), and the same with
v1.0's 4,297,502. Counts vary from image to image. Then the command itself runs, as a user runs it.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from tap_engine.schemas.keys import pack_image_id
from tap_engine.schemas.tables import SOURCE_TYPE, images_schema

SA1B = (11_185_362, 1_100_000_000)
VISUAL_GENOME = {"v1.2": (108_077, 5_408_689), "v1.0": (108_077, 4_297_502)}
COLUMNS = ("image_id", "source", "region_count", "split")


def write_images(path: Path, source: str, images: int, regions: int) -> None:
    """Ids in random order, counts log-normal, together as many as asked."""
    rng = np.random.default_rng(0)
    counts = rng.lognormal(0, 0.6, images)
    counts = np.maximum(np.round(counts * regions / counts.sum()), 1).astype(np.int64)
    off = regions - int(counts.sum())
    many = rng.permutation(np.flatnonzero(counts > 2))[: abs(off)]
    counts[many] += np.sign(off)
    ids = pack_image_id(source, 1) + rng.permutation(images)
    names = pa.DictionaryArray.from_arrays(np.zeros(images, np.int8), pa.array([source]))
    columns = [pa.array(ids), names.cast(SOURCE_TYPE), pa.array(counts.astype(np.int32))]
    schema = images_schema(captioned=source == "vg")
    if source == "vg":
        part = rng.permutation(images)
        split = np.full(images, None, object)
        for name, low, high in (
            ("train", 0, 77_398),
            ("val", 77_398, 82_398),
            ("test", 82_398, 87_398),
        ):
            split[(part >= low) & (part < high)] = name
        columns.append(pa.array(split, pa.string()))
    fields = [schema.field(name) for name in COLUMNS if name in schema.names]
    table = pa.table(columns, schema=pa.schema(fields))
    print(f"{source}: {images:,} images, {counts.sum():,} regions", flush=True)
    lance.write_dataset(table, str(path / "images.lance"), data_storage_version="2.2")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if not folder.exists():
        write_images(folder / "sa1b", "sa1b", *SA1B)
        for version, size in VISUAL_GENOME.items():
            write_images(folder / f"vg-{version}", "vg", *size)
    for version in VISUAL_GENOME:
        out = folder / f"mix-{version}"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-c", "from tap_engine.jobs.data_cli import main; main()", "mix"]
        command += ["--stores", str(folder / "sa1b"), "--stores", str(folder / f"vg-{version}")]
        command += ["--subsets", "4", "--regions", "100M", "--share", "vg=0.04", "--seed", "0"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(out)], check=True, capture_output=True, text=True
        )
        spent = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"--- Visual Genome {version}: {spent:.1f} s, peak RSS so far {peak:.2f} GB")
        print(done.stdout, flush=True)


if __name__ == "__main__":
    main()
