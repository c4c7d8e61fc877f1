"""Parameter names of the released checkpoints -> ours.

The released weights are under a non-commercial licence; nothing of them is here. Who has them may
load them: the names below are those of their file.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_TRANSFORMER = (
    (r"\blayers\.(\d+)\.(self|cross|norm|mlp)", r"blocks.\1.\2"),
    (r"\.out_proj\.", ".proj."),
    (r"norm_final_attn", "norm"),
    (r"mlp\.lin(\d)", r"mlp.fc\1"),
)

_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone": (
        (r"^stem\.0\.", "conv1."),
        (r"^stem\.1\.", "bn1."),
        (r"^stem\.3\.", "conv2."),
        (r"^stem\.4\.", "bn2."),
        (r"^stem\.6\.", "conv3."),
        (r"^stem\.7\.", "bn3."),
        (r"^head\.", "attnpool."),
    ),
    "convnext": (
        (r"^stem\.", "trunk.stem."),
        (r"^layer(\d)\.", lambda m: f"trunk.stages.{int(m[1]) - 1}."),  # type: ignore[dict-item]
        (r"^head\.0\.norm\.", "trunk.head.norm."),
        (r"^head\.1\.mlp\.", "head.mlp."),
    ),
    "adapter": (
        (r"^level_encoding\.weight$", "level_vectors"),
        (r"^patch_embeds\.(\d)\.projection\.", r"projections.\1."),
        (r"mlp\.lin(\d)", r"mlp.fc\1"),
    ),
    "sam_encoder": ((r"^patch_embed\.proj\.", "patch_embed."), (r"mlp\.lin(\d)", r"mlp.fc\1")),
    "pyramid": (
        (r"^lateral_convs\.(\d)\.conv\.", r"fpn.inner_blocks.\1.0."),
        (r"^fpn_convs\.(\d)\.conv\.", r"fpn.layer_blocks.\1.0."),
    ),
    "prompt_encoder": (
        (r"^pe_layer\.positional_encoding_gaussian_matrix$", "coord_matrix"),
        (r"^no_mask_embed\.", "no_mask."),
        (r"^not_a_point_embed\.", "not_a_point."),
    ),
    "head": (
        (r"^mask_decoder\.", "decoder."),
        *_TRANSFORMER,
        (r"decoder\.mask_tokens\.", "decoder.mask_token."),
        (r"output_upscaling", "output_conv"),
        (r"output_hypernetworks_mlps\.0\.", "mask_pred."),
        (r"^label_token\.", "decoder.label_token."),
        (r"^label_mlp\.", "decoder.label_pred."),
        (r"^roi_conv\.0\.conv\.", "region_embedding.project."),
    ),
}

_PARTS = {
    "backbone.": ("backbone", "backbone.tower."),
    "neck.": ("adapter", "adapter."),
    "fpn_neck.": ("pyramid", "pyramid."),
    "pe.": ("prompt_encoder", "prompt_encoder."),
    "mask_decoder.": ("head", ""),
}


def rename(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part under our names.

    Args:
        part: a key of the rules: "backbone", "convnext", "adapter", "sam_encoder", "pyramid",
            "prompt_encoder" or "head" (the decoder and the region embedding).
        state: under the released names, relative to the part.
    """
    found = {}
    for name, value in state.items():
        for pattern, ours in _RULES[part]:
            name = re.sub(pattern, ours, name)
        found[name] = value
    if part == "prompt_encoder":
        tables = [found.pop(f"point_embeddings.{i}.weight") for i in range(4)]
        found["point_embed.weight"] = torch.cat(tables)
    return found


def rename_model(state: Mapping[str, Tensor], kind: str = "resnet") -> dict[str, Tensor]:
    """A whole released model under our names.

    Args:
        state: of the released file.
        kind: of the backbone, `BackboneConfig.kind`.
    """
    found: dict[str, Tensor] = {}
    for prefix, (part, ours) in _PARTS.items():
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if part == "backbone" and kind == "convnext":
            part = "convnext"
        found |= {ours + name: value for name, value in rename(part, mine).items()}
    return found
