"""Everything in a picture without a prompt: a grid of points, then what is good, stable and new.

    for found in Tap.from_pretrained("checkpoints/tap-b").everything(rgb):
        print(found.name, found.region.iou, found.region.caption)

The steps and the names of the settings are those of SAM's automatic mask generator (Kirillov et
al., "Segment Anything", section 5 and appendix B), so that its users know them. Beyond it, masks
are compared as well as boxes, and every region has name, probability, entropy and caption.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.model.mask_pool import MaskPool, Window, apart, cleaned, distinct, joined, tight_box
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.region import Candidates, Region
from tap_engine.schemas import boxes, rle
from tap_engine.schemas.errors import ConfigError

if TYPE_CHECKING:
    from tap_engine.model.predictor import Tap

_CROP_EDGE_PX = 20
"""A mask that comes this near to the edge of its crop is cut off there: another crop has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EverythingConfig:
    """How everything in a picture is looked for; names and defaults are SAM's.

    Attributes:
        points_per_side: the grid has this many points along each side of the picture.
        points_per_batch: points decoded at a time; bounds memory, changes no result.
        pred_iou_thresh: least IoU that the model expects of a mask.
        stability_score_thresh: least stability, see `stability_score_offset`.
        stability_score_offset: the stability of a mask is the area above this logit as a share
            of the area above its negative.
        box_nms_thresh: of two masks whose boxes overlap by more than this IoU, the better stays.
        mask_nms_thresh: the same of the masks themselves; ours.
        crop_n_layers: look again in crops: layer i has 2^i crops along each side. 0 looks at the
            whole picture only.
        crop_nms_thresh: box IoU from which masks of two crops are one; that of the smaller crop
            stays.
        crop_overlap_ratio: overlap of the crops of the first layer, as a share of the shorter side;
            halved with each layer.
        crop_n_points_downscale_factor: layer i has a grid that is coarser by this factor to the
            power of i.
        min_mask_region_area: pieces and holes below this are removed from masks, and masks below
            it from the result, px. 0 leaves all.
        unknown_above: entropy in nats from which the name of a region is "unknown".
        top_k: names kept per region.
        captions: write captions, where the model can.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    mask_nms_thresh: float = 0.8
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    unknown_above: float = 3.0
    top_k: int = 5
    captions: bool = True

    def __post_init__(self) -> None:
        least = {"points_per_side": 1, "points_per_batch": 1, "top_k": 1, "crop_n_layers": 0}
        least |= {"crop_n_points_downscale_factor": 1, "min_mask_region_area": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class FoundRegion:
    """A region that nobody asked for.

    Attributes:
        region: mask, names, caption, as `Tap.predict` gives them.
        name: the most probable name; "unknown" where no name fits; "" without a concept table.
        counts: the mask as COCO compressed counts.
        bbox_xywh: its tight box, px.
        area: its area, px.
        stability: see `EverythingConfig.stability_score_offset`.
        point_xy: the point of the grid that found it, px of the picture.
        crop_xywh: the part of the picture that the model saw, px.
    """

    region: Region
    name: str
    counts: bytes
    bbox_xywh: tuple[int, int, int, int]
    area: int
    stability: float
    point_xy: tuple[float, float]
    crop_xywh: tuple[int, int, int, int]


def find_everything(tap: "Tap", image: Any, config: EverythingConfig) -> list[FoundRegion]:
    """All regions of a picture, those of the highest predicted IoU first.

    Every crop is encoded once; its points are decoded in batches. Equal scores keep the order of
    the grid, so the result does not depend on `points_per_batch`.

    Args:
        tap: the model.
        image: see `image_input.to_rgb`.
        config: how to look.

    Returns:
        None to many regions; no two of the same box or mask.

    Raises:
        SourceError: no picture in any form we know.
    """
    rgb = to_rgb(image)
    size_hw = (rgb.shape[0], rgb.shape[1])
    pools = []
    for layer, window in crop_windows(size_hw, config):
        side = max(1, config.points_per_side // config.crop_n_points_downscale_factor**layer)
        pool = _look(tap, rgb, window, side, config)
        pools.append(distinct(pool, size_hw, config.box_nms_thresh, config.mask_nms_thresh))
    pool = joined(pools)
    if len(pools) > 1 and len(pool):
        smallest_first = np.argsort(
            boxes.area_xyxy(pool.crop.astype(np.float64)), kind="stable"
        )  # a smaller crop shows more of what it shows
        pool = pool.at(apart(pool.box, smallest_first, config.crop_nms_thresh))
        pool = distinct(pool, size_hw, config.box_nms_thresh, config.mask_nms_thresh)
    if config.min_mask_region_area and len(pool):
        pool = cleaned(pool, size_hw, config.min_mask_region_area)
        pool = distinct(pool, size_hw, config.box_nms_thresh, config.mask_nms_thresh)
    return _described(tap, pool, size_hw, config)


def crop_windows(
    size_hw: tuple[int, int], config: EverythingConfig
) -> Iterator[tuple[int, Window]]:
    """The parts of a picture that are looked at, with their layer; the whole is layer 0.

    Crops of a layer overlap and are of one size; source: SAM's generator, `generate_crop_boxes`.
    """
    height, width = size_hw
    yield 0, (0, 0, width, height)
    for layer in range(1, config.crop_n_layers + 1):
        number = 2**layer
        overlap = int(config.crop_overlap_ratio * min(size_hw) * 2 / number)
        across, down = (-(-(overlap * (number - 1) + side) // number) for side in (width, height))
        for left in (int((across - overlap) * k) for k in range(number)):
            for top in (int((down - overlap) * k) for k in range(number)):
                window = (left, top, min(left + across, width), min(top + down, height))
                if window[0] < window[2] and window[1] < window[3]:
                    yield layer, window


def grid_points(side: int, window: Window) -> npt.NDArray[np.float32]:
    """[side * side, 2] centres (x, y) of a grid's cells over a window, px of the window."""
    steps = (np.arange(side, dtype=np.float64) + 0.5) / side
    x, y = np.meshgrid(steps * (window[2] - window[0]), steps * (window[3] - window[1]))
    return np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """[N] area above `offset` as a share of the area above -`offset`, of logits [N, H, W].

    0 where there is no area. Source: SAM's generator, `calculate_stability_score`.
    """
    inner = (logits > offset).flatten(1).sum(1)
    outer = (logits > -offset).flatten(1).sum(1)
    return inner / outer.clamp(min=1)


