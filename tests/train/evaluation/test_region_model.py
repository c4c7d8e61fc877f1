import numpy as np
import pytest

from tap_engine.model import predictor
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import ConfigError
from tap_engine.train.evaluation.region_model import TapRegions, Wanted, box_prompts
from tests.model.small import small_model
from tests.train.evaluation.eval_world import small_tap

RGB = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOXES = np.array([[5, 6, 60, 50], [30, 10, 110, 80], [0, 0, 20, 20]], np.float64)


@pytest.fixture(scope="module")
def tap() -> Tap:
    return small_tap()


def test_it_says_what_the_predictor_says(tap: Tap) -> None:
    model = TapRegions(tap, chunk=2)
    model.set_image(RGB)
    wanted = Wanted(mask=True, embedding=True, caption=True)
    parts = list(model.prompt(*box_prompts(BOXES), wanted))
    assert [len(part.chosen) for part in parts] == [2, 1]
    tap.set_image(RGB)
    regions = tap.predict(boxes=BOXES)
    for name, theirs in (
        ("masks", np.stack([region.mask for region in regions])[:, None]),
        ("embeddings", np.stack([region.sem_embed for region in regions])),
    ):
        ours = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert [text for part in parts for text in part.captions] == [r.caption for r in regions]
    ious = np.concatenate([part.chosen_iou for part in parts])
    np.testing.assert_allclose(ious, [region.iou for region in regions], atol=1e-5)


def test_points_are_routed_and_all_candidates_can_be_had(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "UPSAMPLED", 3)
    model = TapRegions(tap)
    model.set_image(RGB)
    points = np.array([[[20, 30], [0, 0]], [[90, 60], [0, 0]]], np.float32)
    labels = np.array([[1, 4], [1, 4]])
    (found,) = model.prompt(points, labels, Wanted(masks=True))
    assert found.masks.shape == (2, 4, 90, 120)
    assert found.embeddings.shape == (2, 0) and found.captions == []
    assert (found.chosen == found.iou[:, 1:].argmax(1) + 1).all()
    tap.set_image(RGB)
    for row, region in enumerate(tap.predict(points=points[:, :1])):
        np.testing.assert_array_equal(found.masks[row, region.candidate], region.mask)


def test_boxes_are_taken_as_they_are(tap: Tap) -> None:
    """The official scripts neither clip nor refuse; detectors do give such boxes."""
    model = TapRegions(tap)
    model.set_image(RGB)
    strange = np.array([[-5.0, -5, 300, 300], [10, 10, 10, 10]])
    (found,) = model.prompt(*box_prompts(strange), Wanted(mask=True))
    assert found.masks.shape == (2, 1, 90, 120)
    assert list(model.prompt(*box_prompts(np.empty((0, 4))), Wanted(mask=True))) == []


def test_captions_need_a_tokenizer() -> None:
    model = TapRegions(Tap(small_model()))
    model.set_image(RGB)
    with pytest.raises(ConfigError, match="tokenizer"):
        next(model.prompt(*box_prompts(BOXES), Wanted(caption=True)))
