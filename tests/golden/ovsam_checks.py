"""The kinds of fixtures of Open-Vocabulary SAM; see checks.py for how a check works.

What the released model keeps as one row per prompt is [pictures, prompts] here; weight names are
translated by `released_names`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tap_engine.model.config import DecoderConfig
from tap_engine.model.ovsam.backbone import FrozenClip, mask_pool
from tap_engine.model.ovsam.classes import class_logits
from tap_engine.model.ovsam.clip2sam import Pyramid, RegionEmbedding, roi_levels
from tap_engine.model.ovsam.config import (
    AdapterConfig,
    BackboneConfig,
    FusionConfig,
    HeadConfig,
    OvsamConfig,
)
from tap_engine.model.ovsam.decoder import MaskDecoder
from tap_engine.model.ovsam.fusion import best_classes, fuse
from tap_engine.model.ovsam.image_input import axis_scales, fit_picture
from tap_engine.model.ovsam.model import OvsamModel, boxes_of_masks, full_size_logits
from tap_engine.model.ovsam.prompt_encoder import SamPromptEncoder
from tap_engine.model.ovsam.released_names import rename, rename_model
from tap_engine.model.ovsam.sam2clip import Sam2Clip
from tap_engine.model.ovsam.sam_encoder import SamImageEncoder
from tap_engine.train.evaluation.interactive import InteractiveScore, centre_point, mask_iou
from tap_engine.train.ovsam.losses import class_loss, distillation_loss, mask_losses
from tests.golden.fixture import Fixture, Verdict

LOG_SCALE = {"exp(4.6052)": 4.6052}


def levels_of(f: Fixture, prefix: str = "in/level") -> tuple[Tensor, ...]:
    return tuple(f[f"{prefix}{i}"] for i in range(4))


def load(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """All weights must fit; a count of batches may be absent."""
    missing, unknown = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not unknown, f"missing {missing[:3]}, unknown {unknown[:3]}"
    module.eval()


def adapter_config(c: dict) -> AdapterConfig:
    return AdapterConfig(
        embed_dim=c["embed"],
        depth=c["depth"],
        num_heads=c["heads"],
        window=c["window"],
        global_blocks=tuple(c["global_blocks"]),
        out=c["out"],
    )


def backbone_config(c: dict) -> BackboneConfig:
    if c["kind"] == "resnet":
        return BackboneConfig(
            name="fixture",
            layers=tuple(c["blocks"]),
            widths=tuple(c["width"] * 4 * 2**i for i in range(4)),
            embed_dim=c["embed"],
            pool_grid=c["feat_size"],
            heads=c["heads"],
        )
    return BackboneConfig(
        name="fixture",
        kind="convnext",
        layers=tuple(c["blocks"]),
        widths=tuple(c["widths"]),
        embed_dim=c["embed"],
        hidden=c["hidden"],
    )


def head_config(c: dict) -> HeadConfig:
    return HeadConfig(
        dim=c["dim"],
        decoder=DecoderConfig(num_heads=c["heads"], mlp_dim=c["mlp"], dropout=0.0),
        pyramid_dim=c["fpn_channels"],
        roi_grid=c["roi_output"],
        finest_scale=c["finest_scale"],
        log_scale=LOG_SCALE[c["logit_scale"]],
    )


def sam2clip(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    grid = tuple(side // 16 for side in c["input_hw"])
    adapter = Sam2Clip(adapter_config(c), tuple(c["in_channels"]), grid)
    load(adapter, rename("adapter", f.weights))
    found = adapter(levels_of(f))
    yield f.close("out/feature", found)
    yield f.close("out/loss_distill", distillation_loss(found, f["in/teacher"]).mean())


def pyramid_and_regions(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    assert (c["sampling_ratio"], c["aligned"]) == (0, True)
    pyramid = Pyramid(tuple(c["in_channels"]), c["out"])
    weights = {k: v for k, v in f.weights.items() if k.startswith("fpn.")}
    load(pyramid, rename("pyramid", {k.removeprefix("fpn."): v for k, v in weights.items()}))
    head = HeadConfig(
        pyramid_dim=c["out"], roi_grid=c["roi_output"], finest_scale=c["finest_scale"]
    )
    region = RegionEmbedding(head, c["region_dim"])
    load(region, {"project.weight": f["weights/roi_conv.0.conv.weight"]})
    maps, rois = pyramid(levels_of(f)), f["in/rois"]
    for i, step in enumerate((4, 2, 1, 1)):
        yield f.close(f"out/fpn{i}", maps[i][:, :, ::step, ::step])
    yield f.same("out/levels", roi_levels(rois[:, 1:], c["finest_scale"]))
    yield f.close("out/roi_feats", region.align(maps, rois)[:, :, ::3, ::3])
    yield f.close("out/region_embed", region(maps, rois))


def prompt_encoder(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    encoder = SamPromptEncoder(c["embed"], tuple(c["image"]))
    load(encoder, rename("prompt_encoder", f.weights))
    corners, corner_labels = as_corners(f["in/boxes"])
    yield f.close("out/box_tokens", encoder(corners, corner_labels))
    yield f.close("out/point_tokens", encoder(*with_padding(f["in/points"])))
    yield f.close("out/dense", encoder.dense(tuple(c["grid"])))
    yield f.close("out/grid_pe", encoder.grid_code(tuple(c["grid"])).permute(2, 0, 1)[None])


def as_corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes.unflatten(-1, (2, 2)), torch.tensor([2, 3]).expand(len(boxes), 2)


def with_padding(points: Tensor) -> tuple[Tensor, Tensor]:
    """[M, 1, 2] -> points and labels with the padding point that SAM adds."""
    both = torch.cat([points.float(), torch.zeros(len(points), 1, 2)], dim=1)
    return both, torch.tensor([1, 4]).expand(len(points), 2)


class Head(torch.nn.Module):
    """Decoder and region embedding together, as the released head holds them."""

    def __init__(self, c: dict) -> None:
        super().__init__()
        config = head_config(c)
        self.decoder = MaskDecoder(config, c["region_dim"])
        self.region_embedding = RegionEmbedding(config, c["region_dim"])

    def masks(self, image: Tensor, dense: Tensor, grid_pe: Tensor, sparse: Tensor) -> Tensor:
        """[P, 4h, 4w] of one picture."""
        pos = grid_pe[0].permute(1, 2, 0)
        return self.decoder(image + dense, pos, sparse[None])[0][0]

    def classes(self, f: Fixture, pyramid: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        embeddings = self.region_embedding(pyramid, rois)
        return class_logits(embeddings, f["in/prototypes"], LOG_SCALE[f.config["logit_scale"]])


def rois_of(boxes: Tensor, picture: int = 0) -> Tensor:
    return torch.cat([torch.full((len(boxes), 1), float(picture)), boxes], dim=1)


def head(f: Fixture) -> Iterator[Verdict]:
    c, module = f.config, Head(f.config)
    load(module, rename("head", f.weights))
    masks = module.masks(f["in/image_embedding"], f["in/dense"], f["in/grid_pe"], f["in/sparse"])
    yield f.close("out/mask_logits", masks[:, None])
    boxes = boxes_of_masks(masks) if c["gen_box"] else f["in/boxes"]
    if c["gen_box"]:
        yield f.same("out/boxes", boxes)
    found = module.classes(f, levels_of(f, "in/fpn"), rois_of(boxes))
    yield f.close("out/class_logits", found[:, None])
    sizes = (tuple(c[name]) for name in ("canvas_hw", "content_hw", "image_hw"))
    yield same_masks(f, "out/masks", full_size_logits(masks, *sizes) > 0)


def same_masks(f: Fixture, name: str, found: Tensor) -> Verdict:
    return f.same(name, found, allowed=0.001 * f[name].numel())


def losses(f: Fixture) -> Iterator[Verdict]:
    c, module = f.config, Head(f.config)
    load(module, rename("head", f.weights))
    pyramid, boxes, sparse = levels_of(f, "in/fpn"), f["in/boxes"], f["in/sparse"]
    masks, logits = [], []
    for picture, (mine, prompts) in enumerate(
        zip(boxes.split(c["prompts"]), sparse.split(c["prompts"]), strict=True)
    ):
        image = f["in/image_embedding"][picture : picture + 1]
        masks.append(module.masks(image, f["in/dense"], f["in/grid_pe"], prompts))
        logits.append(module.classes(f, pyramid, rois_of(mine, picture)))
    weights = c["weights"]
    each, divisor = class_loss(torch.cat(logits), f["in/labels"], 0.1)
    yield f.close("out/loss_cls", weights["cls"] * each.sum() / divisor.sum())
    entropy, dice = mask_losses(torch.cat(masks), f["in/gt_masks"].float(), f["in/points"])
    yield f.close("out/loss_mask", weights["mask"] * entropy.mean().view(1))
    yield f.close("out/loss_dice", weights["dice"] * dice.mean().view(1))


def clip_backbone(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    clip = FrozenClip(backbone_config(c))
    load(clip.tower, rename("backbone" if c["kind"] == "resnet" else "convnext", f.weights))
    for i, level in enumerate(clip(f["in/image"])):
        yield f.close(f"out/level{i}", level)
    if c["kind"] == "resnet":
        yield f.close("out/embed", clip.tower.attnpool(f["in/roi"]))
        return
    yield f.close("out/embed", clip.tower.embed_pooled(f["in/pooled"]))
    stage4 = clip(f["in/image"])[3]
    yield f.close("out/mask_pool", mask_pool(stage4[0], f["in/mask_logits"][0] > 0)[None])


def fusion(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    channels, grid = f["in/stage4"].shape[1], c["roi_output"]
    assert c["stride"] == 32
    config = BackboneConfig(
        name="fixture",
        layers=(1, 1, 1, 1),
        widths=tuple(channels // 8 * 2**i for i in range(4)),
        embed_dim=f["in/prototypes"].shape[-1],
        pool_grid=grid,
        heads=c["heads"],
    )
    clip = FrozenClip(config)
    prefix = "attnpool."
    load(clip.tower.attnpool, {k.removeprefix(prefix): v for k, v in f.weights.items()})
    masks = f["in/mask_logits"][:, 0]
    embeddings = clip.embed_regions(f["in/stage4"], f["in/boxes"], masks)
    clip_logits = class_logits(embeddings, f["in/prototypes"], 4.6052)
    yield f.close("out/clip_logits", clip_logits[:, None])
    seen = (masks > 0).flatten(1).any(1)
    weights = FusionConfig(alpha=c["alpha"], beta=c["beta"])
    everything_novel = torch.full((c["classes"],), 2)
    for name, kinds in (("open", f["in/class_kind"]), ("plain", everything_novel)):
        scores = fuse(f["in/head_logits"][:, 0], clip_logits, kinds, weights, seen)
        yield f.close(f"out/{name}", scores[:, None])
        yield f.same(f"out/{name}_labels", best_classes(scores, 1)[0][:, 0])


def metric_and_points(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    score = InteractiveScore(frozenset(c["base"]), frozenset(c["novel"]))
    for image in c["images"]:
        wanted, found = f[f"in/gt_masks{image}"].numpy(), f[f"in/pred_masks{image}"].numpy()
        labels, answers = f[f"in/gt_labels{image}"], f[f"in/pred_labels{image}"]
        for i in range(len(wanted)):
            score.add(int(labels[i]), int(answers[i]), mask_iou(found[i], wanted[i]))
    figures = score.figures()
    names = {"miou": "IoU", "base_iou": "IoU_b", "novel_iou": "IoU_n"}
    names |= {"score": "Acc", "base_score": "Acc_b", "novel_score": "Acc_n"}
    for name, ours in names.items():
        yield f.close(f"out/{name}", torch.tensor(figures[ours]))
    points = torch.from_numpy(np.stack([centre_point(m) for m in f["in/point_masks"].numpy()]))
    yield f.same("derived/exact_edt_points", points)
    if "out/centre_points" in f.tensors:
        yield f.close("out/centre_points", points.view_as(f["out/centre_points"]), 1.0)


def sam_teacher(f: Fixture) -> Iterator[Verdict]:
    c = f.config
    encoder = SamImageEncoder(
        image_size=c["image"],
        embed_dim=c["embed"],
        depth=c["depth"],
        num_heads=c["heads"],
        window=c["window"],
        global_blocks=tuple(c["global_blocks"]),
        out=c["out"],
        patch=c["patch"],
    )
    load(encoder, rename("sam_encoder", f.weights))
    yield f.close("out/feature", encoder(f["in/image"]))


def end_to_end_model(f: Fixture) -> OvsamModel:
    c = f.config
    model = OvsamModel(
        OvsamConfig(
            backbone=backbone_config(c["backbone"]),
            adapter=adapter_config(c["neck"]),
            head=head_config(c),
            fusion=FusionConfig(alpha=c["alpha"], beta=c["beta"]),
            image_size=c["canvas"],
            pixel_mean=tuple(c["mean_rgb"]),
            pixel_std=tuple(c["std_rgb"]),
        )
    )
    load(model, rename_model(f.weights, c["backbone"]["kind"]))
    return model


def end_to_end(f: Fixture) -> Iterator[Verdict]:
    c, model = f.config, end_to_end_model(f)
    fitted = fit_picture(np.ascontiguousarray(f["in/image_bgr"].numpy()[..., ::-1]), c["canvas"])
    h, w = fitted.content_hw
    if "mid/resized_bgr" in f.tensors:
        resized = torch.from_numpy(fitted.canvas[:h, :w, ::-1].copy())
        yield f.same("mid/resized_bgr", resized)
    pixels = torch.from_numpy(fitted.canvas).permute(2, 0, 1)[None]
    x = model.normalise(pixels, torch.tensor([fitted.content_hw]))
    yield f.close("out/normalised", x)
    encoded = model.encode_image(x)
    yield f.close("out/embedding", encoded.embedding)
    if "mid/stage4" in f.tensors:
        yield f.close("mid/stage4", encoded.stage4)
    boxes = f["in/boxes"] * torch.from_numpy(np.tile(axis_scales(fitted), 2))
    rows = torch.from_numpy(np.arange(h) * fitted.image_hw[0] // h)
    columns = torch.from_numpy(np.arange(w) * fitted.image_hw[1] // w)
    small = f["in/gt_masks"][:, rows][:, :, columns].numpy()
    points = torch.from_numpy(np.stack([centre_point(mask) for mask in small]))[:, None]
    yield f.same("out/points", points)
    for kind, (xy, labels) in {
        "box": as_corners(boxes),
        "point": with_padding(points),
    }.items():
        masks, tokens = model.decode(encoded.embedding, xy[None], labels[None])
        masks, tokens = masks[0], tokens[0]
        yield f.close(f"out/{kind}_mask_logits", masks[:, None])
        regions = boxes if kind == "box" else boxes_of_masks(masks)
        embeddings = model.name_regions(encoded.pyramid, rois_of(regions), tokens)
        scale = model.config.head.log_scale
        head_logits = class_logits(embeddings, f["in/prototypes"], scale)
        yield f.close(f"out/{kind}_head_logits", head_logits[:, None])
        clip, seen = model.clip_regions(encoded.stage4, regions, masks)
        clip_logits = class_logits(clip, f["in/prototypes"], scale)
        scores = fuse(head_logits, clip_logits, f["in/class_kind"], model.config.fusion, seen)
        yield f.close(f"out/{kind}_fused", scores[:, None])
        yield f.same(f"out/{kind}_labels", best_classes(scores, 1)[0][:, 0])
        full = full_size_logits(masks, (c["canvas"],) * 2, fitted.content_hw, fitted.image_hw)
        yield same_masks(f, f"out/{kind}_masks", full > 0)


OVSAM_CHECKS: dict[str, Callable[[Fixture], Iterator[Verdict]]] = {
    "01_sam2clip_neck": sam2clip,
    "02_fpn_roi": pyramid_and_regions,
    "03_prompt_encoder": prompt_encoder,
    "04_head_box": head,
    "05_head_point": head,
    "06_losses": losses,
    "07_clip_resnet": clip_backbone,
    "08_clip_convnext": clip_backbone,
    "09_fusion": fusion,
    "10_metric_points": metric_and_points,
    "11_sam_teacher": sam_teacher,
    "12_end_to_end": end_to_end,
}
