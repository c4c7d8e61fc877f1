"""`Tap`, the model for people: an image and prompts in, masks with names and captions out.

tap = Tap.from_pretrained("checkpoints/tap-b")
tap.set_image(rgb)
for region in tap.predict(boxes=[[10, 20, 200, 180]]):
    print(region.concepts[0].name, region.iou, region.caption)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.model import checkpoint, concepts, text_tokenizer
from tap_engine.model.concept_projector import concept_entropy, concept_log_probs, top_concepts
from tap_engine.model.concepts import ConceptTable
from tap_engine.model.device import dtype_of, resolve_device
from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.image_input import fit_image, to_rgb
from tap_engine.model.prompts import make_prompts
from tap_engine.model.region import Candidates, Concept, EmbeddedImage, Region
from tap_engine.model.tap import TapModel, route
from tap_engine.model.text_decoder import caption_lengths
from tap_engine.model.text_tokenizer import TextTokenizer
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.schemas.precision import Precision

if TYPE_CHECKING:
    from tap_engine.model.everything import EverythingConfig, FoundRegion

UPSAMPLED = 16
"""Masks brought to the image's size at a time: 64 prompts of 4 masks on an SA-1B image would be
3.5 GB of float32."""


class Tap:
    """TAP for inference: takes an image and prompts, returns masks, names and captions.

    Args:
        model: the network; moved nowhere, so put it on its device first.
        concept_table: names to predict; may be set later.
        tokenizer: the tokenizer of captions; without it there are no captions.
        precision: precision of autocast: auto, fp32, fp16 or bf16. Weights stay float32,
            and so do positions, concept probabilities and everything that is returned.
        prompts_per_chunk: prompts decoded at a time; bounds memory, about 20 MB each in float32 at
            1024 px, more for images over 4 megapixels.
    """

    def __init__(
        self,
        model: TapModel,
        *,
        concept_table: ConceptTable | None = None,
        tokenizer: TextTokenizer | None = None,
        precision: Precision = "fp32",
        prompts_per_chunk: int = 32,
    ) -> None:
        if prompts_per_chunk < 1:
            raise ConfigError(f"prompts_per_chunk must be positive, got {prompts_per_chunk}")
        if tokenizer is not None and tokenizer.vocab_size > model.config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
                f"{model.config.text.vocab_size}"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompts_per_chunk = prompts_per_chunk
        self._dtype = dtype_of(precision, model.pixel_mean.device, "precision")
        self._image: EmbeddedImage | None = None
        self._known: ConceptTable | None = None
        self._concepts: ConceptTable | None = None
        self._weights: Tensor | None = None
        if concept_table is not None:
            self.set_concepts(concept_table)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
    ) -> "Tap":
        """The model of a checkpoint folder with the concepts and the tokenizer beside it.

        Args:
            path: the folder, its .safetensors file, or "sample" for the tiny model that comes with
                the package.
            device: the device to compute on: auto, cpu, cuda, cuda:1.
            precision: see the class.

        Raises:
            ConfigError: no such device or precision.
            CheckpointError: missing, damaged, or the tokenizer is not the one it was trained with.
        """
        file = checkpoint.checkpoint_file(path)
        folder, card = file.parent, checkpoint.read_card(file)
        table = tokenizer = None
        if (folder / concepts.CONCEPTS_FILE).is_file():
            table = ConceptTable.load(folder / concepts.CONCEPTS_FILE)
        if any((folder / name).is_file() for name in text_tokenizer.FILE_NAMES):
            tokenizer = text_tokenizer.load_tokenizer(folder)
            if card.tokenizer not in (None, tokenizer.fingerprint):
                raise CheckpointError(
                    f"{folder}: trained with tokenizer {card.tokenizer}, found "
                    f"{tokenizer.fingerprint}; captions would be nonsense"
                )
        model = checkpoint.load_model(file, resolve_device(device, "device"))
        return cls(model, concept_table=table, tokenizer=tokenizer, precision=precision)

    def set_concepts(self, table_or_names: ConceptTable | Iterable[str]) -> None:
        """Sets the names to predict from here on.

        Args:
            table_or_names: a table with its own text embeddings, or names among those of the table
                last given (by the checkpoint, usually).

        Raises:
            ConfigError: a name without a text embedding, or a table of another teacher's width.
        """
        if isinstance(table_or_names, ConceptTable):
            table = self._known = table_or_names
        elif self._known is None:
            raise ConfigError(
                "this checkpoint has no concepts.safetensors, so names alone are not enough: pass "
                "a ConceptTable with text embeddings"
            )
        else:
            table = self._known.subset(table_or_names)
        width = self.model.config.decoder.sem_embed_dim
        if table.text_embeddings.shape[1] != width:
            raise ConfigError(
                f"the model predicts embeddings of width {width}, the concept table has "
                f"{table.text_embeddings.shape[1]}: was it made with another teacher?"
            )
        self._concepts = table
        self._weights = table.weights().to(self.model.pixel_mean.device)

    @property
    def concepts(self) -> ConceptTable | None:
        """The names that are predicted from; None without a table."""
        return self._concepts

    def set_image(self, image: Any) -> EmbeddedImage:
        """Encodes an image once; later calls of `predict` are about it.

        Args:
            image: see `image_input.to_rgb`: RGB, grey or RGBA, array or Pillow image.

        Returns:
            The embedded image, to keep and give to `predict` if several are in use.

        Raises:
            SourceError: no image in any form we know.
        """
        fitted = fit_image(to_rgb(image), self.model.config.image_size, self.model.fill_rgb)
        pixels = torch.from_numpy(fitted.canvas).permute(2, 0, 1).unsqueeze(0)
        with self.inference():
            embedding = self.model.encode_image(pixels.to(self.model.pixel_mean.device))
        self._image = EmbeddedImage(fitted, embedding)
        return self._image

    def predict(
        self,
        *,
        boxes: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        top_k: int = 5,
        captions: bool = True,
        image: EmbeddedImage | None = None,
    ) -> list[Region]:
        """One region for each prompt.

        Args:
            boxes: [P, 4] or [4] xyxy px.
            points: [P, K, 2] or [K, 2] (x, y) px; K points of each region.
            point_labels: [P, K] or [K]: 1 in the region (default), 0 not, 4 no point.
            mask: [P, H, W] or [H, W] mask or sketch, turned into nine points.
            top_k: concepts to name.
            captions: write captions, where there is a tokenizer.
            image: what `set_image` returned; by default the last image that was set.

        Returns:
            P regions; none for an empty list of boxes.

        Raises:
            ConfigError: no image, no prompt, or a prompt that cannot be meant (off the image, no
                area, not a number); see `prompts.make_prompts`.
        """
        prompts = make_prompts(
            self._current(image).fitted.image_hw,
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            mask=mask,
        )
        return [
            region
            for found in self.candidates(prompts.points, prompts.labels, image=image)
            for region in self._regions(found, top_k, captions)
        ]

    def everything(
        self, image: Any, config: "EverythingConfig | None" = None
    ) -> "list[FoundRegion]":
        """Every region of an image, without prompts; see everything.py, which does it."""
        from tap_engine.model.everything import EverythingConfig, find_everything

        return find_everything(self, image, config or EverythingConfig())

    def candidates(
        self,
        points: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        *,
        image: EmbeddedImage | None = None,
        chunk: int | None = None,
    ) -> Iterator[Candidates]:
        """The raw answers: all four masks, IoU estimates and embeddings of each prompt.

        Prompts are neither clipped nor checked; `prompts.make_prompts` makes them of boxes, points
        and masks.

        Args:
            points: [P, K, 2] (x, y) px of the image; a box is its two corners.
            labels: [P, K] of `prompt_encoder.Label`.
            image: what `set_image` returned; by default the last image that was set.
            chunk: prompts decoded at a time; `prompts_per_chunk` by default.

        Yields:
            Answers to `chunk` prompts each, in order; nothing without prompts.

        Raises:
            ConfigError: no image.
        """
        image = self._current(image)
        chunk = chunk or self.prompts_per_chunk
        device = image.embedding.device
        for start in range(0, len(points), chunk):
            part = slice(start, start + chunk)
            xy = torch.from_numpy(points[part] * np.float32(image.fitted.scale))
            given = torch.from_numpy(labels[part]).unsqueeze(0).to(device)
            with self.inference():
                raw = self.model.decode(image.embedding, xy.unsqueeze(0).to(device), given)
                chosen = route(raw.iou_pred, given)[0]
            yield Candidates(image, raw, chosen)

    def masks(self, mask_logits: Tensor, image: EmbeddedImage) -> npt.NDArray[np.bool_]:
        """Masks at the image's own size.

        Args:
            mask_logits: [..., S/4, S/4], of `Candidates`.
            image: the one they are of.

        Returns:
            [..., H, W] bool.
        """
        fitted = image.fitted
        masks = np.empty((*mask_logits.shape[:-2], *fitted.image_hw), np.bool_)
        flat = masks.reshape(-1, *fitted.image_hw)
        logits = mask_logits.float().reshape(-1, *mask_logits.shape[-2:])
        for start in range(0, len(logits), UPSAMPLED):
            part = slice(start, start + UPSAMPLED)
            with self.inference():
                full = self.model.full_size_logits(logits[part], fitted.content_hw, fitted.image_hw)
            flat[part] = (full > 0).cpu().numpy()
        return masks

    def captions(self, routed: RegionOutput) -> list[str | None]:
        """Greedy captions of the chosen candidates, [1, P, ...]; None each without a tokenizer."""
        with self.inference():
            return self._write(self.model.caption_tokens(routed)[0])

    def _current(self, image: EmbeddedImage | None) -> EmbeddedImage:
        image = image or self._image
        if image is None:
            raise ConfigError("no image: call set_image first")
        return image

    def _regions(self, found: Candidates, top_k: int, captions: bool) -> list[Region]:
        routed = found.routed()
        sem_embeds = routed.sem_embeds[0].float()
        with self.inference():
            names, entropies = self._names(sem_embeds, top_k)
        parts = zip(
            self.masks(routed.mask_logits[0], found.image),
            routed.iou_pred[0].float().tolist(),
            found.chosen.tolist(),
            names,
            entropies,
            self.captions(routed) if captions else [None] * len(found),
            routed.sem_tokens[0].float().cpu().numpy(),
            sem_embeds.cpu().numpy(),
            strict=True,
        )
        return [Region(*part) for part in parts]

    def _names(
        self, sem_embeds: Tensor, top_k: int
    ) -> tuple[list[tuple[Concept, ...]], list[float]]:
        if self._concepts is None or self._weights is None:
            return [()] * len(sem_embeds), [float("nan")] * len(sem_embeds)
        log_probs = concept_log_probs(sem_embeds, self._weights)
        ids, probabilities = top_concepts(log_probs, min(top_k, len(self._concepts.names)))
        named = [
            tuple(Concept(self._concepts.names[i], p) for i, p in zip(row, scores, strict=True))
            for row, scores in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]
        return named, concept_entropy(log_probs).tolist()

    def _write(self, tokens: Tensor) -> list[str | None]:
        if self.tokenizer is None:
            return [None] * len(tokens)
        bos_id, eos_id = self.tokenizer.bos_id, self.tokenizer.eos_id
        ids = self.model.text_decoder.generate(tokens, bos_id=bos_id, eos_id=eos_id)
        lengths = caption_lengths(ids, eos_id).tolist()
        rows = zip(ids.tolist(), lengths, strict=True)
        return [self.tokenizer.decode(row[:length]) for row, length in rows]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the arithmetic of this predictor's precision."""
        device = self.model.pixel_mean.device.type
        enabled = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(device, self._dtype, enabled=enabled):
            yield
