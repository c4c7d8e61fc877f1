"""Turns stored images into examples and batches: decodes, augments, chooses, pads.

Everything random here is drawn from (seed, epoch, image id), so a sample is the same whichever
process makes it.
"""

import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tap_engine.model.text_tokenizer import IGNORE, TextTokenizer, caption_words
from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.errors import SchemaError
from tap_engine.train.data.augment import AugmentConfig, draw_view, vary_colour
from tap_engine.train.data.noise import mixed_bits, seed_of
from tap_engine.train.data.store_reader import StoredImage

REGION_COLUMNS = ("bbox_xywh", "rle")

_Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    """Settings by which an image becomes an example.

    Attributes:
        image_px: side of the network's input.
        mask_px: side of the mask targets.
        regions: regions per image, at most; drawn anew each epoch where there are more.
        soft_masks: targets are area shares of each mask pixel; else 0 or 1 at one half.
        fill_rgb: colour beside images that are not square.
        columns: columns of `regions` that become targets.
        augment: what is varied.
        seed: the seed of the run.
        tokenizer: tokenizer of captions; needed if they are among the columns.
        positions: length of the text decoder (`TextConfig.max_seq_len`); captions are cut to it.
        prompted: number of the `regions` that get prompts; 0 for all.
        opencv: resize with OpenCV's bilinear filter, as Open-Vocabulary SAM does at inference; else
            with Pillow's, as TAP does.
    """

    image_px: int
    mask_px: int
    regions: int
    soft_masks: bool
    fill_rgb: tuple[int, int, int]
    columns: tuple[str, ...]
    augment: AugmentConfig
    seed: int
    tokenizer: TextTokenizer | None = None
    positions: int = 0
    prompted: int = 0
    opencv: bool = False


@dataclass(slots=True, kw_only=True)
class Example:
    """One image with R regions; arrays are None where the settings do not ask for them.

    Attributes:
        image_id: see schemas/keys.py.
        image: [S, S, 3] uint8 RGB.
        content_hw: the part of it that is picture, px; what is beside it is filling.
        masks: [R, M, M] uint8, 255 is wholly inside; all 0 where `has_mask` is False.
        has_mask: [R] bool.
        boxes_xyxy: [R, 4] float32, px of the input.
        keys: [R] int64.
        seeds: [R] int64, for whatever is drawn for a region.
        has_concepts: [R] bool: the teacher saw the region; elsewhere the next three are 0.
        embeddings: [R, D] float16, the teacher's; None where the store has none.
        concept_ids: [R, K] int64, likewise.
        concept_probs: [R, K] float16, likewise.
        words: [R, L] int64: BOS, the caption's ids, EOS, then IGNORE; all IGNORE where the region
            has no caption.
        problem: why the image has no regions, if it could not be read.
    """

    image_id: int
    image: _Array
    content_hw: tuple[int, int]
    masks: _Array
    has_mask: _Array
    boxes_xyxy: _Array
    keys: _Array
    seeds: _Array
    has_concepts: _Array
    embeddings: _Array | None = None
    concept_ids: _Array | None = None
    concept_probs: _Array | None = None
    words: _Array | None = None
    problem: str | None = None


