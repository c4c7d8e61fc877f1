from dataclasses import replace

import pytest
import torch

from tap_engine.model.ovsam.classes import (
    BASE,
    NEITHER,
    NOVEL,
    TEMPLATES,
    ClassTable,
    class_logits,
    make_classes,
    synonyms,
)
from tap_engine.model.ovsam.config import FusionConfig
from tap_engine.model.ovsam.fusion import IMPOSSIBLE, best_classes, fuse
from tap_engine.model.ovsam.union import aliases_of, union_classes
from tap_engine.schemas.errors import ConfigError
from tests.model.ovsam.small import NAMES, small_classes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("laptop_computer", ("laptop computer",)),
        ("Sofa/couch", ("sofa", "couch")),
        ("crab_or_lobster, Shellfish", ("crab", "lobster", "shellfish")),
        ("tape_(sticky_cloth_or_paper)", ("tape (sticky cloth or paper)",)),
        ("seal, seal", ("seal",)),
        ("  odd   blanks ", ("odd blanks",)),
    ],
)
def test_a_name_lists_its_synonyms(name: str, expected: tuple[str, ...]) -> None:
    assert synonyms(name) == expected


def encode(texts) -> torch.Tensor:
    """A text tower that counts letters: every text another direction."""
    return torch.stack(
        [torch.tensor([text.count(c) + 0.1 for c in "abcdefghijklmnopqrst"]) for text in texts]
    )


def test_prototypes_are_means_over_templates_and_classes_repeat_their_first() -> None:
    table = make_classes(("sofa/couch", "lamp"), encode)
    assert table.prototypes.shape == (2, 2, 20)
    torch.testing.assert_close(table.prototypes.norm(dim=-1), torch.ones(2, 2))
    assert torch.equal(table.prototypes[1, 0], table.prototypes[1, 1])
    sentences = encode([t.format("couch") for t in TEMPLATES])
    mean = torch.nn.functional.normalize(sentences, dim=-1).mean(0)
    expected = torch.nn.functional.normalize(mean, dim=0)
    torch.testing.assert_close(table.prototypes[0, 1], expected)
    assert table.kinds.tolist() == [NOVEL, NOVEL]
    assert len(TEMPLATES) == 14


def test_a_split_marks_what_is_in_neither_list() -> None:
    table = small_classes().with_kinds(base=("ant", "bee"), novel=("cat",))
    assert table.kinds.tolist() == [BASE, BASE, NOVEL, NEITHER, NEITHER]
    with pytest.raises(ConfigError, match="in the base and in the novel"):
        table.with_kinds(base=("ant",), novel=("ant",))
    with pytest.raises(ConfigError, match="no class 'fox'"):
        table.with_kinds(novel=("fox",))


def test_a_table_survives_its_file_and_gives_subsets(tmp_path) -> None:
    table = small_classes().with_kinds(base=("ant",), novel=("bee",))
    table.save(tmp_path / "classes.safetensors")
    found = ClassTable.load(tmp_path / "classes.safetensors")
    assert found.names == table.names and found.fingerprint == table.fingerprint
    assert torch.equal(found.prototypes, table.prototypes)
    assert torch.equal(found.kinds, table.kinds)
    some = found.subset(("bee", "ant"))
    assert some.names == ("bee", "ant") and torch.equal(some.prototypes[0], table.prototypes[1])
    with pytest.raises(ConfigError, match="first 'fox'"):
        found.subset(("fox",))
    with pytest.raises(ConfigError, match="more than once"):
        ClassTable(("a", "a"), torch.zeros(2, 1, 3), torch.zeros(2))


def test_chunks_give_the_same_scores_within_a_memory_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    count, each, width, regions = 19_167, 7, 64, 100
    prototypes = torch.randn(count, each, width, generator=generator)
    prototypes /= prototypes.norm(dim=-1, keepdim=True)
    embeddings = torch.randn(regions, width, generator=generator)
    whole = class_logits(embeddings, prototypes, 4.6052)
    found = class_logits(embeddings, prototypes, 4.6052, chunk=1024)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(1), whole.argmax(1))
    result = regions * (count + 1) * 4
    # All scores of all prototypes at once are 54 MB; a chunk of 1,024 classes holds 2.9 MB of them.
    largest = largest_allocation(embeddings, prototypes, 1024)
    assert largest <= max(result, 4 * regions * each * 1024) * 1.01
    assert largest_allocation(embeddings, prototypes, 0) > 50e6


