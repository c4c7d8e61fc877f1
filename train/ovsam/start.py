"""What a run starts from: frozen CLIP, the teacher's position table, its decoder and prompts."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tap_engine.model.ovsam.backbone import backbone_of
from tap_engine.model.ovsam.checkpoint import load_ovsam
from tap_engine.model.ovsam.config import BackboneConfig
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.prompt_encoder import PromptEncoder
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.ovsam.config import OvsamTrainConfig
from tap_engine.train.ovsam.teachers import SamTeacher, TapTeacher

CLIP_WEIGHTS, CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def backbone_of_folder(folder: str | Path) -> BackboneConfig:
    """The sizes of a CLIP by its open_clip folder.

    Raises:
        ConfigError: no such folder, or its image tower is not convolutional.
    """
    path = Path(folder) / CLIP_CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is no open_clip folder: it has no {CLIP_CONFIG}")
    return backbone_of(Path(folder).name, json.loads(path.read_text("utf-8"))["model_cfg"])


def initial_ovsam(
    config: OvsamTrainConfig, teacher: TapTeacher | SamTeacher | None
) -> tuple[OvsamModel, list[str]]:
    """The network with its starting weights, and what was loaded; seed torch first.

    Args:
        config: of the run.
        teacher: of stage 1.

    Raises:
        ConfigError: nothing says which frozen CLIP to use.
        CheckpointError: weights of another model.
    """
    init, notes = config.init, []
    model = OvsamModel(config.model)
    if init.weights:
        state = load_ovsam(model_folder(Path(init.weights))).state_dict()
        require_fit(model, state, init.weights)
        model.load_state_dict(state)
        notes.append(f"{init.weights}: all weights set")
    elif not init.clip:
        raise ConfigError(
            "nothing says which frozen CLIP to use: --set init.clip=FOLDER (open_clip's form, or a "
            ".safetensors), or --set init.weights=CHECKPOINT of an earlier stage"
        )
    if init.clip:
        path = Path(init.clip)
        file = path / CLIP_WEIGHTS if path.is_dir() else path
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}
        model.backbone.load_tower(state)
        notes.append(f"{init.clip}: frozen CLIP set")
    if teacher is not None and not init.weights:
        notes.append(start_from_teacher(model, teacher))
    return model, notes


def require_fit(model: OvsamModel, state: dict[str, Tensor], where: str) -> None:
    """Refuses weights of another size.

    Raises:
        CheckpointError: the first that differs.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(own.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else None
        if own.get(name) != found:
            raise CheckpointError(
                f"{where}: {name} is {found}, the recipe's model has {own.get(name)}"
            )


def start_from_teacher(model: OvsamModel, teacher: TapTeacher | SamTeacher) -> str:
    """Takes the teacher's position table, prompt encoder and decoder; says what was taken.

    Raises:
        ConfigError: the teacher has other sizes than the model's decoder.
    """
    if isinstance(teacher, TapTeacher):
        start_from_tap(model, teacher.model)
        return "the teacher's prompt encoder and the decoder's parts that both have"
    from tap_engine.train.ovsam.sam_start import start_from_sam

    start_from_sam(model, teacher.model)
    return "the teacher's position table, prompt encoder and decoder"


@torch.no_grad()
def start_from_tap(model: OvsamModel, tap: TapModel) -> None:
    """Cuts TAP's decoder down to mask 0, the one for boxes; its IoU token becomes the label token.

    TAP's encoder has no position table of the adapter's width: the adapter gets a fixed code of
    sines, which is what such tables look like.

    Raises:
        ConfigError: another width, another decoder.
    """
    source, own = tap.image_decoder, model.decoder
    theirs, ours = source.transformer.state_dict(), own.transformer.state_dict()
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in ours.items()}:
        raise ConfigError("the teacher's decoder has other sizes than head.decoder and head.dim")
    own.transformer.load_state_dict(theirs)
    own.output_conv.load_state_dict(source.output_conv.state_dict())
    own.mask_pred.load_state_dict(source.mask_pred[0].state_dict())
    own.mask_token.weight.copy_(source.mask_tokens.weight[:1])
    own.label_token.weight.copy_(source.iou_token.weight)
    if own.mask_bias is not None and source.mask_bias is not None:
        own.mask_bias.copy_(source.mask_bias)
    prompts = model.prompt_encoder
    prompts.coord_matrix.copy_(tap.prompt_encoder.coord_matrix)
    prompts.point_embed.weight.copy_(tap.prompt_encoder.point_embed.weight[:4])
    prompts.not_a_point.weight.copy_(tap.prompt_encoder.point_embed.weight[4:5])
    prompts.no_mask.weight.zero_()
    side, width = model.config.grid, model.config.adapter.embed_dim
    code = PromptEncoder(width, model.config.image_size, fourier_scale=0.25)
    model.adapter.pos_embed.copy_(code.grid_code((side, side))[None])