@dataclass(slots=True, kw_only=True)
class Batch:
    """B samples padded to the same R regions.

    Attributes:
        images: [B, 3, S, S] uint8 RGB, channels last in memory.
        content_hw: [B, 2] int64: the part of each that is picture, px.
        valid: [B, R] bool, False where padded.
        image_ids: [B] ints.
        problems: what could not be read, a line each.
        prompted: the first so many regions get prompts (they come in random order); 0 for all.

    The other fields are those of `Example` with a leading [B]; padding is zero, in words IGNORE.
    """

    images: Tensor
    content_hw: Tensor
    masks: Tensor
    has_mask: Tensor
    boxes_xyxy: Tensor
    keys: Tensor
    seeds: Tensor
    valid: Tensor
    has_concepts: Tensor
    embeddings: Tensor | None
    concept_ids: Tensor | None
    concept_probs: Tensor | None
    words: Tensor | None
    image_ids: list[int]
    problems: list[str]
    prompted: int = 0

    def asked(self) -> "Batch":
        """The batch with only those regions that get prompts."""
        if not 0 < self.prompted < self.valid.shape[1]:
            return self
        padded = {name: getattr(self, name) for name in ("valid", *_PADDED)}
        first = {k: v[:, : self.prompted] for k, v in padded.items() if v is not None}
        return dataclasses.replace(self, **first)

    def cover(self) -> Tensor:
        """[B, R, M, M] float32 in [0, 1]: how much of each mask pixel a region covers."""
        return self.masks.float() / 255

    def inside(self) -> Tensor:
        """[B, R, M, M] bool: pixels more than half covered.

        A region too small for any is where it covers most; without a mask it is nowhere.
        """
        half = self.masks > 127
        most = self.masks.amax((-2, -1), keepdim=True)
        faint = (self.masks == most) & (self.masks > 0)
        return torch.where(half.any(-1, keepdim=True).any(-2, keepdim=True), half, faint)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; tensors in pinned memory travel while the device computes."""
        return self._mapped(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by the loader on CUDA machines."""
        return self._mapped(lambda t: t.pin_memory())

    def shared(self) -> "Batch":
        """The batch in shared memory, for another process; RuntimeError if there is none."""
        return self._mapped(lambda t: t.share_memory_())

    def _mapped(self, change) -> "Batch":  # type: ignore[no-untyped-def]
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Batch(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})


_PADDED = (
    "masks",
    "has_mask",
    "boxes_xyxy",
    "keys",
    "seeds",
    "has_concepts",
    "embeddings",
    "concept_ids",
    "concept_probs",
    "words",
)


def make_example(stored: StoredImage, epoch: int, config: ExampleConfig) -> Example:
    """Decode, augment, and choose regions that can still be seen."""
    rng = np.random.default_rng(seed_of(config.seed, epoch, stored.image_id))
    view = draw_view(stored.size_hw, config.image_px, config.augment, rng)
    try:
        with Image.open(io.BytesIO(stored.jpeg)) as file:
            image = view.image(file.convert("RGB"), config.fill_rgb, opencv=config.opencv)
        problem = None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        image = np.zeros((config.image_px, config.image_px, 3), np.uint8)
        problem = f"image {stored.image_id}: {error}"
    image = vary_colour(image, config.augment, rng)

    table = stored.regions
    boxes = view.boxes(xywh_to_xyxy(_vectors(table, "bbox_xywh")))
    visible = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1) & (problem is None))
    counts = table["rle"]
    rows: list[int] = []
    masks: list[npt.NDArray[np.uint8]] = []
    for row in rng.permutation(visible):
        if len(rows) == config.regions:
            break
        text = counts[row].as_py()
        mask = np.zeros((config.mask_px,) * 2, np.uint8)
        if text is not None:
            try:
                runs = rle.runs(text, stored.size_hw)
            except SchemaError as error:
                problem = f"image {stored.image_id}, region row {row}: {error}"
                continue
            cover = view.mask(runs, config.mask_px)
            if not _enough(cover, config.soft_masks):
                continue
            mask = _as_bytes(cover, config.soft_masks)
            boxes[row] = _tightened(boxes[row], cover, config.image_px)
        rows.append(row)
        masks.append(mask)
    chosen = np.asarray(rows, np.int64)
    table = table.take(chosen)
    keys = table["key"].to_numpy()
    sample = Example(
        image_id=stored.image_id,
        image=image,
        content_hw=view.content_hw,
        masks=np.stack(masks) if masks else np.zeros((0, config.mask_px, config.mask_px), np.uint8),
        has_mask=np.asarray(table["rle"].is_valid()),
        boxes_xyxy=boxes[chosen],
        keys=keys,
        seeds=(mixed_bits(config.seed, epoch, keys) >> np.uint64(1)).astype(np.int64),
        has_concepts=np.zeros(len(rows), bool),
        problem=problem,
    )
    # A store that no teacher saw lacks these columns.
    present = set(config.columns) & set(table.column_names)
    if "embedding" in present:
        sample.embeddings = _vectors(table, "embedding")
        sample.has_concepts = np.asarray(table["embedding"].is_valid())
    if "concept_ids" in present:
        sample.concept_ids = _vectors(table, "concept_ids").astype(np.int64)
        sample.concept_probs = _vectors(table, "concept_probs")
        sample.has_concepts = np.asarray(table["concept_ids"].is_valid())
    if "caption" in present:
        sample.words = _words(table["caption"].to_pylist(), config)
    return sample


