import numpy as np
import pytest
from PIL import Image, ImageDraw

from tap_engine.model import picture
from tap_engine.model.picture import (
    Mark,
    Prompt,
    describe,
    draw_marks,
    draw_sheet,
    region_mark,
    top_level,
)
from tap_engine.model.region import Concept, Region

GREY = np.full((120, 160, 3), 100, np.uint8)


def square(top: int, left: int, side: int, shape=(120, 160)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def region(mask: np.ndarray, caption: str | None = None, *, entropy: float = 1.0) -> Region:
    nothing = np.zeros(1, np.float32)
    return Region(mask, 0.9, 0, (Concept("dog", 0.7),), entropy, caption, nothing, nothing)


def mark(mask: np.ndarray, text: str = "", **more: object) -> Mark:
    return Mark(mask=mask, name="dog", text=text, **more)  # type: ignore[arg-type]


def drawn(*marks: Mark, rgb: np.ndarray = GREY, side_px: int | None = 160, **more) -> np.ndarray:
    return np.asarray(draw_marks(rgb, marks, side_px=side_px, **more)).astype(int)


def changed(image: np.ndarray) -> np.ndarray:
    return np.abs(image - 100).max(-1) > 3


def test_masks_are_tinted_and_the_rest_is_left_alone() -> None:
    mask = square(60, 20, 50)
    image = drawn(mark(mask))
    assert image.shape == GREY.shape
    assert changed(image)[mask].all()
    far = np.ones_like(mask)
    far[57:113, 17:73] = False  # the outline lies on the edge
    assert not changed(image)[far].any()
    assert (GREY == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_tiny_pictures_and_empty_masks_do_not_fail(size) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    marks = [mark(np.ones(size, bool), "a dog"), mark(np.zeros(size, bool), "nothing")]
    assert max(draw_marks(rgb, marks).size) == 1120


def test_a_small_picture_is_enlarged_with_its_masks_in_place() -> None:
    mask = square(60, 20, 50)
    assert draw_marks(GREY, [mark(mask)]).size == (1120, 840)
    large = drawn(mark(mask), side_px=480)
    inside = np.kron(mask, np.ones((3, 3))) > 0
    assert changed(large)[inside].mean() > 0.99
    assert not changed(large)[:170].any()
    big = np.full((900, 1500, 3), 100, np.uint8)
    assert draw_marks(big, []).size == (1500, 900), "a photo keeps its size"


def test_a_surface_is_tinted_lightly() -> None:
    rgb = np.full((100, 100, 3), 100, np.uint8)
    tints = []
    for mask in (square(60, 60, 30, (100, 100)), square(0, 0, 100, (100, 100))):
        tints.append(np.abs(drawn(mark(mask), rgb=rgb, side_px=100)[75, 75] - 100).max())
    assert 0 < tints[1] < tints[0] / 2


def test_one_name_has_one_colour() -> None:
    one, two = square(10, 10, 30), square(70, 100, 30)
    same = drawn(Mark(mask=one, name="dog", text=""), Mark(mask=two, name="dog", text=""))
    other = drawn(Mark(mask=one, name="dog", text=""), Mark(mask=two, name="cat", text=""))
    assert (same[25, 25] == same[85, 115]).all()
    assert (other[25, 25] != other[85, 115]).any()


def test_labels_never_cover_each_other_or_leave_the_picture(monkeypatch) -> None:
    boxes: list[tuple[float, float, float, float]] = []
    whole = ImageDraw.ImageDraw.rounded_rectangle

    def noted(self, box, *rest, **more):
        boxes.append(box)
        whole(self, box, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", noted)
    rng = np.random.default_rng(0)
    marks = []
    for number in range(40):
        top, left = rng.integers(0, 90), rng.integers(0, 130)
        marks.append(mark(square(top, left, 25), f"a thing with the number {number}"))
    image = draw_marks(GREY, marks)
    assert len(boxes) > 25, "there is room for most of them"
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= image.width and bottom <= image.height
        for other in boxes[:i]:
            apart = right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
            assert apart, (boxes[i], other)


def test_parts_are_outlined_only_where_that_is_asked() -> None:
    whole, part = square(10, 10, 100), square(30, 30, 40)
    assert top_level([part, whole]) == [1]
    assert top_level([part, square(30, 60, 40)]) == [0, 1]
    alone = drawn(mark(whole), side_px=480)
    outlined = drawn(mark(whole), mark(part, "ear"), side_px=480, parts=False)
    tinted = drawn(mark(whole), mark(part), side_px=480)
    middle = np.s_[100:200, 100:200]
    assert (outlined[middle] == alone[middle]).all()
    assert (outlined != alone).any()
    assert (tinted[middle] != alone[middle]).any()


def test_negative_clicks_look_negative() -> None:
    prompt = Prompt(points=[(40, 60), (120, 60)], labels=[1, 0])
    image = drawn(mark(square(0, 0, 1), prompt=prompt), side_px=640)
    for x, colour in ((160, picture._POSITIVE), (480, picture._NEGATIVE)):
        disc = image[232:249, x - 8 : x + 9]
        assert ((disc == colour).all(-1)).any()
    vertical = image[235:238, [160, 480]].min(-1)
    assert (vertical[:, 0] > 200).any() and not (vertical[:, 1] > 200).any(), "a plus, a minus"


def test_a_box_without_a_mask_is_drawn_and_named() -> None:
    prompt = Prompt(box_xyxy=(40, 30, 120, 80))
    nothing = np.zeros((120, 160), bool)
    plain, named = drawn(mark(nothing, prompt=prompt)), drawn(mark(nothing, "dog", prompt=prompt))
    assert changed(plain)[30, 45:115].all() and changed(plain)[35:75, 40].all()
    assert not changed(plain)[40:70, 50:110].any()
    assert (plain != named).any()


def test_predictions_become_marks() -> None:
    mask = square(60, 20, 50)
    assert region_mark(region(mask)).text == "dog 0.70"
    assert region_mark(region(mask, "a small dog")).text == "dog 0.70: a small dog"
    unsure = region_mark(region(mask, "a small dog", entropy=4.0))
    assert unsure.unknown and unsure.text == "unknown (dog?): a small dog"
    nothing = np.zeros(1, np.float32)
    nameless = Region(mask, 0.9, 0, (), float("nan"), None, nothing, nothing)
    assert region_mark(nameless).text == "region"
    assert region_mark(nameless, number=0).name != region_mark(nameless, number=1).name


def test_a_sheet_has_room_for_every_panel() -> None:
    panels = [Image.new("RGB", size, (0, 0, k + 1)) for k, size in enumerate([(80, 40)] * 5)]
    sheet = np.asarray(draw_sheet(panels, columns=2, heads=("truth", "prediction")))
    for k in range(5):
        assert (sheet == (0, 0, k + 1)).all(-1).sum() == 80 * 40


def test_lines_for_people() -> None:
    mask = np.ones((2, 2), bool)
    assert describe(region(mask)) == "dog 0.70"
    assert describe(region(mask, "a small dog")) == "dog 0.70: a small dog"
