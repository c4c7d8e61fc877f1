"""A Visual Genome of full size, made up, imported in bounded memory and resumed after kill -9.

    python benchmarks/visual_genome.py FOLDER [--images 108077] [--regions 5408689] [--limit 0]

The json has v1.2's form, the real counts, and phrases of the real length (5 words) that need every
cleaning rule now and then. Photos are one 8 x 6 px JPEG under many names: what is measured is the
json, the boxes and the store, not the decoding of 15 GB of photos. The import is killed once while
it reads the json and once while it builds, then runs to its end. RSS is sampled 5 times per second
over the command and all of its processes.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tap_engine.pipeline.store import Store
from tap_engine.schemas.tables import IMAGES, REGIONS

WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "cat",
    "red",
    "blue",
    "green",
    "white",
    "black",
    "shirt",
    "sign",
    "tree",
    "car",
    "street",
    "on",
    "in",
    "with",
    "of",
    "behind",
    "near",
    "standing",
    "wearing",
    "holding",
    "small",
    "large",
    "wooden",
    "table",
    "window",
    "building",
    "grass",
    "sky",
]
ENDS = ("", "", "", "", "", "", " ", ". ", ".", " in  a tree", " ½", " café")
SIDE_WH = (8, 6)
LINKS_A_FILE = 30_000
"""File systems limit the names of one file, ext4 to 65,000."""


def write_json(folder: Path, images: int, regions: int) -> None:
    """Boxes on images of 8 x 6 px, 1 in 1,000 beyond the edge."""
    rng = np.random.default_rng(0)
    counts = np.full(images, regions // images)
    counts[: regions - counts.sum()] += 1
    region_id = 0
    with open(folder / "region_descriptions.json", "w") as file:
        file.write("[")
        for number, count in enumerate(counts.tolist(), 1):
            words = rng.integers(0, len(WORDS), (count, 5)).tolist()
            ends = rng.integers(0, len(ENDS), count).tolist()
            box = rng.integers(0, 4, (count, 4))
            box[:, 2:] += 1
            box[:, 0] -= 900 * (rng.random(count) < 1e-3)
            entry = []
            for chosen, end, (x, y, width, height) in zip(words, ends, box.tolist(), strict=True):
                region_id += 1
                phrase = " ".join(WORDS[word] for word in chosen) + ENDS[end]
                phrase = phrase.capitalize() if end % 4 == 0 else phrase
                entry.append(
                    {
                        "region_id": region_id,
                        "width": width,
                        "height": height,
                        "image_id": number,
                        "phrase": phrase,
                        "y": y,
                        "x": x,
                    }
                )
            text = json.dumps({"regions": entry, "id": number})
            file.write((", " if number > 1 else "") + text)
        file.write("]")
    rows = [
        {"image_id": n, "width": SIDE_WH[0], "height": SIDE_WH[1], "coco_id": None, "url": ""}
        for n in range(1, images + 1)
    ]
    (folder / "image_data.json").write_text(json.dumps(rows))


def write_photos(folder: Path, images: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", SIDE_WH, (90, 120, 60)).save(buffer, "JPEG")
    folder.mkdir()
    for number in range(1, images + 1):
        path = folder / f"{number}.jpg"
        if number % LINKS_A_FILE == 1:
            path.write_bytes(buffer.getvalue())
            first = path
        else:
            os.link(first, path)


def run(folder: Path, limit: int, kill_when=None) -> tuple[str, float, dict[str, float]]:
    """Output, seconds and peak RSS in MB by process; killed with all it started once it says so."""
    command = [sys.executable, "-c", "from tap_engine.jobs.data_cli import main; main()"]
    command += ["import-visual-genome", "--out", str(folder / "store"), "--limit", str(limit)]
    command += ["--regions", str(folder / "region_descriptions.json"), "--cpus", "2"]
    command += ["--image-data", str(folder / "image_data.json")]
    command += ["--images", str(folder / "photos"), "--splits", str(folder / "splits.json")]
    log = folder / "log.txt"
    start = time.monotonic()
    peak: dict[str, float] = {}
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            everyone = [tree, *tree.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for one in everyone:
            try:
                name = "driver" if one.pid == process.pid else one.cmdline()[0].split("(")[0][-40:]
                # Of a worker, memory shared with Ray's object store and the page cache counts too.
                peak[name] = max(peak.get(name, 0), one.memory_info().rss / 1e6)
            except (psutil.Error, IndexError):
                continue
        if kill_when and kill_when(log.read_text()):
            for one in everyone:
                try:
                    one.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            process.wait()
            break
        time.sleep(0.2)
    return log.read_text(), time.monotonic() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=108_077)
    parser.add_argument("--regions", type=int, default=5_408_689)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()
    folder: Path = options.folder
    if not (folder / "photos").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder, options.images, options.regions)
        write_photos(folder / "photos", options.images)
        numbers = np.random.default_rng(1).permutation(options.images) + 1
        cuts = np.array([77_398, 82_398, 87_398]) * options.images // 108_077
        parts = np.split(numbers, cuts)[:3]
        names = ("train", "val", "test")
        splits = {name: part.tolist() for name, part in zip(names, parts, strict=True)}
        (folder / "splits.json").write_text(json.dumps(splits))
    shutil.rmtree(folder / "store", ignore_errors=True)
    size = (folder / "region_descriptions.json").stat().st_size
    print(f"region_descriptions.json: {size / 1e6:,.0f} MB", flush=True)
    stops = (
        ("killed while reading", lambda text: "0,000 images" in text),
        ("killed while building", lambda text: re.search(r"\), [1-9][\d,]*/[\d,]+ units", text)),
        ("to the end", None),
    )
    for name, kill_when in stops:
        text, seconds, peak = run(folder, options.limit, kill_when)
        print(f"--- {name}: {seconds:.1f} s")
        print("\n".join(f"    {line}" for line in text.splitlines()[-18:]))
        for process, megabytes in sorted(peak.items(), key=lambda item: -item[1])[:6]:
            print(f"    peak RSS {megabytes:7,.0f} MB  {process}", flush=True)
    store = Store(str(folder / "store"))
    images, regions = store.open(IMAGES), store.open(REGIONS)
    keys = regions.to_table(columns=["key"]).column(0).to_numpy()
    print(f"stored: {images.count_rows():,} images, {len(keys):,} regions")
    print(f"unique keys: {len(np.unique(keys)):,}")
    staged = [path.stat().st_size for path in (folder / "store/_index").iterdir()]
    print(f"staged json: {len(staged)} files, {sum(staged) / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