def collate(samples: Iterable[Example], prompted: int = 0) -> Batch:
    """Samples -> one batch, padded to the most regions among them (at least one)."""
    samples = list(samples)
    most = max(1, *(len(s.keys) for s in samples))

    def padded(name: str) -> Tensor | None:
        arrays = [getattr(s, name) for s in samples]
        like = next((array for array in arrays if array is not None), None)
        if like is None:
            return None
        fill = IGNORE if name == "words" else 0
        out = np.full((len(arrays), most, *like.shape[1:]), fill, like.dtype)
        for row, array in zip(out, arrays, strict=True):
            if array is not None:
                row[: len(array)] = array
        return torch.from_numpy(out)

    valid = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, sample in zip(valid, samples, strict=True):
        row[: len(sample.keys)] = True
    fields = {name: padded(name) for name in _PADDED}
    return Batch(
        images=torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2),
        content_hw=torch.tensor([s.content_hw for s in samples]),
        valid=valid,
        image_ids=[s.image_id for s in samples],
        problems=[s.problem for s in samples if s.problem is not None],
        prompted=prompted,
        **fields,  # type: ignore[arg-type]
    )


def _vectors(table: pa.Table, name: str) -> npt.NDArray[Any]:
    # [N, width] of a fixed-size-list column; 0 where it is null, which flatten leaves out.
    column = table[name]
    values = pa.concat_arrays(
        [chunk.flatten() for chunk in column.chunks] or [pa.array([], column.type.value_type)]
    )
    found = values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    if not column.null_count:
        return found
    out = np.zeros((len(column), column.type.list_size), found.dtype)
    out[np.asarray(column.is_valid())] = found
    return out


def _words(captions: list[str | None], config: ExampleConfig) -> npt.NDArray[np.int64]:
    # [N, positions]: see `Example.words`.
    assert config.tokenizer is not None, "captions need a tokenizer"
    out = np.full((len(captions), config.positions), IGNORE, np.int64)
    texts = {row: text for row, text in enumerate(captions) if text}
    words = caption_words(config.tokenizer, list(texts.values()), config.positions)
    out[list(texts), : words.shape[1]] = words.numpy()
    return out


def _enough(cover: npt.NDArray[np.float32], soft: bool) -> bool:
    # A region needs something to learn from: half a mask pixel, or one that is more than half in.
    return bool(cover.sum() >= 0.5 if soft else (cover > 0.5).any())


def _as_bytes(cover: npt.NDArray[np.float32], soft: bool) -> npt.NDArray[np.uint8]:
    return (cover * 255 + 0.5).astype(np.uint8) if soft else (cover > 0.5).astype(np.uint8) * 255


def _tightened(
    box: npt.NDArray[np.float32], cover: npt.NDArray[np.float32], image_px: int
) -> npt.NDArray[np.float32]:
    # The box of a region that the view cuts: its own box cut to the view can be far too large, the
    # box of the mask cells is right to a cell; the smaller on each side.
    ratio = image_px / len(cover)
    ys, xs = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    cells = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]) * ratio
    low = np.maximum(box[:2], cells[:2])
    return np.concatenate([low, np.minimum(box[2:], cells[2:])]).astype(np.float32)
