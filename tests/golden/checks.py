"""Runs the project's model, losses and schedule against a folder of golden fixtures.

Each fixture is a .safetensors with weights, inputs and expected outputs of the official
implementation, beside a .json with the configuration and the tolerance. A check builds the part
from that configuration alone, so folders of other configurations work too. Tensors under `mid/`,
`derived/` and scaled inputs are there for debugging: a fixture without them is compared without
them, but every tensor under `out/` must be compared.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tap_engine.model.concept_projector import concept_log_probs, concept_logits, top_concepts
from tap_engine.model.config import DecoderConfig, TapConfig, TextConfig, VitConfig
from tap_engine.model.image_decoder import ImageDecoder, RegionOutput
from tap_engine.model.image_encoder import VitEncoder, drop_path_rates, resize_positions
from tap_engine.model.image_input import fit_image
from tap_engine.model.prompt_encoder import PromptEncoder
from tap_engine.model.prompts import box_from_mask, points_from_mask
from tap_engine.model.schedule import cosine_rate
from tap_engine.model.tap import TapModel, route
from tap_engine.model.text_decoder import TextDecoder, caption_lengths
from tap_engine.train.losses import dice_loss, focal_loss
from tests.golden.fixture import Checks, Fixture, Verdict
from tests.golden.ovsam_checks import OVSAM_CHECKS


def vit_config(c: dict) -> VitConfig:
    return VitConfig(
        depth=c["depth"],
        embed_dim=c["embed_dim"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        window_size=c["window_size"],
    )


def decoder_config(c: dict) -> DecoderConfig:
    return DecoderConfig(
        depth=c["depth"],
        num_heads=c["num_heads"],
        attn_ratio=c["attn_ratio"],
        mlp_dim=c["mlp_dim"],
        sem_hidden_dim=c["sem_embed_dim"],
        sem_embed_dim=c["sem_embed_dim"],
    )


def text_config(c: dict) -> TextConfig:
    return TextConfig(
        depth=c["depth"],
        embed_dim=c["embed_dim"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        vocab_size=c["vocab_size"],
        max_seq_len=c["max_seq_len"],
    )


def load(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Every weight must fit; only the number of batches seen, which nothing uses, may be absent."""
    missing, unknown = module.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(f"weights missing: {missing[:3]}, not known: {unknown[:3]}")
    module.eval()


# What differs from the official network only in bookkeeping is undone here, in the checks:
# the project keeps [images, prompts, ...] where the official code flattens to [P, ...].


def image_encoder(f: Fixture) -> Checks:
    c = f.config
    encoder = VitEncoder(vit_config(c), image_size=c["image_size"], out_dim=c["out_dim"])
    load(encoder, f.weights)
    seen: dict[str, Tensor] = {}
    for index, conv in enumerate(encoder.cross_conv):
        conv.register_forward_hook(
            lambda _m, _i, out, name=f"mid/cross_conv_{index}": seen.__setitem__(name, out)
        )
    found = encoder(f["in/img"])
    for name, value in seen.items():
        yield f.close(name, value)
    yield f.close("out/embedding", found)


def prompt_encoder(f: Fixture) -> Checks:
    c = f.config
    encoder = PromptEncoder(c["embed_dim"], c["image_size"])
    load(encoder, f.weights)
    corners = f["in/boxes"].unflatten(-1, (2, 2))
    corner_labels = torch.tensor([2, 3]).expand(len(corners), 2)
    points, labels = f["in/points"][..., :2], f["in/points"][..., 2].long()
    yield f.close("out/sparse_boxes", encoder(corners, corner_labels))
    yield f.close("out/sparse_points", encoder(points, labels))
    both = encoder(torch.cat([corners, points], 1), torch.cat([corner_labels, labels], 1))
    yield f.close("out/sparse_both", both)
    if "out/img_pos" in f.tensors:
        side = round(len(f["out/img_pos"]) ** 0.5)
        yield f.close("out/img_pos", encoder.grid_code((side, side)).flatten(0, 1))
    for name in f.tensors:
        if name.startswith("out/grid_"):
            h, w = map(int, name.removeprefix("out/grid_").split("x"))
            yield f.close(name, encoder.grid_code((h, w)))


