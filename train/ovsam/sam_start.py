"""A SAM of transformers -> the parts of Open-Vocabulary SAM that start from it."""

import re
from typing import Any

import torch
from torch import Tensor

from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.schemas.errors import ConfigError

_PROMPTS = {
    "not_a_point_embed.weight": "not_a_point.weight",
    "no_mask_embed.weight": "no_mask.weight",
    "mask_embed.conv1": "mask_downscaling.0",
    "mask_embed.layer_norm1": "mask_downscaling.1",
    "mask_embed.conv2": "mask_downscaling.3",
    "mask_embed.layer_norm2": "mask_downscaling.4",
    "mask_embed.conv3": "mask_downscaling.6",
}

_DECODER = (
    (r"^transformer\.layers\.", "transformer.blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.out_proj\.", ".proj."),
    (r"mlp\.lin(\d)", r"mlp.fc\1"),
    (r"^transformer\.layer_norm_final_attn", "transformer.norm"),
    (r"^upscale_conv1", "output_conv.0"),
    (r"^upscale_layer_norm", "output_conv.1"),
    (r"^upscale_conv2", "output_conv.3"),
    (r"^output_hypernetworks_mlps\.0\.proj_in", "mask_pred.layers.0"),
    (r"^output_hypernetworks_mlps\.0\.layers\.0", "mask_pred.layers.1"),
    (r"^output_hypernetworks_mlps\.0\.proj_out", "mask_pred.layers.2"),
)


@torch.no_grad()
def start_from_sam(model: OvsamModel, sam: Any) -> None:
    """Takes SAM's position table, prompt encoder and mask decoder.

    Of the four mask tokens the first is kept, the one for unambiguous prompts; the IoU token
    becomes the label token's start.

    Args:
        model: filled in place.
        sam: transformers' SamModel.

    Raises:
        ConfigError: the SAM has other sizes.
    """
    decoder, prompts = model.decoder.state_dict(), model.prompt_encoder.state_dict()
    for name, value in sam.mask_decoder.state_dict().items():
        ours = name
        for pattern, new in _DECODER:
            ours = re.sub(pattern, new, ours)
        if ours in decoder:
            _set(decoder, ours, value)
    tokens = sam.mask_decoder.mask_tokens.weight
    _set(decoder, "mask_token.weight", tokens[:1])
    _set(decoder, "label_token.weight", sam.mask_decoder.iou_token.weight)
    for name, value in sam.prompt_encoder.state_dict().items():
        for theirs, new in _PROMPTS.items():
            if name.startswith(theirs):
                _set(prompts, name.replace(theirs, new), value)
    points = [layer.weight for layer in sam.prompt_encoder.point_embed]
    _set(prompts, "point_embed.weight", torch.cat(points))
    code = sam.shared_image_embedding.positional_embedding
    _set(prompts, "coord_matrix", code)
    model.decoder.load_state_dict(decoder)
    model.prompt_encoder.load_state_dict(prompts)
    _set({"adapter.pos_embed": model.adapter.pos_embed}, "adapter.pos_embed", _table(sam))


def _table(sam: Any) -> Tensor:
    return sam.vision_encoder.pos_embed


def _set(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    if state[name].shape != value.shape:
        raise ConfigError(
            f"the SAM has {name} of {list(value.shape)}, the recipe's model "
            f"{list(state[name].shape)}: choose model.adapter and model.head of its sizes"
        )
    state[name].copy_(value)
