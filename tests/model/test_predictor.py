import numpy as np
import pytest
import torch

from tap_engine.model.checkpoint import ModelCard, save_model
from tap_engine.model.concept_projector import concept_entropy, concept_log_probs
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.predictor import Tap
from tap_engine.model.text_tokenizer import train_bpe
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.golden import checks
from tests.model.small import small_config, small_model
from tests.support import GOLDEN, requires_gpu

RGB = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
BOXES = [[2, 3, 40, 30], [10, 10, 79, 47], [0, 0, 80, 48]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_bpe(["a red apple", "a blue house"], 300)
    config = small_config()
    card = ModelCard(config=config, tokenizer=tokenizer.fingerprint)
    save_model(folder, small_model().state_dict(), card)
    torch.manual_seed(0)
    ConceptTable(("cat", "dog", "tree", "sky"), torch.randn(4, 16), 22.0).save(
        folder / "concepts.safetensors"
    )
    tokenizer.save(folder)
    return folder


@pytest.fixture
def tap(folder) -> Tap:
    tap = Tap.from_pretrained(folder)
    tap.set_image(RGB)
    return tap


def test_regions_say_everything(tap) -> None:
    regions = tap.predict(boxes=BOXES, top_k=2)
    assert len(regions) == 3
    for region in regions:
        assert region.mask.shape == (48, 80) and region.mask.dtype == bool
        assert region.candidate == 0
        assert len(region.concepts) == 2
        assert region.concepts[0].probability >= region.concepts[1].probability
        assert isinstance(region.caption, str)
        assert region.sem_token.shape == (32,) and region.sem_embed.shape == (16,)
        table = ConceptTable(("cat", "dog", "tree", "sky"), torch.zeros(4, 16), 22.0)
        assert {c.name for c in region.concepts} <= set(table.names)
    log_probs = concept_log_probs(torch.from_numpy(regions[0].sem_embed), tap._weights)
    assert regions[0].entropy == pytest.approx(concept_entropy(log_probs).item(), rel=1e-5)
    assert regions[0].concepts[0].probability == pytest.approx(log_probs.exp().max().item())


def test_chunks_do_not_change_anything(tap) -> None:
    whole = tap.predict(boxes=BOXES)
    tap.prompts_per_chunk = 2
    for one, other in zip(whole, tap.predict(boxes=BOXES), strict=True):
        assert (one.mask == other.mask).mean() > 0.999
        np.testing.assert_allclose(one.sem_embed, other.sem_embed, atol=1e-4)
        assert one.caption == other.caption


def test_the_image_is_encoded_once(tap, monkeypatch) -> None:
    monkeypatch.setattr(tap.model, "encode_image", None)
    tap.predict(points=[[10, 10]])
    tap.predict(mask=RGB[:, :, 0] > 100)


def test_several_images_in_use(tap) -> None:
    first = tap.predict(boxes=BOXES[0])[0]
    kept = tap.set_image(RGB)
    tap.set_image(RGB[:20, ::-1].copy())
    assert tap.predict(boxes=[0, 0, 10, 10])[0].mask.shape == (20, 80)
    again = tap.predict(boxes=BOXES[0], image=kept)[0]
    np.testing.assert_array_equal(again.mask, first.mask)


def test_concepts_by_name_and_by_table(tap) -> None:
    tap.set_concepts(["sky", "dog"])
    assert {c.name for c in tap.predict(boxes=BOXES[0])[0].concepts} == {"sky", "dog"}
    tap.set_concepts(["cat"])  # still known
    assert tap.predict(boxes=BOXES[0])[0].concepts[0].probability == pytest.approx(1)
    with pytest.raises(ConfigError, match="'bird'"):
        tap.set_concepts(["cat", "bird"])
    tap.set_concepts(ConceptTable(("bird", "fish"), torch.randn(2, 16), 100.0))
    assert {c.name for c in tap.predict(boxes=BOXES[0])[0].concepts} == {"bird", "fish"}
    with pytest.raises(ConfigError, match="width 16, the concept table has 8"):
        tap.set_concepts(ConceptTable(("bird",), torch.randn(1, 8), 100.0))


def test_without_concepts_and_tokenizer(folder) -> None:
    tap = Tap(small_model())
    tap.set_image(RGB)
    region = tap.predict(boxes=BOXES[0])[0]
    assert region.concepts == () and np.isnan(region.entropy) and region.caption is None
    with pytest.raises(ConfigError, match=r"no concepts\.safetensors"):
        tap.set_concepts(["cat"])


def test_no_boxes_no_regions_and_no_image_is_an_error(tap) -> None:
    assert tap.predict(boxes=[]) == []
    with pytest.raises(ConfigError, match="call set_image first"):
        Tap(small_model()).predict(boxes=BOXES)


def test_captions_only_if_wanted(tap) -> None:
    assert tap.predict(boxes=BOXES[0], captions=False)[0].caption is None


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (300, 2)])
def test_images_of_extreme_shape(tap, size) -> None:
    tap.set_image(np.full((*size, 3), 9, np.uint8))
    region = tap.predict(boxes=[0, 0, size[1], size[0]])[0]
    assert region.mask.shape == size