def image_decoder(f: Fixture) -> Checks:
    c = f.config
    decoder = ImageDecoder(c["embed_dim"], decoder_config(c))
    load(decoder, f.weights)
    image = f["in/img_embeds"].squeeze(1).permute(0, 3, 1, 2)
    pos = f["in/img_pos"].unflatten(0, image.shape[-2:])
    prompts = f["in/sparse_embeds"].unflatten(0, (len(image), -1))
    yield from _region_verdicts(f, "out/", decoder(image, pos, prompts))


def _region_verdicts(f: Fixture, prefix: str, found: RegionOutput) -> Checks:
    yield f.close(prefix + "iou_pred", found.iou_pred.flatten(0, 1))
    yield f.close(prefix + "mask_pred", found.mask_logits.flatten(0, 1))
    yield f.close(prefix + "sem_tokens", found.sem_tokens.flatten(0, 1).unsqueeze(2))
    yield f.close(prefix + "sem_embeds", found.sem_embeds.flatten(0, 1))


def concept_projector(f: Fixture) -> Checks:
    source, target = f["weights/src"], f["weights/tgt"]
    log_probs = concept_log_probs(f["in/embeds"], source)
    target_log_probs = concept_log_probs(f["in/tgt_embeds"], target)
    ids, scores = top_concepts(log_probs, f["out/topk_index"].shape[-1])
    yield f.close("out/src_logits", concept_logits(f["in/embeds"], source))
    yield f.close("out/src_log_probs", log_probs)
    yield f.close("out/tgt_log_probs", target_log_probs)
    yield f.same("out/topk_index", ids)
    yield f.close("out/topk_score", scores)
    forward = F.kl_div(log_probs, target_log_probs, reduction="none", log_target=True).sum(-1)
    reverse = F.kl_div(target_log_probs, log_probs, reduction="none", log_target=True).sum(-1)
    yield f.close("derived/kl_target_pred", forward)
    yield f.close("derived/kl_pred_target", reverse)


def text_decoder(f: Fixture) -> Checks:
    c = f.config
    decoder = TextDecoder(text_config(c), c["prompt_embed_dim"])
    load(decoder, f.weights)
    tokens = f["in/visual_tokens"].squeeze(1)
    yield f.close("out/prompts", decoder.encoder(tokens).unsqueeze(1))
    yield f.close("out/teacher_forced_logits", decoder(tokens, f["in/tokens"]))
    found = decoder.generate(tokens, bos_id=c["bos_id"], eos_id=c["eos_id"])
    yield _caption_verdict(f, "out/greedy_ids", found, c["eos_id"])


def _caption_verdict(f: Fixture, name: str, found: Tensor, eos_id: int) -> Verdict:
    """Ids up to and including the first EOS; what follows it is of no meaning."""
    lengths = caption_lengths(f[name], eos_id)
    differing = sum(
        found[row, :length].tolist() != f[name][row, :length].tolist()
        for row, length in enumerate(lengths.tolist())
    )
    return Verdict(f.name, name, differing, 0)


def losses_and_rates(f: Fixture) -> Checks:
    c = f.config
    alpha, gamma = c["focal_alpha"], c["focal_gamma"]
    logits, targets = f["in/logits"], f["in/targets"]
    # The project's losses average over the pixels of a mask: one pixel as a mask gives elements.
    pixels, pixel_targets = logits[..., None, None], targets[..., None, None]
    masks, mask_targets = logits.unsqueeze(1), targets.unsqueeze(1)
    focal = focal_loss(pixels, pixel_targets, alpha, gamma)
    dice = dice_loss(masks, mask_targets)
    mean = focal_loss(masks, mask_targets, alpha, gamma).mean()
    yield f.close("out/focal_none", focal)
    yield f.close("out/focal_alpha_0.6_none", focal_loss(pixels, pixel_targets, 0.6, gamma))
    yield f.close("out/focal_mean", mean.view(1))
    yield f.close("out/dice_none", dice)
    yield f.close("out/dice_mean", dice.mean().view(1))
    for name, value in (("focal", focal), ("dice", dice)):
        total = value.sum().view(1)
        relative = f.info["tolerance"]["rtol"] * total.abs().item()
        atol = f.info["tolerance"]["atol"] + relative
        yield f.close(f"out/{name}_sum", total, atol)
        yield f.close(f"out/{name}_batch_mean", total / len(logits), atol)
    ce_logits, ce_targets = f["in/ce_logits"], f["in/ce_targets"]
    plain = F.cross_entropy(ce_logits, ce_targets, reduction="none")
    smooth = F.cross_entropy(ce_logits, ce_targets, reduction="none", label_smoothing=0.1)
    yield f.close("out/ce_none", plain)
    yield f.close("out/ce_smooth_0.1_none", smooth)
    for index, schedule in enumerate(f.info["lr_schedules"]):
        held, warmup = schedule["decay_step"], schedule["warmup_steps"]
        rates = [
            cosine_rate(
                # The released code can hold the rate for some steps; ours cannot.
                step if step < warmup else step - (step - warmup) % held,
                peak=schedule["lr_max"],
                last=schedule["lr_min"],
                steps=schedule["max_steps"],
                warmup_steps=warmup,
                warmup_from=schedule["warmup_factor"],
            )
            for step in range(schedule["max_steps"] + 1)
        ]
        found = torch.tensor(rates, dtype=torch.float64)
        yield f.close(f"out/lr_{index}", found, f.info["tolerance"]["lr_atol"])


