"""Starts an image encoder from other weights: a MAE encoder, or our model at another size.

SAM's encoder is refused with the reason.

Nothing here runs code from a file: `.pth` files go through torch's weights-only reader.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tap_engine.model.checkpoint import (
    load_weights,
    read_card,
    require_same_shapes,
)
from tap_engine.model.convnet_encoder import ConvnetEncoder
from tap_engine.model.image_encoder import VitEncoder, resize_positions
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """Report of an initialisation: what matched and what did not.

    Attributes:
        matched: encoder parameters that were set.
        resized: (from, to) cells along a side of the position table, if it was resized.
        patch: (from, to) px of the patch filter, if it was resized.
        fresh: encoder parameters the file has no counterpart of; they keep their own start.
        unused: names in the file that TAP has no place for.
    """

    matched: tuple[str, ...]
    resized: tuple[int, int] | None
    patch: tuple[int, int] | None
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} encoder tensors set"]
        if self.resized:
            lines.append(f"position table resized from {self.resized[0]} to {self.resized[1]}")
        if self.patch:
            lines.append(f"patch filter resized from {self.patch[0]} to {self.patch[1]} px")
        lines.append(f"{len(self.fresh)} start fresh (relative bias, cross-window, neck)")
        if self.unused:
            lines.append(f"{len(self.unused)} of the file unused: {', '.join(self.unused[:6])}")
        return "; ".join(lines)


@torch.no_grad()
def initialise_encoder(encoder: VitEncoder, path: str | Path) -> EncoderReport:
    """Starts the image encoder from a MAE-pretrained ViT of the same width and depth.

    Takes patch embedding, blocks, final norm and the position table (without its class token,
    resized bicubically to this grid), the patch filter resized where patches have another size:
    MAE-H has 14 px, this network 16. A MAE decoder in the file is left out. The channels of the
    patch embedding are reversed: MAE saw RGB and this network sees BGR, with the same mean and
    deviation per colour, so that a patch comes out as it did there.

    Args:
        encoder: the model's `image_encoder`.
        path: a `.pth` (torch zip, read without running code) or `.safetensors` file.

    Raises:
        CheckpointError: no MAE ViT, SAM's encoder, or another width or depth.
    """
    weights = _read_any(path)
    if any(name.endswith(("rel_pos_h", "rel_pos_w")) for name in weights):
        raise CheckpointError(
            f"{path}: SAM's image encoder does not fit TAP's: SAM has query-based relative "
            "positions (rel_pos_h/w), global attention in four blocks and LayerNorm in the neck; "
            "TAP has an index-based bias, cross-window convolutions and batch norm. TAP starts "
            "from MAE weights (mae_pretrain_vit_base.pth and larger)"
        )
    positions = weights.pop("pos_embed", None)
    if positions is None or "blocks.0.attn.qkv.weight" not in weights:
        raise CheckpointError(
            f"{path}: expected a MAE ViT with 'pos_embed' and 'blocks.0.attn.qkv.weight', found "
            f"{sorted(weights)[:4]}"
        )
    own = encoder.state_dict()
    positions = positions.flatten(0, -2)
    side = int(len(positions) ** 0.5)
    if len(positions) - side * side not in (0, 1):
        raise CheckpointError(f"{path}: {len(positions)} positions are no square grid")
    grid = round(len(own["pos_embed.weight"]) ** 0.5)
    weights["pos_embed.weight"] = resize_positions(positions[-side * side :], grid)
    patches = weights["patch_embed.proj.weight"].flip(1)
    patch, ours = patches.shape[-1], own["patch_embed.proj.weight"].shape[-1]
    weights["patch_embed.proj.weight"] = resize_patch_filter(patches, ours)
    taken = {
        name: value for name, value in weights.items() if name in own or name.startswith("blocks.")
    }
    require_same_shapes(
        {name: tuple(value.shape) for name, value in own.items() if _in_mae(name)},
        {name: tuple(value.shape) for name, value in taken.items()},
        f"{path} (a ViT of another size)",
    )
    for name, value in taken.items():
        own[name].copy_(value)
    parameters = {name for name, _ in encoder.named_parameters()}
    return EncoderReport(
        matched=tuple(taken),
        resized=(side, grid) if side != grid else None,
        patch=(patch, ours) if patch != ours else None,
        fresh=tuple(sorted(parameters - taken.keys())),
        unused=tuple(sorted(weights.keys() - taken.keys())),
    )


def resize_patch_filter(weight: Tensor, size: int) -> Tensor:
    """Filter of larger patches that answers to an enlarged patch as the old one to the original.

    Enlarging is linear, B x. The filter w' with <B x, w'> = <x, w> for every patch x is the
    pseudo-inverse of B^T, times w; exact where patches grow, the best fit where they shrink.

    Args:
        weight: [C, 3, p, p].
        size: new side, px.

    Returns:
        [C, 3, size, size], of the same dtype.

    Source: Beyer et al. 2023, FlexiViT, section 3.4 (PI-resize), with bicubic enlarging.
    """
    old = weight.shape[-1]
    if old == size:
        return weight
    each = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    enlarged = F.interpolate(each, (size, size), mode="bicubic", align_corners=False)
    inverse = torch.linalg.pinv(enlarged.flatten(1))  # rows of `enlarged` are columns of B
    return (weight.flatten(2).double() @ inverse.T).to(weight.dtype).unflatten(2, (size, size))


@torch.no_grad()
def start_from(model: TapModel, path: str | Path, *, text: bool = True) -> tuple[int, int] | None:
    """`load_weights`, but the position table is resized where the image size differs.

    A training may so begin at a low resolution, where a step costs a third, and go on at the final
    one. Only the convolutional encoder's one table is resized: a ViT's blocks have tables of their
    own, which belong to the window and the grid.

    Args:
        model: filled in place.
        path: checkpoint file or folder.
        text: False leaves the text decoder as it is.

    Returns:
        (from, to) px of the image size, if they differ.

    Raises:
        CheckpointError: another network.
    """
    size, found = model.config.image_size, read_card(path).config.image_size
    if found == size or not isinstance(model.image_encoder, ConvnetEncoder):
        load_weights(model, path, text=text)
        return None
    other = TapModel(replace(model.config, image_size=found))
    load_weights(other, path, text=text)
    state, table = other.state_dict(), "image_encoder.pos_embed.weight"
    state[table] = resize_positions(state[table], model.config.grid_size)
    for name, value in model.state_dict().items():
        if text or not name.startswith("text_decoder."):
            value.copy_(state[name])
    return found, size


def _in_mae(name: str) -> bool:
    """Whether a tensor of our encoder has a counterpart in a MAE ViT."""
    parts = ("patch_embed.", "pos_embed.", "blocks.", "norm.")
    return name.startswith(parts) and ".rel_pos_embed." not in name


def _read_any(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weight file {str(path)!r}")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types; all mean "not such a file"
        raise CheckpointError(f"{path}: not readable as tensors alone: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("image_encoder."): value for name, value in tensors.items()}
