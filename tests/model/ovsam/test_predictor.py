import numpy as np
import pytest
import torch

from tap_engine.model.ovsam.checkpoint import is_ovsam, read_about
from tap_engine.model.ovsam.classes import CLASSES_FILE
from tap_engine.model.ovsam.config import FusionConfig
from tap_engine.model.ovsam.predictor import OpenVocabularySam
from tap_engine.model.prompts import make_prompts
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.model.ovsam.small import small_classes, small_model

PICTURE = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)


@pytest.fixture
def predictor() -> OpenVocabularySam:
    return OpenVocabularySam(small_model(), classes=small_classes())


def test_boxes_and_points_give_named_masks_of_the_pictures_size(predictor) -> None:
    predictor.set_image(PICTURE)
    boxes = predictor.predict(boxes=[[3, 4, 40, 30], [10, 10, 70, 45]], top_k=3)
    points = predictor.predict(points=[[[20, 20]]])
    assert [region.mask.shape for region in boxes + points] == [(50, 80)] * 3
    for region in boxes:
        assert len(region.concepts) == 3
        assert {c.name for c in region.concepts} <= set(predictor.concepts.names)
        assert region.concepts[0].probability >= region.concepts[1].probability
        assert 0 <= region.iou <= 1 and region.caption is None
    assert predictor.predict(boxes=[]) == []
    with pytest.raises(ConfigError, match="off the image"):
        predictor.predict(points=[[[200, 20]]])


def test_a_saved_model_is_the_same_model(predictor, tmp_path) -> None:
    predictor.save(tmp_path, {"recipe": "test"})
    found = OpenVocabularySam.from_pretrained(tmp_path)
    assert is_ovsam(tmp_path) and not is_ovsam(tmp_path / "nothing")
    assert read_about(tmp_path)[1] == {"recipe": "test"}
    for model in (predictor, found):
        model.set_image(PICTURE)
    a, b = (model.predict(boxes=[[3, 4, 40, 30]])[0] for model in (predictor, found))
    assert np.array_equal(a.mask, b.mask) and a.concepts == b.concepts
    (tmp_path / CLASSES_FILE).unlink()
    nameless = OpenVocabularySam.from_pretrained(tmp_path)
    nameless.set_image(PICTURE)
    assert nameless.predict(boxes=[[3, 4, 40, 30]])[0].concepts == ()
    with pytest.raises(ConfigError, match="names alone are not enough"):
        nameless.set_concepts(["ant"])


def test_another_kind_of_checkpoint_is_refused() -> None:
    from tap_engine.model.checkpoint import named

    with pytest.raises(CheckpointError, match=r"Tap\.from_pretrained"):
        OpenVocabularySam.from_pretrained(named("sample"))


def test_fusion_at_its_ends_is_the_head_and_clip_exactly(predictor) -> None:
    picture = predictor.set_image(PICTURE)
    prompts = make_prompts((50, 80), boxes=[[3, 4, 40, 30], [10, 10, 70, 45]])
    for weight, part in ((0.0, "head_logits"), (1.0, "clip_logits")):
        predictor.fusion = FusionConfig(alpha=weight, beta=weight)
        answers = predictor.answer(picture, prompts.points, prompts.labels)
        inside = (answers.mask_logits > 0).flatten(1).any(1)
        assert inside.any()
        expected = getattr(answers, part).log_softmax(-1)
        assert torch.equal(answers.fused[inside], expected[inside])


def test_points_are_named_where_the_predicted_mask_is(predictor) -> None:
    picture = predictor.set_image(PICTURE)
    prompts = make_prompts((50, 80), points=[[[20, 20]], [[60, 40]]])
    plain = predictor.answer(picture, prompts.points, prompts.labels)
    from tap_engine.model.ovsam.model import boxes_of_masks

    assert torch.equal(plain.boxes, boxes_of_masks(plain.mask_logits))
    truth = torch.tensor([[0.0, 0, 30, 30], [40, 20, 80, 50]])
    leaked = predictor.answer(picture, prompts.points, prompts.labels, regions=truth)
    assert torch.equal(leaked.mask_logits, plain.mask_logits)
    torch.testing.assert_close(leaked.boxes, truth * 64 / 80, atol=1e-4, rtol=0)


def test_boxes_are_named_where_they_are(predictor) -> None:
    picture = predictor.set_image(PICTURE)
    prompts = make_prompts((50, 80), boxes=[[10, 5, 40, 30]])
    found = predictor.answer(picture, prompts.points, prompts.labels).boxes
    torch.testing.assert_close(found, torch.tensor([[8.0, 4, 32, 24]]))


def test_names_can_be_chosen_and_split(predictor) -> None:
    predictor.set_image(PICTURE)
    predictor.set_concepts(["dog", "ant"])
    assert predictor.predict(boxes=[[3, 4, 40, 30]])[0].concepts[0].name in ("dog", "ant")
    wide = small_classes()
    wide = type(wide)(wide.names, torch.zeros(5, 1, 7), wide.kinds)
    with pytest.raises(ConfigError, match="made with another CLIP"):
        predictor.set_concepts(wide)


def test_chunks_change_nothing(predictor) -> None:
    predictor.set_image(PICTURE)
    boxes = [[3 + i, 4, 40, 30 + i] for i in range(5)]
    whole = predictor.predict(boxes=boxes)
    predictor.prompts_per_chunk, predictor.classes_per_chunk = 2, 2
    parts = predictor.predict(boxes=boxes)
    for a, b in zip(whole, parts, strict=True):
        assert a.concepts[0].name == b.concepts[0].name
        assert (a.mask != b.mask).mean() < 0.001