def end_to_end_model(f: Fixture) -> TapModel:
    c = f.config
    config = TapConfig(
        image_size=c["image_size"],
        embed_dim=c["decoder"]["embed_dim"],
        encoder=vit_config(c["encoder"]),
        decoder=decoder_config(c["decoder"]),
        text=text_config(c["text"]),
        pixel_mean=tuple(c["pixel_mean_bgr"]),
        pixel_std=tuple(c["pixel_std_bgr"]),
    )
    model = TapModel(config)
    load(model, f.weights)
    return model


def end_to_end(f: Fixture) -> Checks:
    c, model = f.config, end_to_end_model(f)
    count = sum(name.startswith("in/image_") for name in f.tensors)
    per_image = len(f["in/boxes_orig"]) // count
    images = [f[f"in/image_{i}_bgr_uint8"].numpy()[:, :, ::-1] for i in range(count)]
    fitted = [
        fit_image(np.ascontiguousarray(rgb), model.config.image_size, model.fill_rgb)
        for rgb in images
    ]
    canvases = torch.from_numpy(np.stack([image.canvas for image in fitted]))
    info = torch.tensor([[*image.content_hw, image.scale, image.scale] for image in fitted])
    yield f.close("mid/padded_batch_uint8", canvases.flip(-1), tolerance=1)
    if "mid/padded_batch_uint8" in f.tensors:
        # The canvas round the image does not depend on the resampler.
        expected = f["mid/padded_batch_uint8"].flip(-1)
        differing = sum(
            (found[h:] != want[h:]).sum().item() + (found[:, w:] != want[:, w:]).sum().item()
            for found, want, (h, w) in zip(
                canvases, expected, [image.content_hw for image in fitted], strict=True
            )
        )
        yield Verdict(f.name, "mid/padded_batch_uint8 (padding)", differing, 0)
        # As the fixture advises, what follows starts from its own resized images.
        canvases = expected
    yield f.close("mid/im_info", info)
    pixels = canvases.permute(0, 3, 1, 2)
    if "mid/normalised_corner" in f.tensors:
        corner = f["mid/normalised_corner"].shape[-1]
        yield f.close("mid/normalised_corner", model.normalise(pixels)[..., -corner:, -corner:])
    embeddings = model.encode_image(pixels)
    yield f.close("out/img_embeds", embeddings.permute(0, 2, 3, 1).unsqueeze(1))
    scales = torch.tensor([image.scale for image in fitted]).repeat_interleave(per_image)
    boxes = f["in/boxes_orig"].unflatten(-1, (2, 2)) * scales.view(-1, 1, 1)
    box_labels = torch.tensor([2, 3]).expand(len(boxes), 2)
    points = f["in/points_orig"][..., :2] * scales.view(-1, 1, 1)
    point_labels = f["in/points_orig"][..., 2].long()
    yield f.close("in/box_scaled", torch.cat([boxes, box_labels.unsqueeze(-1)], -1))
    yield f.close("in/points_scaled", torch.cat([points, point_labels.unsqueeze(-1)], -1))
    for kind, xy, labels in (("box", boxes, box_labels), ("points", points, point_labels)):
        xy, labels = (x.unflatten(0, (count, per_image)) for x in (xy, labels))
        out = model.decode(embeddings, xy, labels)
        yield from _region_verdicts(f, f"out/{kind}/", out)
        index = route(out.iou_pred, labels)
        yield f.same(f"out/{kind}/mask_index", index.flatten())
        chosen = out.select(index)
        tokens = chosen.sem_tokens.flatten(0, 1)
        ids = model.text_decoder.generate(tokens, bos_id=c["bos_id"], eos_id=c["eos_id"])
        yield _caption_verdict(f, f"out/{kind}/caption_ids", ids, c["eos_id"])
        log_probs = concept_log_probs(chosen.sem_embeds.flatten(0, 1), f["in/concept_src_weights"])
        concepts, scores = top_concepts(log_probs, f[f"out/{kind}/concept_index"].shape[-1])
        yield f.same(f"out/{kind}/concept_index", concepts)
        yield f.close(f"out/{kind}/concept_score", scores)
        for row, image in enumerate(fitted):
            logits = model.full_size_logits(
                chosen.mask_logits[row], image.content_hw, image.image_hw
            )
            yield f.close(f"out/{kind}/mask_logits_image_{row}", logits)
            allowed = 0.001 * logits.numel()
            yield f.same(f"out/{kind}/mask_image_{row}", logits > 0, allowed)


