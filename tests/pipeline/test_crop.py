import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from tap_engine.pipeline import resample
from tap_engine.pipeline.crop import crop_regions, decode_image
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.store_settings import CropConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise with hard edges: what shows every wrong tap."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
    return image


def plain_resize(picture: np.ndarray, config: CropConfig) -> np.ndarray:
    size, kernel = config.size_px, PILLOW[config.resampling]
    image = Image.fromarray(picture)
    if config.fit == "squash":  # newer Pillows resize some tall pictures vertically first
        image = image.resize((size, image.height), kernel)
    return np.array(image.resize((size, size), kernel))


def plain_crop(image: np.ndarray, mask: np.ndarray, box: tuple, config: CropConfig) -> np.ndarray:
    """What crop_regions promises, written with full-size arrays and Pillow."""
    left, top, box_w, box_h = box
    grow_x, grow_y = round(box_w * config.margin), round(box_h * config.margin)
    left, top, box_w, box_h = left - grow_x, top - grow_y, box_w + 2 * grow_x, box_h + 2 * grow_y
    fill = config.fill_rgb
    if config.fill == "keep":
        mask = np.ones_like(mask)
    reach = max(grow_x, grow_y, 0) + 1
    frame = ((reach, reach), (reach, reach))
    inside = np.pad(mask, frame).astype(bool)
    shown = np.pad(image, (*frame, (0, 0)))
    on_image = np.pad(np.ones_like(mask), frame).astype(bool)
    hidden = ~on_image if config.order == "resize" else ~inside
    shown[hidden] = fill
    rows, columns = (
        slice(top + reach, top + reach + box_h),
        slice(left + reach, left + reach + box_w),
    )
    shown, inside = shown[rows, columns], inside[rows, columns]
    canvas_h, canvas_w = (max(box_h, box_w),) * 2 if config.fit == "pad" else (box_h, box_w)
    y, x = (canvas_h - box_h) // 2, (canvas_w - box_w) // 2
    canvas = np.full((canvas_h, canvas_w, 3), fill, np.uint8)
    canvas[y : y + box_h, x : x + box_w] = shown
    result = plain_resize(canvas, config)
    if config.order == "resize" and config.fill != "keep":
        alpha = np.zeros((canvas_h, canvas_w), np.uint8)
        alpha[y : y + box_h, x : x + box_w] = inside * np.uint8(255)
        result[plain_resize(alpha, config) < 128] = fill
    return result


