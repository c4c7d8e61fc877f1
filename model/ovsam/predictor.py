"""Open-Vocabulary SAM for people: an image and prompts in, masks with names out.

model = OpenVocabularySam.from_pretrained("checkpoints/ovsam")
model.set_image(rgb)
for region in model.predict(points=[[[120, 80]]]):
    print(region.concepts[0].name, region.concepts[0].probability)

The same calls and the same `Region` as `Tap`, so what works with one works with the other.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model.device import dtype_of, resolve_device
from tap_engine.model.image_input import FittedImage, to_rgb
from tap_engine.model.ovsam.checkpoint import load_ovsam, ovsam_file, save_ovsam
from tap_engine.model.ovsam.classes import CLASSES_FILE, ClassTable, class_logits
from tap_engine.model.ovsam.config import FusionConfig
from tap_engine.model.ovsam.fusion import best_classes, fuse
from tap_engine.model.ovsam.image_input import axis_scales, fit_picture
from tap_engine.model.ovsam.model import Encoded, OvsamModel, boxes_of_masks, full_size_logits
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.prompts import make_prompts
from tap_engine.model.region import Concept, Region
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import Precision


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPicture:
    """A picture that the model has seen; prompts on it cost only the decoder.

    Attributes:
        fitted: the picture in its canvas.
        encoded: what prompts are answered from.
    """

    fitted: FittedImage
    encoded: Encoded


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the model says of K prompts on one picture.

    Attributes:
        mask_logits: [K, S / 4, S / 4] in the input's frame.
        boxes: [K, 4] xyxy px of the input: where the regions were read from.
        head_logits: [K, C + 1] of the head, background last.
        clip_logits: [K, C + 1] of frozen CLIP.
        fused: [K, C + 1] logarithms of the two put together.
        embeddings: [K, E] of the head, not normalised.
    """

    mask_logits: Tensor
    boxes: Tensor
    head_logits: Tensor
    clip_logits: Tensor
    fused: Tensor
    embeddings: Tensor


