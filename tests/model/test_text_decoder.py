import pytest
import torch

from tap_engine.model import text_decoder
from tap_engine.model.config import TextConfig
from tap_engine.model.text_decoder import TextDecoder, caption_lengths, rotary, rotate

BOS, EOS = 1, 2


def decoder(**settings) -> TextDecoder:
    torch.manual_seed(0)
    config = TextConfig(
        depth=3, embed_dim=32, num_heads=4, vocab_size=50, max_seq_len=12, **settings
    )
    model = TextDecoder(config, prompt_dim=16)
    torch.nn.init.normal_(model.encoder.weight, std=2)  # captions differ from row to row
    return model.eval()


def greedy_by_teacher_forcing(model, tokens, steps):
    ids = torch.full((len(tokens), 1), BOS)
    for _ in range(steps):
        next_id = model(tokens, ids)[:, -1].argmax(-1)
        ids = torch.cat([ids, next_id[:, None]], 1)
    return ids


def test_cached_decoding_is_teacher_forced_argmax() -> None:
    model, tokens = decoder(), torch.randn(6, 16)
    expected = greedy_by_teacher_forcing(model, tokens, 10)
    found = model.generate(tokens, bos_id=BOS, eos_id=EOS)
    lengths = caption_lengths(expected, EOS)
    for row, length in enumerate(lengths.tolist()):
        assert found[row, :length].tolist() == expected[row, :length].tolist()


def test_rows_that_ended_repeat_eos_and_the_last_ends_generation() -> None:
    model, tokens = decoder(), torch.randn(64, 16)
    free = model.generate(tokens, bos_id=BOS, eos_id=-1)
    eos_id = int(free[:, 3].mode().values)  # an id that ends some captions early
    ids = model.generate(tokens, bos_id=BOS, eos_id=eos_id)
    ended = (ids == eos_id).any(1)
    assert 0 < ended.sum() < len(ids)
    for row, unbounded in zip(ids.tolist(), free.tolist(), strict=True):
        end = row.index(eos_id) if eos_id in row else len(row)
        assert row[:end] == unbounded[:end]
        assert set(row[end:]) <= {eos_id}
    short = ids[ended].eq(eos_id).int().argmax(1)
    alone = model.generate(tokens[ended], bos_id=BOS, eos_id=eos_id)
    assert alone.shape[1] == short.max() + 1


def test_room_is_what_the_context_leaves() -> None:
    model, tokens = decoder(), torch.randn(3, 16)
    assert model.generate(tokens, bos_id=BOS, eos_id=-1).shape == (3, 11)  # BOS and 10 new ones
    assert model.generate(tokens, bos_id=BOS, eos_id=-1, max_new_tokens=4).shape == (3, 5)
    assert model.generate(tokens, bos_id=BOS, eos_id=-1, max_new_tokens=99).shape == (3, 11)
    assert model.generate(tokens[:0], bos_id=BOS, eos_id=EOS).shape[0] == 0


def test_padding_after_a_caption_changes_nothing_before_it() -> None:
    model, tokens = decoder(), torch.randn(2, 16)
    ids = torch.tensor([[BOS, 5, 6, 7], [BOS, 8, 9, 4]])
    padded = torch.cat([ids, torch.full((2, 3), 49)], 1)
    torch.testing.assert_close(model(tokens, padded)[:, :4], model(tokens, ids))


def test_rotation_depends_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()
    products = []
    for start in (0, 5, 31):
        turns = rotary(start, 4, 8, torch.device("cpu")).double()
        products.append((rotate(q, turns[:1]).double() * rotate(k, turns[3:]).double()).sum())
    assert products[1].item() == pytest.approx(products[0].item(), abs=1e-5)
    assert products[2].item() == pytest.approx(products[0].item(), abs=1e-5)
    assert products[0].item() != pytest.approx((q * k).sum().item(), abs=1e-2)


def test_dropout_acts_on_probabilities_and_both_branches(monkeypatch) -> None:
    model = decoder(dropout=0.5)
    tokens, ids = torch.randn(2, 16), torch.tensor([[BOS, 5], [BOS, 8]])
    assert torch.equal(model(tokens, ids), model(tokens, ids))
    rates, calls = [], []
    attention = text_decoder.attention

    def record(*inputs, dropout, **settings):
        rates.append(dropout)
        return attention(*inputs, dropout=dropout, **settings)

    monkeypatch.setattr(text_decoder, "attention", record)
    for block in model.transformer.blocks:
        block.dropout.register_forward_hook(lambda module, *_: calls.append(module.p))
    model(tokens, ids)
    model.train()(tokens, ids)
    assert rates == [0.0] * 3 + [0.5] * 3
    assert calls == [0.5] * 2 * 3 * 2
