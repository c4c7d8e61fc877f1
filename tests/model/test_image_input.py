import numpy as np
import pytest
from PIL import Image

from tap_engine.model.image_input import fit_image, open_image, open_mask, to_rgb
from tap_engine.schemas.errors import SourceError

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_arrays_of_every_usual_form() -> None:
    grey = RGB[:, :, 0]
    assert to_rgb(RGB).tolist() == RGB.tolist()
    for form in (grey, grey[:, :, None]):
        assert to_rgb(form).tolist() == np.repeat(grey[:, :, None], 3, 2).tolist()
    assert to_rgb(grey > 30).max() == 255
    deep = grey.astype(np.uint16) * 257  # 0..65535
    assert to_rgb(deep)[:, :, 1].tolist() == grey.tolist()


def test_transparent_parts_come_out_white() -> None:
    alpha = np.full((4, 6, 1), 255, np.uint8)
    alpha[0] = 0
    for form in (np.concatenate([RGB, alpha], 2), Image.fromarray(np.concatenate([RGB, alpha], 2))):
        found = to_rgb(form)
        assert (found[0] == 255).all()
        assert found[1:].tolist() == RGB[1:].tolist()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pillow_modes(mode) -> None:
    found = to_rgb(Image.new("L", (6, 4), 100).convert("RGB").convert(mode))
    assert found.shape == (4, 6, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - 100).max() <= 3  # colour spaces round


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_as_pillow_reads_them(dtype) -> None:
    image = Image.fromarray(np.full((4, 6), 100 * 257, dtype))
    assert image.mode in ("I;16", "I")
    assert (to_rgb(image) == 100).all()


def test_black_and_white() -> None:
    assert to_rgb(Image.fromarray(RGB[:, :, 0] > 30)).max() == 255


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 6), np.uint8), "move the channels last"),
        (np.zeros((4, 6, 2), np.uint8), r"found shape \[4, 6, 2\]"),
        (np.zeros((4,), np.uint8), r"found shape \[4\]"),
        (np.zeros((0, 6, 3), np.uint8), "empty"),
        (np.zeros((4, 6, 3), np.float32), r"uint8 image \(0\.\.255\), found float32"),
        (np.zeros((4, 6, 3), np.int64), "found int64"),
        (Image.fromarray(np.full((4, 6), 1e9, np.float32)), "mode 'F'"),
        ("image.jpg", "found shape"),
    ],
)
def test_what_is_no_image_is_refused(image, message) -> None:
    with pytest.raises(SourceError, match=message):
        to_rgb(image)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 4000), (4000, 1), (64, 64), (63, 65)])
def test_extreme_sizes_fit(h, w) -> None:
    fitted = fit_image(np.full((h, w, 3), 7, np.uint8), 64, (1, 2, 3))
    height, width = fitted.content_hw
    assert max(height, width) == 64 and min(height, width) >= 1
    assert (fitted.canvas[:height, :width] == 7).all()
    assert (fitted.canvas[height:] == (1, 2, 3)).all()
    assert fitted.scale == pytest.approx(64 / max(h, w))


def test_files(tmp_path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").tolist() == RGB.tolist()
    turned = Image.fromarray(RGB)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright: turn right by 90 degrees
    turned.save(tmp_path / "b.png", exif=exif)
    assert open_image(tmp_path / "b.png").tolist() == np.rot90(RGB, -1).tolist()


def test_masks_are_neither_black_nor_clear(tmp_path) -> None:
    expected = np.zeros((4, 6), bool)
    expected[1:3, 2:5] = True
    Image.fromarray(expected).save(tmp_path / "a.png")
    Image.fromarray(expected.astype(np.uint8)).save(tmp_path / "b.png")  # 1, not 255
    clear = np.full((4, 6, 4), 200, np.uint8)  # strokes on a clear layer
    clear[~expected, 3] = 0
    Image.fromarray(clear).save(tmp_path / "c.png")
    for name in "abc":
        assert open_mask(tmp_path / f"{name}.png").tolist() == expected.tolist()


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(SourceError, match="no image"):
        open_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(SourceError, match="not a readable image"):
        open_image(tmp_path / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.jpg")
    content = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"b\.jpg: not a readable image"):
        open_image(tmp_path / "b.jpg")


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "bomb.png")
    with pytest.raises(SourceError, match="exceeds limit"):
        open_image(tmp_path / "bomb.png")