def test_points_take_the_candidate_of_highest_iou(tap) -> None:
    for region in tap.predict(points=[[[10, 10]], [[40, 20]], [[79, 47]]]):
        assert region.candidate in (1, 2, 3)


def test_a_foreign_tokenizer_is_refused(folder, tmp_path) -> None:
    save_model(
        tmp_path, small_model().state_dict(), ModelCard(config=small_config(), tokenizer="ab")
    )
    train_bpe(["x"], 300).save(tmp_path)
    with pytest.raises(CheckpointError, match="trained with tokenizer ab"):
        Tap.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the model only 300"):
        Tap(small_model(), tokenizer=train_bpe([" ".join(map(str, range(500)))] * 3, 400))


def test_half_precision_gives_the_same_masks(folder, tap) -> None:
    half = Tap.from_pretrained(folder, precision="bf16")
    half.set_image(RGB)
    for one, other in zip(tap.predict(boxes=BOXES), half.predict(boxes=BOXES), strict=True):
        assert (one.mask == other.mask).mean() > 0.95
        assert other.sem_embed.dtype == np.float32


def test_agrees_with_the_official_pipeline() -> None:
    """The whole way, from pixels of any size to masks, names and caption ids."""
    f = checks.Fixture(GOLDEN / "07_end_to_end.safetensors")
    model = checks.end_to_end_model(f)
    table = ConceptTable(
        tuple(f"concept {i}" for i in range(30)), f["in/concept_src_weights"].T, 100.0
    )
    tap = Tap(model, concept_table=table)
    for row in (0, 1):
        tap.set_image(np.ascontiguousarray(f[f"in/image_{row}_bgr_uint8"].numpy()[:, :, ::-1]))
        prompts = slice(2 * row, 2 * row + 2)
        points = f["in/points_orig"][prompts].numpy()
        found = {
            "box": tap.predict(boxes=f["in/boxes_orig"][prompts].numpy(), top_k=3),
            "points": tap.predict(points=points[..., :2], point_labels=points[..., 2], top_k=3),
        }
        for kind, regions in found.items():
            for index, region in enumerate(regions):
                at = 2 * row + index
                expected = f[f"out/{kind}/mask_image_{row}"][index].numpy().astype(bool)
                assert (region.mask != expected).mean() <= 0.001
                assert region.candidate == f[f"out/{kind}/mask_index"][at]
                names = [f"concept {i}" for i in f[f"out/{kind}/concept_index"][at].tolist()]
                assert [c.name for c in region.concepts] == names


@pytest.mark.gpu
def test_on_a_gpu(folder, tap) -> None:
    requires_gpu()
    fast = Tap.from_pretrained(folder, device="cuda", precision="bf16")
    fast.set_image(RGB)
    for one, other in zip(tap.predict(boxes=BOXES), fast.predict(boxes=BOXES), strict=True):
        assert (one.mask == other.mask).mean() > 0.95


def test_raw_candidates_are_what_regions_are_made_of(tap) -> None:
    corners = np.array(BOXES, np.float32).reshape(3, 2, 2)
    parts = list(tap.candidates(corners, np.full((3, 2), (2, 3)), chunk=2))
    assert [len(part) for part in parts] == [2, 1]
    regions = tap.predict(boxes=BOXES)
    for found, told in zip(parts, (regions[:2], regions[2:]), strict=True):
        assert found.mask_logits.shape[:2] == found.iou.shape == (len(told), 4)
        masks = tap.masks(found.mask_logits, found.image)
        for row, region in enumerate(told):
            np.testing.assert_array_equal(masks[row, 0], region.mask)
            np.testing.assert_allclose(found.sem_embeds[row, 0], region.sem_embed, atol=1e-5)
            assert found.iou[row, found.chosen[row]] == pytest.approx(region.iou, abs=1e-5)
    assert not torch.is_inference_mode_enabled(), "a generator must not leave its mode behind"
    with pytest.raises(ConfigError, match="call set_image first"):
        next(Tap(small_model()).candidates(corners, np.full((3, 2), (2, 3))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "expected one of auto, fp32, fp16, bf16"),
        ({"device": "gpu"}, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_one_vocabulary_of_devices_and_precisions(folder, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Tap.from_pretrained(folder, **options)