class OpenVocabularySam:
    """A model with the classes that it names.

    Args:
        model: the network; moved nowhere, so put it on its device first.
        classes: what to name; may be set later. Without any, regions have no names.
        precision: of the arithmetic, by autocast: auto, fp32, fp16 or bf16; scores stay float32.
        prompts_per_chunk: prompts decoded at a time; bounds memory.
        classes_per_chunk: classes scored at a time; bounds memory with many thousands.
        fusion: weights of head and CLIP; by default the checkpoint's.
    """

    def __init__(
        self,
        model: OvsamModel,
        *,
        classes: ClassTable | None = None,
        precision: Precision = "fp32",
        prompts_per_chunk: int = 32,
        classes_per_chunk: int = 4096,
        fusion: FusionConfig | None = None,
    ) -> None:
        if prompts_per_chunk < 1 or classes_per_chunk < 1:
            raise ConfigError(
                "prompts_per_chunk and classes_per_chunk must be positive, got "
                f"{prompts_per_chunk} and {classes_per_chunk}"
            )
        self.model = model.eval()
        self.fusion = fusion or model.config.fusion
        self.prompts_per_chunk = prompts_per_chunk
        self.classes_per_chunk = classes_per_chunk
        self._dtype = dtype_of(precision, model.pixel_mean.device)
        self._picture: EncodedPicture | None = None
        self._known: ClassTable | None = None
        self._classes: ClassTable | None = None
        if classes is not None:
            self.set_concepts(classes)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> "OpenVocabularySam":
        """The model of a checkpoint folder with the classes beside it.

        Args:
            path: the folder, or its .safetensors file.
            device: where to compute.
            precision: see the class.

        Raises:
            CheckpointError: missing, damaged, or a checkpoint of another kind.
        """
        file = ovsam_file(path)
        beside = file.parent / CLASSES_FILE
        classes = ClassTable.load(beside) if beside.is_file() else None
        on = resolve_device(device)
        return cls(load_ovsam(file, on), classes=classes, precision=precision)

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Writes a folder that `from_pretrained` reads.

        Args:
            folder: made if missing.
            about: what made the model; JSON values.
        """
        config = replace(self.model.config, fusion=self.fusion)
        file = save_ovsam(folder, self.model.state_dict(), config, about)
        if self._classes is not None:
            self._classes.save(file.parent / CLASSES_FILE)
        return file

    def set_concepts(self, classes: ClassTable | Iterable[str]) -> None:
        """What to name from here on; nothing is trained for it.

        Args:
            classes: a table with its own text prototypes, or names among those of the last table.

        Raises:
            ConfigError: a name without a prototype, or a table of another CLIP's width.
        """
        if isinstance(classes, ClassTable):
            table = self._known = classes
        elif self._known is None:
            raise ConfigError(
                f"this checkpoint has no {CLASSES_FILE}, so names alone are not enough: pass a "
                "ClassTable (model.ovsam.classes.make_classes)"
            )
        else:
            table = self._known.subset(classes)
        width = self.model.config.backbone.embed_dim
        if table.prototypes.shape[-1] != width:
            raise ConfigError(
                f"the model's CLIP has width {width}, the class table "
                f"{table.prototypes.shape[-1]}: was it made with another CLIP?"
            )
        device = self.model.pixel_mean.device
        self._classes = replace(
            table, prototypes=table.prototypes.to(device), kinds=table.kinds.to(device)
        )

    @property
    def concepts(self) -> ClassTable | None:
        """The classes that are named from; None without a table."""
        return self._classes

    def set_image(self, image: Any) -> EncodedPicture:
        """Encodes a picture once; later calls of `predict` are about it.

        Args:
            image: see `image_input.to_rgb`: RGB, grey or RGBA, array or Pillow image.

        Raises:
            SourceError: no picture in any form we know.
        """
        fitted = fit_picture(to_rgb(image), self.model.config.image_size)
        device = self.model.pixel_mean.device
        pixels = torch.from_numpy(fitted.canvas).permute(2, 0, 1)[None].to(device)
        with self.inference():
            x = self.model.normalise(pixels, torch.tensor([fitted.content_hw]))
            encoded = self.model.encode_image(x)
        self._picture = EncodedPicture(fitted, encoded)
        return self._picture

    def predict(
        self,
        *,
        boxes: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        top_k: int = 5,
        captions: bool = True,
        image: EncodedPicture | None = None,
    ) -> list[Region]:
        """One region for each prompt; the arguments are those of `Tap.predict`.

        Args:
            boxes: [P, 4] or [4] xyxy px.
            points: [P, K, 2] or [K, 2] (x, y) px.
            point_labels: [P, K] or [K]: 1 in the region (default), 0 not, 4 no point. The published
                model was trained with points in the region alone.
            mask: [P, H, W] or [H, W] mask or sketch, turned into nine points.
            top_k: names to give.
            captions: not looked at: this model writes none.
            image: what `set_image` returned; by default the last image that was set.

        Returns:
            P regions. `iou` is the stability of the mask (IoU of the mask at logits 1 and -1), for
            this model predicts no IoU; `sem_token` is empty.

        Raises:
            ConfigError: no image, no prompt, or a prompt that cannot be meant.
        """
        picture = image or self._picture
        if picture is None:
            raise ConfigError("no image: call set_image first")
        prompts = make_prompts(
            picture.fitted.image_hw,
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            mask=mask,
        )
        regions: list[Region] = []
        for start in range(0, len(prompts), self.prompts_per_chunk):
            chunk = slice(start, start + self.prompts_per_chunk)
            answers = self.answer(picture, prompts.points[chunk], prompts.labels[chunk])
            regions += self._regions(picture, answers, top_k)
        return regions

    def answer(
        self,
        picture: EncodedPicture,
        points: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        regions: Tensor | None = None,
    ) -> Answers:
        """Masks and scores of prompts.

        Args:
            picture: of `set_image`.
            points: [K, N, 2] (x, y) px of the picture; corners first, as `make_prompts` gives them.
            labels: [K, N] of `prompt_encoder.Label`.
            regions: [K, 4] xyxy px of the picture to read the regions from, whatever the prompts
                are. Only to compare with the released model's way of scoring points, which looks at
                ground truth; by default boxes are read where they are, points where their
                predicted mask is.
        """
        scale = axis_scales(picture.fitted)
        device = self.model.pixel_mean.device
        xy = torch.from_numpy(points * scale).to(device)
        kinds = torch.from_numpy(labels).to(device)
        with self.inference():
            masks, tokens = self.model.decode(picture.encoded.embedding, xy[None], kinds[None])
            masks, tokens = masks[0].float(), tokens[0]
            boxes = boxes_of_masks(masks)
            if regions is not None:
                boxes = regions.to(device) * torch.from_numpy(np.tile(scale, 2)).to(device)
            elif labels.shape[1] > 1:
                is_box = kinds[:, 0] == Label.BOX_TOP_LEFT
                boxes = torch.where(is_box[:, None], xy[:, :2].flatten(1), boxes)
            rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
            embeddings = self.model.name_regions(picture.encoded.pyramid, rois, tokens)
            clip, seen = self.model.clip_regions(picture.encoded.stage4, boxes, masks)
        head_logits, clip_logits = self.score(embeddings), self.score(clip)
        fused = head_logits
        if self._classes is not None:
            fused = fuse(head_logits, clip_logits, self._classes.kinds, self.fusion, seen)
        return Answers(masks, boxes, head_logits, clip_logits, fused, embeddings.float())

    def score(self, embeddings: Tensor) -> Tensor:
        """[K, C + 1] class logits of [K, E] embeddings of any length, background last."""
        if self._classes is None:
            return embeddings.new_zeros(len(embeddings), 1)
        return class_logits(
            embeddings,
            self._classes.prototypes,
            self.model.config.head.log_scale,
            chunk=self.classes_per_chunk,
        )

    def _regions(self, picture: EncodedPicture, answers: Answers, top_k: int) -> list[Region]:
        fitted, side = picture.fitted, self.model.config.image_size
        logits = full_size_logits(
            answers.mask_logits, (side, side), fitted.content_hw, fitted.image_hw
        )
        masks = (logits > 0).cpu().numpy()
        inner, outer = (logits > 1).flatten(1).sum(1), (logits > -1).flatten(1).sum(1)
        stability = (inner / outer.clamp(min=1)).tolist()
        probabilities = answers.fused.softmax(-1)[:, :-1]
        entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum(-1)
        named: list[tuple[Concept, ...]] = [()] * len(masks)
        if self._classes is not None:
            names = self._classes.names
            ids, values = best_classes(answers.fused, top_k)
            named = [
                tuple(Concept(names[i], p) for i, p in zip(row, scores, strict=True))
                for row, scores in zip(ids.tolist(), values.tolist(), strict=True)
            ]
        nothing = np.zeros(0, np.float32)
        return [
            Region(
                mask=masks[i],
                iou=stability[i],
                candidate=0,
                concepts=named[i],
                entropy=float(entropy[i]) if self._classes is not None else float("nan"),
                caption=None,
                sem_token=nothing,
                sem_embed=answers.embeddings[i].cpu().numpy(),
            )
            for i in range(len(masks))
        ]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the arithmetic of this predictor's precision."""
        device = self.model.pixel_mean.device.type
        enabled = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(device, self._dtype, enabled=enabled):
            yield