def preprocessing(f: Fixture) -> Checks:
    target, fill = f.config["target"], (123, 116, 103)
    for name in sorted(name for name in f.tensors if name.startswith("in/image_")):
        index = name.removeprefix("in/image_")
        rgb = np.ascontiguousarray(f[name].numpy()[:, :, ::-1])
        image = fit_image(rgb, target, fill)
        canvas = torch.from_numpy(image.canvas[:, :, ::-1].copy())
        yield f.close(f"out/padded_{index}", canvas, tolerance=1)
        info = torch.tensor([*image.content_hw, image.scale])
        yield f.close(f"out/info_{index}", info, tolerance=1e-6)
    masks = f["in/masks"].numpy()
    boxes = np.stack([box_from_mask(mask) for mask in masks])
    yield f.same("out/boxes", torch.from_numpy(boxes))
    points = np.stack([points_from_mask(mask) for mask in masks[: len(f["out/nine_points"])]])
    yield f.same("out/nine_points", torch.from_numpy(points))
    small = points_from_mask(f["in/small_mask"].numpy())
    yield f.same("out/small_nine_points", torch.from_numpy(small))
    side = round(len(f["out/pos_embed_resized"]) ** 0.5)
    source = next(name for name in f.tensors if name.startswith("in/pos_embed_"))
    atol = f.info["tolerance"]["pos_embed_atol"]
    yield f.close("out/pos_embed_resized", resize_positions(f[source], side), atol)
    prefix = "drop_path_schedule_"
    for name in (name for name in f.info if name.startswith(prefix)):
        depth, rate = name.removeprefix(prefix).split("_blocks_")
        found = drop_path_rates(float(rate), int(depth))
        yield Verdict(f.name, name, float(np.abs(np.subtract(found, f.info[name])).max()), 1e-12)


CHECKS: dict[str, Callable[[Fixture], Checks]] = {
    "01_image_encoder": image_encoder,
    "02_prompt_encoder": prompt_encoder,
    "03_image_decoder": image_decoder,
    "04_concept_projector": concept_projector,
    "05_text_decoder": text_decoder,
    "06_losses_lr": losses_and_rates,
    "07_end_to_end": end_to_end,
    "08_preprocessing": preprocessing,
}


@torch.no_grad()
def run_check(fixture: Fixture) -> list[Verdict]:
    """Every comparison of one fixture.

    Raises:
        ValueError: no check of this kind, a tensor of another shape, or an expected tensor that
            the check does not compare.
    """
    checks, kind = CHECKS | OVSAM_CHECKS, fixture.info["fixture"]
    if kind not in checks:
        raise ValueError(f"{fixture.name}: no check of kind {kind!r}; known: {list(checks)}")
    verdicts = [verdict for verdict in checks[kind](fixture) if verdict is not None]
    expected = {name for name in fixture.tensors if name.startswith("out/")}
    if left := sorted(expected - {verdict.name for verdict in verdicts}):
        raise ValueError(f"{fixture.name}: nothing compares {', '.join(left)}")
    return verdicts
