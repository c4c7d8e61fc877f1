"""The `sample` teacher as a folder: an open_clip model small enough to ship with the package.

    open_clip_config.json        open_clip's own form: model_cfg and preprocess_cfg
    open_clip_model.safetensors  weights, float16 but for norms and scale
    bpe.txt.gz                   CLIP's byte-pair merges, cut to the first 1,534: 2,048 token ids
    training.json                what trained it, and how well it does

`open_clip.create_model("local-dir:FOLDER")` reads the first two. open_clip has no relative name
for a tokenizer file, so the third needs
`teacher.open_tokenizer`. sample/teacher_training.py makes it.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import default_bpe

from tap_engine.model.tensor_file import write_tensors
from tap_engine.pipeline.teacher import BPE_FILE
from tap_engine.schemas.store_settings import CropConfig

CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "training.json",
)

IMAGE_PX = 64

TOKEN_IDS = 2048

_BYTE_IDS, _SPECIAL_IDS = 512, 2

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": IMAGE_PX,
        "layers": [2, 2, 2, 2],
        "width": 16,
        "head_width": 32,
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": TOKEN_IDS,
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}
"""A ModifiedResNet of 0.9 M parameters with CLIP's attention pooling, and a two-layer text tower;
2.4 M in all. The longest concept name in the longest template takes 25 of the 32 tokens."""

PREPROCESS_CONFIG: dict[str, Any] = {
    "size": IMAGE_PX,
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

CROPS = CropConfig(mean_rgb=tuple(PREPROCESS_CONFIG["mean"]), size_px=IMAGE_PX)
"""How the data engine crops for this teacher."""


def new_model() -> torch.nn.Module:
    """The architecture with random weights."""
    return open_clip.model.CLIP(**MODEL_CONFIG)


def write_teacher(folder: Path, model: torch.nn.Module, training: dict[str, Any]) -> None:
    """Write a model of MODEL_CONFIG as a folder that open_clip reads.

    Args:
        folder: an existing folder.
        model: what `new_model` returned.
        training: settings and results, for training.json.
    """
    write_config(folder)
    (folder / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", "utf-8")
    weights = {
        # Norms, running statistics and the logit scale are few and want their precision.
        name: tensor.half() if tensor.ndim > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    write_tensors(folder / WEIGHTS_FILE, weights, {})


def write_config(folder: Path) -> None:
    """Write the model's configuration, and open_clip's byte-pair file cut to TOKEN_IDS ids."""
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as whole:
        merges = whole.read().split("\n")
    kept = merges[: 1 + TOKEN_IDS - _BYTE_IDS - _SPECIAL_IDS]  # the first line is a header
    # gzip.compress with a fixed time gives the same file wherever it is made.
    (folder / BPE_FILE).write_bytes(gzip.compress("\n".join(kept).encode("utf-8"), mtime=0))