def _look(tap: "Tap", rgb: Rgb, window: Window, side: int, config: EverythingConfig) -> MaskPool:
    """What the points of one crop show and passes the filters."""
    left, top, right, bottom = window
    before = tap._image  # the caller's picture stays the one that `predict` is about
    embedded = tap.set_image(rgb[top:bottom, left:right])
    tap._image = before
    grid = grid_points(side, window)
    points = np.stack([grid, np.zeros_like(grid)], axis=1)
    labels = np.tile(np.array([Label.FOREGROUND, Label.PADDING], np.int64), (len(points), 1))
    pools, start = [], 0
    for found in tap.candidates(points, labels, image=embedded, chunk=config.points_per_batch):
        pools.append(_filtered(tap, found, grid[start : start + len(found)], config, rgb, window))
        start += len(found)
    return joined(pools)


def _filtered(
    tap: "Tap",
    found: Candidates,
    grid: npt.NDArray[np.float32],
    config: EverythingConfig,
    rgb: Rgb,
    window: Window,
) -> MaskPool:
    """Good and stable masks of one batch; candidates 1 to 3, as always for points."""
    size_hw = (rgb.shape[0], rgb.shape[1])
    image = found.image
    good = (found.iou[:, 1:] > config.pred_iou_thresh).nonzero()  # [n, 2]: point, candidate - 1
    prompt, candidate = good[:, 0], good[:, 1] + 1
    raw = found.raw
    logits = raw.mask_logits[0][prompt, candidate].float()
    keep: list[int] = []
    scores: list[float] = []
    kept_counts: list[bytes] = []
    kept_boxes: list[tuple[float, ...]] = []
    for start in range(0, len(logits), 16):
        with tap.inference():
            full = tap.model.full_size_logits(
                logits[start : start + 16], image.fitted.content_hw, image.fitted.image_hw
            )
            stability = stability_scores(full, config.stability_score_offset).tolist()
            inside = (full > 0).cpu().numpy()
        for place, (score, mask) in enumerate(zip(stability, inside, strict=True)):
            if score < config.stability_score_thresh or not mask.any():
                continue
            box = tight_box(mask, window)
            if _cut_off(box, window, size_hw):
                continue
            whole = mask
            if window != (0, 0, size_hw[1], size_hw[0]):
                whole = np.zeros(size_hw, np.bool_)
                whole[window[1] : window[3], window[0] : window[2]] = mask
            keep.append(start + place)
            scores.append(score)
            kept_counts.append(rle.encode(whole))
            kept_boxes.append(box)
    chosen = torch.tensor(keep, dtype=torch.int64, device=good.device)
    prompt, candidate = prompt[chosen], candidate[chosen]
    parts = [part[0][prompt, candidate].float().cpu() for part in _token_parts(raw)]
    width = max(part.shape[-1] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
    places = prompt.cpu().numpy()
    count = len(keep)
    return MaskPool(
        kept_counts,
        np.array(kept_boxes, np.float64).reshape(count, 4),
        found.iou[prompt, candidate].double().cpu().numpy().round(5),
        np.array(scores, np.float64),
        grid[places].astype(np.float64) + np.array(window[:2]),
        np.tile(np.array(window, np.int64), (count, 1)),
        candidate.cpu().numpy(),
        torch.stack(padded, dim=1),
    )


def _token_parts(raw: RegionOutput) -> tuple[Tensor, Tensor, Tensor]:
    return raw.mask_tokens, raw.sem_tokens, raw.sem_embeds


def _cut_off(box: tuple[float, ...], window: Window, size_hw: tuple[int, int]) -> bool:
    """Whether a mask ends at an edge of its crop that is no edge of the picture."""
    edges = (0, 0, size_hw[1], size_hw[0])
    return any(
        abs(one - edge) <= _CROP_EDGE_PX < abs(one - whole)
        for one, edge, whole in zip(box, window, edges, strict=True)
    )


def _described(
    tap: "Tap", pool: MaskPool, size_hw: tuple[int, int], config: EverythingConfig
) -> list[FoundRegion]:
    device = tap.model.pixel_mean.device
    mask_tokens, sem_tokens, sem_embeds = (part.to(device) for part in pool.tokens.unbind(1))
    decoder = tap.model.config.decoder
    width = tap.model.config.embed_dim
    sem_tokens, sem_embeds = sem_tokens[:, :width], sem_embeds[:, : decoder.sem_embed_dim]
    with tap.inference():
        names, entropies = tap._names(sem_embeds, config.top_k)
    texts: list[str | None] = []
    for start in range(0, len(pool) if config.captions else 0, config.points_per_batch):
        part = slice(start, start + config.points_per_batch)
        none = sem_embeds.new_zeros(0)
        texts += tap.captions(
            RegionOutput(none, none, mask_tokens[None, part, :width], sem_tokens[None, part], none)
        )
    texts = texts or [None] * len(pool)
    found = []
    for k in range(len(pool)):
        mask = rle.decode(pool.counts[k], size_hw) > 0
        region = Region(
            mask,
            float(pool.iou[k]),
            int(pool.candidate[k]),
            names[k],
            entropies[k],
            texts[k],
            sem_tokens[k].cpu().numpy(),
            sem_embeds[k].cpu().numpy(),
        )
        box = boxes.xyxy_to_xywh(pool.box[k]).astype(int).tolist()
        crop = boxes.xyxy_to_xywh(pool.crop[k]).tolist()
        found.append(
            FoundRegion(
                region,
                name_of(region, config.unknown_above),
                pool.counts[k],
                (box[0], box[1], box[2], box[3]),
                int(mask.sum()),
                float(pool.stability[k]),
                (float(pool.point[k][0]), float(pool.point[k][1])),
                (crop[0], crop[1], crop[2], crop[3]),
            )
        )
    return found


def name_of(region: Region, unknown_above: float) -> str:
    """The most probable name, or "unknown" where the entropy is above `unknown_above` nats."""
    if not region.concepts:
        return ""
    return "unknown" if region.entropy > unknown_above else region.concepts[0].name
