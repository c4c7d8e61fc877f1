import io

import numpy as np
import pytest
from PIL import Image

from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.sources.photo import read_photo
from tap_engine.schemas.errors import SchemaError
from tests.pipeline.sources.own_photos import HEIGHT, WIDTH, encoded, pixels

RGB = Image.fromarray(pixels())
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera does to a picture before it writes each orientation."""


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB.transpose(TURNS[orientation]), "JPEG", quality=95, subsampling=0, exif=exif)


@pytest.mark.parametrize(
    ("data", "same"),
    [
        (encoded(RGB, "JPEG"), True),
        (encoded(RGB, "PNG"), True),
        (encoded(RGB, "WEBP", lossless=True), True),
        (encoded(RGB.convert("L"), "PNG"), True),
        (encoded(RGB, "BMP"), False),
        (encoded(RGB, "TIFF"), False),
        (encoded(RGB.convert("P"), "PNG"), False),
        (encoded(RGB.convert("1"), "PNG"), False),
        (encoded(RGB.convert("CMYK"), "JPEG"), True),
    ],
    ids=["jpeg", "png", "webp", "grey", "bmp", "tiff", "palette", "one bit", "cmyk"],
)
def test_usual_forms_are_kept_and_others_become_png(data, same) -> None:
    photo = read_photo(data, "a.png")
    assert (photo.data == data) == same
    assert decode_image(photo.data).shape == (HEIGHT, WIDTH, 3)
    written = read_photo(data, "a.png", keep="jpeg")
    assert written.data.startswith(b"\xff\xd8")


@pytest.mark.parametrize("orientation", TURNS)
def test_the_turned_picture_is_stored_where_masks_lie_on_it(orientation) -> None:
    photo = read_photo(turned(orientation), "a.jpg", stated=(WIDTH, HEIGHT))
    assert (photo.width, photo.height) == (WIDTH, HEIGHT)
    found = decode_image(photo.data).astype(int)
    assert np.abs(found - pixels()).mean() < 5
    assert found[8:16, 7:13].min() > 180  # the bright block is where the viewer shows it


def test_the_stored_picture_is_kept_where_masks_lie_on_that() -> None:
    data = turned(6)
    photo = read_photo(data, "a.jpg", stated=(HEIGHT, WIDTH))
    assert photo.data == data and (photo.width, photo.height) == (HEIGHT, WIDTH)
    assert "stored" in photo.notes[0]
    of_masks = read_photo(data, "a.jpg", stated=None, masks=[(HEIGHT, WIDTH)])
    assert of_masks.width == HEIGHT


def test_no_size_means_what_viewers_show_and_is_said() -> None:
    photo = read_photo(turned(6), "a.jpg")
    assert (photo.width, photo.height) == (WIDTH, HEIGHT) and "no size tells" in photo.notes[0]


def test_sizes_that_fit_neither_are_refused_with_both() -> None:
    with pytest.raises(SchemaError, match="120 x 80 stated, the file is 60 x 40"):
        read_photo(encoded(RGB), "a.png", stated=(120, 80))
    swapped = read_photo(encoded(RGB), "a.png", stated=(40, 60), reach=(55, 30))
    assert "swapped" in swapped.notes[0]
    with pytest.raises(SchemaError, match="40 x 60 stated"):
        read_photo(encoded(RGB), "a.png", stated=(40, 60), reach=(30, 55))


def test_depth_alpha_and_several_pictures_are_read_as_stated() -> None:
    grey = np.full((4, 4), 257 * 100, np.uint16)
    deep = read_photo(encoded(grey), "a.png")
    assert decode_image(deep.data)[0, 0].tolist() == [100] * 3 and "16 bits" in deep.notes[0]
    clear = np.dstack([pixels(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    white = read_photo(encoded(clear), "a.png")
    assert decode_image(white.data).min() == 255 and "white" in white.notes[0]
    moving = encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)], duration=50)
    assert "first is taken" in read_photo(moving, "a.gif").notes[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<html>", "html"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"%PDF-1.4", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "raw"),
        (bytes(99), "no picture"),
        (encoded(np.zeros((4, 4), np.float32), "TIFF"), "floating"),
    ],
)
def test_what_is_no_photo_is_named(data, words) -> None:
    with pytest.raises(SchemaError, match=words):
        read_photo(data, "a.cr2" if words == "raw" else "a.jpg")


def test_a_bomb_is_refused_by_its_header() -> None:
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    with pytest.raises(SchemaError, match="too large"):
        read_photo(out.getvalue(), "a.png")


def test_a_cut_png_is_refused_by_the_decoder() -> None:
    with pytest.raises(SchemaError, match="cut short"):
        decode_image(encoded(RGB)[:-900])