def blob(height: int, width: int, seed: int) -> np.ndarray:
    """A mask of one of the shapes where cropping goes wrong; never empty."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    kind = seed % 7
    if kind == 0:
        pass  # one pixel
    elif kind == 1:
        mask[:, x] = 1
    elif kind == 2:
        mask[y, :] = 1
    elif kind == 3:
        mask[:] = 1
    elif kind == 4:
        mask[rng.random((height, width)) < 0.4] = 1
    else:
        bottom, right = y + int(rng.integers(1, 30)), x + int(rng.integers(1, 30))
        mask[y:bottom, x:right] = rng.random((min(bottom, height) - y, min(right, width) - x)) < 0.8
    mask[y, x] = 1
    return mask


def cropped(image: np.ndarray, mask: np.ndarray, config: CropConfig) -> tuple[np.ndarray, tuple]:
    mask_runs = rle.runs(rle.encode(mask), mask.shape)
    box = rle.bbox_xywh(mask_runs, mask.shape)
    return crop_regions(image, [mask_runs], [box], config)[0], box


@st.composite
def configs(draw: st.DrawFn) -> CropConfig:
    return CropConfig(
        mean_rgb=draw(st.sampled_from([CLIP_MEAN, (0.0, 1.0, 0.5)])),
        size_px=draw(st.sampled_from([1, 7, 32, 224])),
        fill=draw(st.sampled_from(["mean", "black", "keep"])),
        fit=draw(st.sampled_from(["pad", "squash"])),
        margin=draw(st.sampled_from([0.0, 0.1, 1.5])),
        order=draw(st.sampled_from(["composite", "resize"])),
        resampling=draw(st.sampled_from(["bicubic", "bilinear"])),
    )


@given(config=configs(), height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0))
@settings(max_examples=300, deadline=None)
def test_any_setting_equals_the_plain_way_to_the_last_bit(
    config: CropConfig, height: int, width: int, seed: int
) -> None:
    image, mask = picture(height, width, seed % 1000), blob(height, width, seed)
    found, box = cropped(image, mask, config)
    np.testing.assert_array_equal(found, plain_crop(image, mask, box, config))


@pytest.mark.parametrize(
    ("size_hw", "size_px"), [((3000, 40), 64), ((1100, 3000), 64), ((900, 700), 224), ((3, 5), 448)]
)
@pytest.mark.parametrize("kind", [3, 4, 5])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_large_scales_equal_the_plain_way(
    size_hw: tuple, size_px: int, kind: int, resampling: str
) -> None:
    config = CropConfig(mean_rgb=CLIP_MEAN, size_px=size_px, resampling=resampling)
    image, mask = picture(*size_hw), blob(*size_hw, 70 + kind)
    found, box = cropped(image, mask, config)
    np.testing.assert_array_equal(found, plain_crop(image, mask, box, config))


def test_the_reference_decodes_masks_with_pycocotools() -> None:
    image, mask = picture(80, 60), blob(80, 60, 5)
    decoded = coco_mask.decode({"size": [80, 60], "counts": rle.encode(mask)})
    config = CropConfig(mean_rgb=CLIP_MEAN)
    found, box = cropped(image, mask, config)
    np.testing.assert_array_equal(found, plain_crop(image, decoded, box, config))


def regions(image: np.ndarray, count: int) -> tuple[list, list]:
    size = image.shape[:2]
    masks = [rle.runs(rle.encode(blob(*size, seed)), size) for seed in range(count)]
    return masks, [rle.bbox_xywh(mask, size) for mask in masks]


def test_any_split_over_calls_and_threads_gives_the_same() -> None:
    image, config = picture(90, 120), CropConfig(mean_rgb=CLIP_MEAN)
    masks, boxes = regions(image, 40)
    together = crop_regions(image, masks, boxes, config)
    with ThreadPoolExecutor(8) as pool:
        one_by_one = list(
            pool.map(lambda i: crop_regions(image, [masks[i]], [boxes[i]], config)[0], range(40))
        )
    backwards = crop_regions(image, masks[::-1], boxes[::-1], config)[::-1]
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(together, backwards)


def test_out_is_overwritten_whole_and_returned() -> None:
    image, config = picture(90, 120), CropConfig(mean_rgb=CLIP_MEAN, size_px=32)
    masks, boxes = regions(image, 20)
    out = np.random.default_rng(0).integers(0, 256, (25, 32, 32, 3), np.uint8)
    before = out[20:].copy()
    found = crop_regions(image, masks, boxes, config, out=out[:20])
    assert found.base is out
    np.testing.assert_array_equal(found, crop_regions(image, masks, boxes, config))
    np.testing.assert_array_equal(out[20:], before)
    with pytest.raises(SchemaError, match="out must be"):
        crop_regions(image, masks, boxes, config, out=out)


def test_a_box_without_mask_shows_all_of_itself() -> None:
    image = picture(50, 70)
    config = CropConfig(mean_rgb=CLIP_MEAN, size_px=16)
    boxes = [(3, 4, 20, 9), (60, 40, 30, 30), (-5, -5, 10, 10)]
    found = crop_regions(image, [None] * 3, boxes, config)
    padded = np.pad(image, ((30, 30), (30, 30), (0, 0)))
    on_image = np.pad(np.ones((50, 70), np.uint8), 30)
    for crop, (left, top, width, height) in zip(found, boxes, strict=True):
        box = (left + 30, top + 30, width, height)
        np.testing.assert_array_equal(crop, plain_crop(padded, on_image, box, config))


def test_a_strided_image_and_no_regions() -> None:
    image, config = picture(50, 70), CropConfig(mean_rgb=CLIP_MEAN, size_px=8)
    flipped = crop_regions(image[:, ::-1], [None], [(0, 0, 70, 50)], config)
    np.testing.assert_array_equal(
        flipped, crop_regions(image[:, ::-1].copy(), [None], [(0, 0, 70, 50)], config)
    )
    assert crop_regions(image, [], [], config).shape == (0, 8, 8, 3)


def test_a_box_beside_its_mask_is_all_fill() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:9, 5:9] = 1
    mask_runs = rle.runs(rle.encode(mask), mask.shape)
    config = CropConfig(mean_rgb=CLIP_MEAN, size_px=16)
    found = crop_regions(picture(40, 50), [mask_runs], [(20, 20, 10, 15)], config)
    assert (found == config.fill_rgb).all()


def test_a_read_only_image_will_do() -> None:
    image, config = picture(90, 120), CropConfig(mean_rgb=CLIP_MEAN, size_px=32)
    masks, boxes = regions(image, 7)
    expected = crop_regions(image, masks, boxes, config)
    image.flags.writeable = False
    np.testing.assert_array_equal(crop_regions(image, masks, boxes, config), expected)


def test_other_threads_run_while_crops_are_made() -> None:
    image, config = picture(2500, 2500), CropConfig(mean_rgb=CLIP_MEAN)
    crop_regions(image[:9, :9], [None], [(0, 0, 9, 9)], config)
    began, ended, turns = threading.Event(), threading.Event(), 0

    def work() -> None:
        began.set()
        crop_regions(image, [None] * 30, [(0, 0, 2500, 2500)] * 30, config)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not ended.is_set():
        turns += 1
        time.sleep(0.001)
    thread.join()
    assert turns > 10  # holding the lock, the call would leave one turn


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, -1), (10, 0, 5, 5), (-5, 0, 5, 5)])
def test_a_box_that_shows_nothing_is_refused(box: tuple) -> None:
    with pytest.raises(SchemaError, match="box 1 is empty or off the image"):
        crop_regions(
            picture(10, 10), [None, None], [(0, 0, 2, 2), box], CropConfig(mean_rgb=CLIP_MEAN)
        )


def test_a_mask_of_another_image_is_refused() -> None:
    mask = rle.runs(rle.encode(np.ones((10, 9), np.uint8)), (10, 9))
    with pytest.raises(SchemaError, match="mask 0 is of 90 px, its image of 10 x 10 = 100"):
        crop_regions(picture(10, 10), [mask], [(0, 0, 9, 10)], CropConfig(mean_rgb=CLIP_MEAN))


def test_the_config_is_json_and_refuses_nonsense() -> None:
    config = CropConfig(mean_rgb=CLIP_MEAN)
    recorded = json.loads(json.dumps(dataclasses.asdict(config)))
    assert CropConfig(**{**recorded, "mean_rgb": tuple(recorded["mean_rgb"])}) == config
    for wrong in (
        {"size_px": 0},
        {"fill": "white"},
        {"fit": "stretch"},
        {"margin": -0.1},
        {"order": "never"},
        {"resampling": "nearest"},
        {"mean_rgb": (0, 0, 255)},
    ):
        with pytest.raises(ConfigError, match=f"crop.{next(iter(wrong))}"):
            CropConfig(**{"mean_rgb": CLIP_MEAN, **wrong})


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def smooth(height: int = 60, width: int = 90) -> Image.Image:
    """A gradient: survives JPEG almost unchanged, so colours and orientation can be compared."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 2, y * 3, 255 - x], -1).astype(np.uint8))


def rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "quality": 95}),
        ("RGB", {"exif": rotated_exif()}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_every_kind_of_jpeg_is_the_picture_in_stored_orientation(mode: str, options: dict) -> None:
    data = jpeg(smooth().convert(mode), **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = decode_image(data)
    assert found.shape == (60, 90, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 2
    # a comparison with the source too, so that both decoders cannot be wrong alike
    original = np.asarray(smooth().convert(mode).convert("RGB")).astype(int)
    assert np.abs(found - original).mean() < 6


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(progressive: bool) -> None:
    # A thumbnail in the EXIF block has an end marker of its own, which must not count.
    exif = Image.Exif()
    exif[0x010E] = jpeg(smooth(8, 8)).decode("latin1")
    data = jpeg(Image.fromarray(picture(60, 90)), progressive=progressive, exif=exif.tobytes())
    assert decode_image(data).shape == (60, 90, 3)
    for end in [*range(0, 200, 7), *range(200, len(data) - 1, 97), len(data) - 1]:
        with pytest.raises(SchemaError, match="JPEG"):
            decode_image(data[:end])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a....", b"\xff\xd8\xff\xd9", bytes(999)])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError, match="JPEG"):
        decode_image(data)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    data = bytearray(jpeg(smooth()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(SchemaError, match="60000 x 60000 px is above the limit"):
        decode_image(bytes(data))


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_a_damaged_jpeg_is_refused_or_is_a_picture(seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(jpeg(smooth(), progressive=bool(seed % 2)))
    for position in rng.integers(0, len(data), flips):
        data[position] = rng.integers(256)
    try:
        image = decode_image(bytes(data))
    except SchemaError:
        return
    assert image.ndim == 3
    assert image.shape[2] == 3


def test_changed_vector_code_never_meets_old_machine_code(tmp_path) -> None:
    """numba looks for changes in the calling file alone, so that one names the other's digest."""
    package = tmp_path / "tap_engine" / "pipeline"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    for name in ("simd.py", "resample.py"):
        shutil.copy(Path(resample.__file__).with_name(name), package)

    def load() -> str:
        command = [sys.executable, "-c", "import tap_engine.pipeline.resample"]
        found = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "c")}
        return subprocess.run(command, env=found, capture_output=True, text=True).stderr

    assert not load()
    (package / "simd.py").write_text((package / "simd.py").read_text() + "# changed\n")
    assert "pipeline/simd.py has changed" in load()


def test_a_jpeg_of_a_thousand_scans_is_refused_at_once() -> None:
    file = io.BytesIO()
    Image.new("L", (600, 600)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    assert decode_image(jpeg).shape == (600, 600, 3)
    last = jpeg.rindex(b"\xff\xda")
    bomb = jpeg[:-2] + jpeg[last:-2] * 1000 + b"\xff\xd9"
    with pytest.raises(SchemaError, match="scans, more than 100"):
        decode_image(bomb)
