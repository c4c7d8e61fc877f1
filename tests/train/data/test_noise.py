import numpy as np
import torch

from tap_engine.train.data.noise import mixed_bits, seed_of, uniform


def test_uniform_is_a_function_of_seed_and_stream_alone():
    seeds = torch.tensor([5, 6, 7])
    whole = uniform(seeds, 3, 4)
    torch.testing.assert_close(uniform(seeds[1:2], 3, 4), whole[1:2])
    torch.testing.assert_close(uniform(seeds, 3, 2), whole[:, :2])
    assert not torch.equal(uniform(seeds, 4, 4), whole)


def test_uniform_is_uniform_and_neighbouring_seeds_and_streams_are_independent():
    values = uniform(torch.arange(50_000), 1, 4)
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values.flatten(), 20, 0, 1)
    # 200,000 draws in 20 bins: standard deviation 97.
    assert (counts - 10_000).abs().max() < 500
    columns = torch.cat([values, uniform(torch.arange(50_000), 2, 4), values.roll(1, 0)], 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(12)
    assert correlation.abs().max() < 0.02


def test_mix_broadcasts_and_reaches_all_bits():
    mixed = mixed_bits(1, np.arange(1000))
    assert mixed.shape == (1000,) and len(np.unique(mixed)) == 1000
    assert mixed[3] == mixed_bits(1, 3)
    bits = np.unpackbits(mixed.view(np.uint8)).reshape(1000, 64).mean(0)
    assert bits.min() > 0.4 and bits.max() < 0.6
    assert 0 <= seed_of(-1, 2**63) < 2**63
