"""A model of a few thousand parameters with every part of the official network."""

import torch

from tap_engine.model.config import DecoderConfig, TapConfig, TextConfig, VitConfig
from tap_engine.model.tap import TapModel


def small_config(**settings) -> TapConfig:
    values = {
        "image_size": 64,
        "embed_dim": 32,
        "encoder": VitConfig(depth=4, embed_dim=24, num_heads=2, window_size=2),
        "decoder": DecoderConfig(num_heads=4, mlp_dim=48, sem_hidden_dim=40, sem_embed_dim=16),
        "text": TextConfig(depth=2, embed_dim=32, num_heads=4, vocab_size=300, max_seq_len=12),
    }
    return TapConfig(**(values | settings))


def small_model(seed: int = 0, **settings) -> TapModel:
    torch.manual_seed(seed)
    return TapModel(small_config(**settings)).eval()
