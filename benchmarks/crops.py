"""Crop production against the JPEG decode of the same image, on SA-1B-like images made here.

    python benchmarks/crops.py [--images 4] [--repeats 15]

An image is 1500 x 2250 px, about 0.9 MB, with 100 masks of which 70 are under 100^2 px.
Counted as crop production: parse and check of the 100 compressed RLEs, the box of each mask,
and 100 crops of 224 x 224 px into a reused array. Not counted: json, JPEG decode.
The plain way decodes each mask at full size with pycocotools, composites with numpy, pads and
lets Pillow resize. Decode, production and plain way alternate, so that a busy machine hits all.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.schemas import rle
from tap_engine.schemas.store_settings import CropConfig

SIZE_HW = (1500, 2250)
CONFIG = CropConfig(mean_rgb=(0.48145466, 0.4578275, 0.40821073))


def make_jpeg(rng: np.random.Generator, size_hw: tuple[int, int] = SIZE_HW) -> bytes:
    """Dead leaves (the edge statistics of photographs) with texture at all scales."""
    height, width = size_hw
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(1500):
        radius = int(min(600, 12 * rng.pareto(1.2) + 6))
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(image, center, axes, rng.uniform(0, 180), 0, 360, colour, -1)
    textured = image.astype(np.float32)
    for scale in (1, 2, 4, 8, 16):
        noise = rng.normal(0, 6, (height // scale + 1, width // scale + 1)).astype(np.float32)
        textured += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    textured = cv2.GaussianBlur(textured, (0, 0), 0.7)
    buffer = io.BytesIO()
    Image.fromarray(textured.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make_masks(rng: np.random.Generator) -> list[bytes]:
    """100 smooth blobs: 70 of 300 to 100^2 px, 30 from there to 30 % of the image (log-uniform)."""
    height, width = SIZE_HW
    small = np.exp(rng.uniform(np.log(300), np.log(1e4), 70))
    large = np.exp(rng.uniform(np.log(1e4), np.log(0.3 * height * width), 30))
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    masks = []
    for area in rng.permutation(np.concatenate([small, large])):
        stretch, radius = np.exp(rng.normal(0, 0.4)), np.sqrt(area / np.pi)
        shape = np.ones_like(angle)
        for wave in range(2, 9):
            bump = rng.normal(0, 0.35 / wave)
            shape += bump * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
        reach = radius * shape.clip(0.15)
        x = rng.uniform(0, width) + reach * stretch * np.cos(angle)
        y = rng.uniform(0, height) + reach / stretch * np.sin(angle)
        mask = np.zeros(SIZE_HW, np.uint8)
        cv2.fillPoly(mask, [np.stack([x, y], 1).round().astype(np.int32)], 1)
        mask[min(int(max(y[0], 0)), height - 1), min(int(max(x[0], 0)), width - 1)] = 1
        masks.append(rle.encode(mask))
    return masks


def produce(image: np.ndarray, counts: list[bytes], out: np.ndarray | None = None) -> np.ndarray:
    masks = [rle.runs(count, SIZE_HW) for count in counts]
    boxes = [rle.bbox_xywh(mask, SIZE_HW) for mask in masks]
    return crop_regions(image, masks, boxes, CONFIG, out)


def produce_plainly(image: np.ndarray, counts: list[bytes]) -> np.ndarray:
    crops = []
    for count in counts:
        mask = coco_mask.decode({"size": list(SIZE_HW), "counts": count})
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        shown = np.where(mask[box][..., None] != 0, image[box], CONFIG.fill_rgb)
        height, width = shown.shape[:2]
        side = max(height, width)
        canvas = np.full((side, side, 3), CONFIG.fill_rgb, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        canvas[top : top + height, left : left + width] = shown
        crops.append(
            np.asarray(Image.fromarray(canvas).resize((224, 224), Image.Resampling.BICUBIC))
        )
    return np.stack(crops)


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Of this thread's CPU by default: what others do on the machine does not count."""
    start = clock()
    work()
    return clock() - start


