"""What an evaluation needs of a model, and the TAP model in that form.

Narrower and wider than `Tap.predict`: all four candidates, embeddings instead of names, and only
what a protocol asks for, in chunks, so that 300 boxes on a large image cost no more memory than 64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model.image_input import Rgb
from tap_engine.model.predictor import EmbeddedImage, Tap
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.tap import route
from tap_engine.schemas.errors import ConfigError

CHUNK = 64
"""Prompts decoded at a time; the official scripts take 256 on a 40 GB GPU."""

UPSAMPLED = 16
"""Masks brought to the image's size at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to compute besides IoU estimates: `mask` the chosen candidate's, `masks` all four."""

    mask: bool = False
    masks: bool = False
    embedding: bool = False
    caption: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A chunk of P prompts.

    Attributes:
        iou: [P, 4] float32, the model's estimates, not squashed.
        chosen: [P] int64, the candidate that routing takes: 0 for boxes, 1 to 3 for points.
        masks: [P, C, H, W] bool at the image's own size; C = 4 candidates, or 1, the chosen; or
            C = 0.
        embeddings: [P, E] float32 of the chosen, not normalised; E = 0 if not asked for.
        captions: of the chosen; empty if not asked for.
    """

    iou: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    embeddings: npt.NDArray[np.float32]
    captions: list[str]

    @property
    def chosen_iou(self) -> npt.NDArray[np.float32]:
        """[P] the estimate for the chosen candidate."""
        return self.iou[np.arange(len(self.chosen)), self.chosen]


class RegionModel(Protocol):
    """One image at a time, prompts as labelled points."""

    def set_image(self, rgb: Rgb) -> None:
        """Take an image [H, W, 3] uint8."""

    def prompt(
        self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], wanted: Wanted
    ) -> Iterator[Predicted]:
        """Answer prompts: points [P, K, 2] (x, y) image px, labels [P, K] of `Label`."""


def box_prompts(
    boxes_xyxy: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Boxes [P, 4] as labelled corners, neither clipped nor checked: as the official scripts do."""
    labels = np.array([Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT], np.int64)
    corners = np.asarray(boxes_xyxy, np.float32).reshape(-1, 2, 2)
    return corners, np.tile(labels, (len(corners), 1))


@dataclass
class TapRegions:
    """A `Tap` as `RegionModel`; see `Tap` for device and precision.

    Attributes:
        tap: the model, with a tokenizer if captions are asked for.
        chunk: prompts decoded at a time.
    """

    tap: Tap
    chunk: int = CHUNK
    _image: EmbeddedImage | None = field(default=None, init=False)

    def set_image(self, rgb: Rgb) -> None:
        """Encode an image."""
        self._image = self.tap.set_image(rgb)

    def prompt(
        self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], wanted: Wanted
    ) -> Iterator[Predicted]:
        """Decode prompts, a chunk at a time.

        Raises:
            ConfigError: captions wanted of a model without a tokenizer.
        """
        assert self._image is not None, "set_image comes first"
        if wanted.caption and self.tap.tokenizer is None:
            raise ConfigError(
                "captions need a tokenizer beside the checkpoint (tokenizer.json or .model)"
            )
        for start in range(0, len(points), self.chunk):
            part = slice(start, start + self.chunk)
            xy = torch.from_numpy(points[part] * np.float32(self._image.fitted.scale))
            with self.tap.inference():
                yield self._decode(self._image, xy, torch.from_numpy(labels[part]), wanted)

    def _decode(
        self, image: EmbeddedImage, points: Tensor, labels: Tensor, wanted: Wanted
    ) -> Predicted:
        device = image.embedding.device
        labels = labels.unsqueeze(0).to(device)
        model = self.tap.model
        out = model.decode(image.embedding, points.unsqueeze(0).to(device), labels)
        candidate = route(out.iou_pred, labels)
        chosen = out.select(candidate)
        if wanted.masks:
            logits = out.mask_logits[0]
        else:
            logits = chosen.mask_logits[0].unsqueeze(1)[:, : int(wanted.mask)]
        masks = self._full_size(logits.float(), image)
        said = model.caption_tokens(chosen)
        width_wanted = None if wanted.embedding else 0
        captions = self.tap.write_captions(said[0]) if wanted.caption else []
        return Predicted(
            iou=out.iou_pred[0].float().cpu().numpy(),
            chosen=candidate[0].cpu().numpy(),
            masks=masks,
            embeddings=chosen.sem_embeds[0].float().cpu().numpy()[:, :width_wanted],
            captions=[text or "" for text in captions],
        )

    def _full_size(self, logits: Tensor, image: EmbeddedImage) -> npt.NDArray[np.bool_]:
        # A few at a time: 64 prompts of 4 masks on an SA-1B image are 3.5 GB of float32.
        fitted = image.fitted
        masks = np.empty((*logits.shape[:2], *fitted.image_hw), np.bool_)
        flat = masks.reshape(-1, *fitted.image_hw)
        for start, part in enumerate(logits.flatten(0, 1).split(UPSAMPLED)):
            full = self.tap.model.full_size_logits(part, fitted.content_hw, fitted.image_hw)
            flat[start * UPSAMPLED : start * UPSAMPLED + len(part)] = (full > 0).cpu().numpy()
        return masks
