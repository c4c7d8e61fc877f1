"""Short texts through a short context: the same embeddings, at the cost of their words."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from tap_engine.pipeline.teacher import Teacher, TeacherConfig, encode_short, text_ends

TEXTS = ["a bus", "a photo of a red double-decker bus near the old town hall", "x", "two dogs"]
VISION = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}


def small_clip(kind: type, **text) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(16, VISION, TEXT | text).eval().requires_grad_(False)
    for value in model.parameters():
        value.normal_(std=0.2)
    return model


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("pooling", ["argmax", "eos"])
def test_a_cut_context_gives_the_same(kind: type, pooling: str) -> None:
    model = small_clip(kind, pool_type=pooling, eos_id=49407)
    tokens = open_clip.SimpleTokenizer(context_length=32)(TEXTS)
    whole = F.normalize(model.encode_text(tokens), dim=-1)
    ends = text_ends(model, tokens)
    assert ends is not None and ends.tolist() == [(row > 0).sum() - 1 for row in tokens]
    short = F.normalize(encode_short(model, tokens, int(ends.max()) + 1), dim=-1)
    assert float((whole - short).abs().max()) < 1e-6
    assert float((whole[0] - whole[3]).abs().max()) > 1e-2, "texts differ"
    one_less = F.normalize(encode_short(model, tokens, int(ends.max())), dim=-1)
    assert float((whole - one_less).abs().max()) > 1e-3, "the last word counts"
    again = F.normalize(model.encode_text(tokens), dim=-1)
    assert torch.equal(whole, again), "the model is as before"


@pytest.mark.parametrize(
    "settings", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}]
)
def test_other_towers_see_everything(settings: dict) -> None:
    model = small_clip(open_clip.CustomTextCLIP, **settings)
    assert text_ends(model, open_clip.SimpleTokenizer(context_length=32)(TEXTS)) is None


def test_the_teacher_uses_it_and_keeps_the_order(monkeypatch) -> None:
    teacher = Teacher(TeacherConfig(name="sample", device="cpu"))
    seen: list[int] = []
    block = teacher._model.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    texts = [f"{'red ' * (k % 7)}bus" for k in range(300)]
    found = teacher.encode_texts(texts)
    tokens = torch.from_numpy(teacher.tokens(texts))
    ends = text_ends(teacher._model, tokens)
    assert ends is not None and seen == [int(ends.sort()[0][255]) + 1, int(ends.max()) + 1]
    whole = F.normalize(teacher._model.encode_text(tokens).float(), dim=-1)
    assert float((found - whole).abs().max()) < 1e-6
    assert teacher.encode_texts([]).shape == (0, teacher.info.embed_dim)