def compare(images: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    out = np.empty((100, 224, 224, 3), np.uint8)
    rows, work = [], []
    for number in range(images):
        jpeg, counts = make_jpeg(rng), make_masks(rng)
        work.append((jpeg, counts))
        image = decode_image(jpeg)
        found, plain = produce(image, counts), produce_plainly(image, counts)
        difference = float(np.abs(found.astype(int) - plain).mean())
        decodes, crops = [], []
        for _ in range(repeats):
            decodes.append(seconds(lambda jpeg=jpeg: decode_image(jpeg)))
            crops.append(seconds(lambda image=image, counts=counts: produce(image, counts, out)))
        naive = seconds(lambda image=image, counts=counts: produce_plainly(image, counts))
        areas = [rle.area(rle.runs(count, SIZE_HW)) for count in counts]
        decode, crop = statistics.median(decodes), statistics.median(crops)
        rows.append((crop / decode, naive / decode, min(crops) / min(decodes)))
        print(
            f"image {number}: {len(jpeg) / 1e6:.2f} MB, masks cover {sum(areas) / 3.375e6:.2f} "
            f"images, {np.mean(np.array(areas) < 1e4):.0%} under 100^2 px | decode "
            f"{decode * 1e3:.1f} ms (best {min(decodes) * 1e3:.1f}), crops {crop * 1e3:.1f} ms "
            f"(best {min(crops) * 1e3:.1f}), plain {naive * 1e3:.0f} ms | ratio "
            f"{rows[-1][0]:.2f} (of bests {rows[-1][2]:.2f}), plain {rows[-1][1]:.0f} | "
            f"mean difference to plain {difference:.4f}/255"
        )
    print("median ratio", *(f"{np.median(column):.2f}" for column in zip(*rows, strict=True)),
          "(crops : decode, plain : decode, best crops : best decode)")  # fmt: skip
    threads(work)


def threads(work: list[tuple[bytes, list[bytes]]], rounds: int = 8) -> None:
    def one(item: tuple[bytes, list[bytes]]) -> None:
        produce(decode_image(item[0]), item[1])

    rates = {}
    for _ in range(3):
        for workers in (1, 2):
            with ThreadPoolExecutor(workers) as pool:
                spent = seconds(
                    lambda pool=pool: list(pool.map(one, work * rounds)), time.perf_counter
                )
            rates[workers] = max(rates.get(workers, 0), len(work) * rounds / spent)
    print(
        f"threads (decode and crops): 1: {rates[1]:.1f} images/s, 2: {rates[2]:.1f} images/s, "
        f"x{rates[2] / rates[1]:.2f}"
    )


def memory() -> None:
    """Peak memory of one 6000 x 6000 px mask in a 100 Mpx image, beyond image and crop."""
    image = np.full((10_000, 10_000, 3), 100, np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[1000:7000, 2000:8000] = 1
    counts = rle.encode(mask)
    del mask
    mask_runs = rle.runs(counts, image.shape[:2])
    crop_regions(image, [None], [(0, 0, 9, 9)], CONFIG)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    spent = seconds(lambda: crop_regions(image, [mask_runs], [(2000, 1000, 6000, 6000)], CONFIG))
    peak, now = (
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(("VmHWM", "VmRSS"))
    )
    print(f"6000 x 6000 px mask in 100 Mpx: {spent * 1e3:.0f} ms, peak {(peak - now) / 1e3:.1f} MB "
          f"above the {now / 1e3:.0f} MB held")  # fmt: skip


def first_call() -> None:
    """Seconds from the first call to its return, without and with numba's cache on disk."""
    program = (
        "import time, numpy as np;"
        "from tap_engine.pipeline.crop import crop_regions;"
        "from tap_engine.schemas.store_settings import CropConfig;"
        "from tap_engine.schemas import rle;"
        "start = time.perf_counter();"
        "mask = rle.runs(rle.encode(np.ones((9, 9))), (9, 9));"
        "crop_regions(np.zeros((9, 9, 3), np.uint8), [mask], [rle.bbox_xywh(mask, (9, 9))],"
        " CropConfig(mean_rgb=(0, 0, 0)));"
        "print(f'{time.perf_counter() - start:.2f} s wall, {time.process_time():.2f} s CPU')"
    )
    with tempfile.TemporaryDirectory() as cache:
        for name in ("compiled", "from cache"):
            result = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"first call, {name}: {result.stdout.strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    first_call()
    memory()
    compare(arguments.images, arguments.repeats)
