import math

import pytest
import torch

from tap_engine.model.concept_projector import (
    concept_entropy,
    concept_log_probs,
    concept_logits,
    concept_weights,
    top_concepts,
)


def test_against_the_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    image = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    logits = torch.empty(2, 3, 7, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            for c in range(7):
                cosine = image[i, j] @ text[c] / image[i, j].norm() / text[c].norm()
                logits[i, j, c] = 22.0 * cosine
    expected = logits - logits.exp().sum(-1, keepdim=True).log()
    found = concept_log_probs(image, concept_weights(text, 22.0))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    ids, probabilities = top_concepts(found, 3)
    assert ids.tolist() == expected.argsort(-1, descending=True)[..., :3].tolist()
    torch.testing.assert_close(probabilities, found.exp().gather(-1, ids))


def test_entropy_of_known_distributions() -> None:
    uniform = torch.full((4,), 1 / 8).log().new_full((8,), math.log(1 / 8))
    assert concept_entropy(uniform).item() == pytest.approx(math.log(8), rel=1e-6)
    assert concept_entropy(torch.tensor([0.0, -200.0])).item() == pytest.approx(0, abs=1e-6)


def test_autocast_does_not_reach_the_product() -> None:
    weights = concept_weights(torch.eye(64), 100.0)
    embedding = torch.linspace(0.1, 1, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = concept_logits(embedding, weights)
    torch.testing.assert_close(found, concept_logits(embedding, weights), atol=0, rtol=0)