def largest_allocation(embeddings: torch.Tensor, prototypes: torch.Tensor, chunk: int) -> int:
    """Bytes of the largest tensor that is made on the way."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in {
                prototypes.untyped_storage().data_ptr()
            }:
                seen.append(out.untyped_storage().nbytes())
            return out

    with Watch():
        class_logits(embeddings, prototypes, 4.6052, chunk=chunk)
    return max(seen)


def logits(seed: int) -> torch.Tensor:
    return 10 * torch.randn(6, len(NAMES) + 1, generator=torch.Generator().manual_seed(seed))


def test_fusion_with_no_weight_is_the_head_and_with_all_of_it_clip_exactly() -> None:
    head, clip, seen = logits(0), logits(1), torch.ones(6, dtype=torch.bool)
    kinds = torch.tensor([1, 2, 1, 2, 1])
    only_head = fuse(head, clip, kinds, FusionConfig(alpha=0, beta=0), seen)
    only_clip = fuse(head, clip, kinds, FusionConfig(alpha=1, beta=1), seen)
    assert torch.equal(only_head, head.log_softmax(-1))
    assert torch.equal(only_clip, clip.log_softmax(-1))


def test_fusion_weighs_novel_classes_by_beta_and_ignores_clip_under_an_empty_mask() -> None:
    head, clip = logits(0), logits(1)
    seen = torch.tensor([True] * 5 + [False])
    found = fuse(head, clip, torch.tensor([1, 2, 0, 2, 1]), FusionConfig(alpha=0.2, beta=0.7), seen)
    q, p = head.log_softmax(-1), clip.log_softmax(-1)
    torch.testing.assert_close(found[:5, 0], 0.8 * q[:5, 0] + 0.2 * p[:5, 0])
    torch.testing.assert_close(found[:5, 1], 0.3 * q[:5, 1] + 0.7 * p[:5, 1])
    torch.testing.assert_close(found[:5, 5], 0.8 * q[:5, 5] + 0.2 * p[:5, 5])
    assert (found[:, 2] == IMPOSSIBLE).all()
    assert torch.equal(found[5, [0, 1, 3, 4, 5]], q[5, [0, 1, 3, 4, 5]])
    ids, values = best_classes(found, 9)
    assert ids.shape == (6, 5) and not (ids[:, 0] == 2).any()
    assert (values.diff(dim=1) <= 0).all()


def test_a_union_joins_by_first_synonym_and_keeps_where_a_name_is_from(tmp_path) -> None:
    lists = {
        "objects": ["Sofa/couch", "Lamp", "Crane"],
        "lvis": ["sofa", "crane", "tape_(sticky_cloth_or_paper)", "lamp, lantern"],
    }
    union = union_classes(lists)
    assert [found.name for found in union] == [
        "sofa",
        "lamp",
        "crane",
        "tape (sticky cloth or paper)",
    ]
    assert union[0].texts == ("sofa", "couch") and union[1].texts == ("lamp", "lantern")
    assert union[0].members == (("objects", "Sofa/couch"), ("lvis", "sofa"))
    aliases = aliases_of(union)
    assert aliases["Sofa/couch"] == aliases["sofa"] == 0 and aliases["lamp, lantern"] == 1
    made = make_classes([f.name for f in union], encode, texts=[f.texts for f in union])
    table = replace(made, aliases=aliases)
    table.save(tmp_path / "classes.safetensors")
    found = ClassTable.load(tmp_path / "classes.safetensors")
    assert found.ids["Crane"] == 2 and found.ids == table.ids
    some = found.with_kinds(base=("lamp", "sofa")).subset(("lamp", "sofa"))
    assert some.ids == {"lamp": 0, "Lamp": 0, "lamp, lantern": 0, "sofa": 1, "Sofa/couch": 1}
    other = union_classes({"lvis": lists["lvis"], "objects": lists["objects"]})
    again = make_classes([f.name for f in other], encode, texts=[f.texts for f in other])
    assert again.fingerprint != table.fingerprint  # the order of ids is part of it
