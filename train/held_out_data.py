"""Images of a store to measure on, with what they really show."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.schemas import rle
from tap_engine.schemas.boxes import xywh_to_xyxy
from tap_engine.schemas.truth import Thing, Truth
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.data.store_reader import StoredImage, StoreReader

MEASURED_COLUMNS = ("region_id", "bbox_xywh", "rle")
"""What a store must hold to be measured on; with `OPTIONAL_COLUMNS` more is measured."""

OPTIONAL_COLUMNS = ("embedding", "caption")


def things_of(truth: Truth, stored: StoredImage) -> list[Thing | None]:
    """Truth of each region of an image; None where the table does not say."""
    ids = stored.regions["region_id"].to_pylist()
    return [truth.rows.get((stored.image_id, region_id)) for region_id in ids]


def open_measured(uri: str, storage_options: Mapping[str, str] | None = None) -> StoreReader:
    """A store with the columns that are measured.

    Args:
        uri: folder or object-store prefix.
        storage_options: options of the object store, as Lance takes them.
    """
    return StoreReader(
        uri,
        region_columns=MEASURED_COLUMNS,
        optional_columns=OPTIONAL_COLUMNS,
        storage_options=storage_options,
    )


def stored_images(reader: StoreReader, count: int, split: str = "") -> Iterator[StoredImage]:
    """The first `count` images of a split that have masks, with only the regions that have one."""
    for stored in reader.first(count, split):
        masked = stored.regions.filter(stored.regions["rle"].is_valid())
        if len(masked):
            yield replace(stored, regions=masked)


def pixels_of(stored: StoredImage) -> Rgb:
    """[H, W, 3] uint8."""
    with Image.open(io.BytesIO(stored.jpeg)) as file:
        return to_rgb(file)


def boxes_xyxy_of(stored: StoredImage) -> npt.NDArray[np.float64]:
    """[R, 4] xyxy px."""
    column = stored.regions["bbox_xywh"].combine_chunks()
    return xywh_to_xyxy(column.flatten().to_numpy().reshape(-1, 4)).astype(np.float64)


def masks_of(stored: StoredImage) -> npt.NDArray[np.bool_]:
    """[R, H, W] the true masks, of regions that all have one."""
    counts = stored.regions["rle"].to_pylist()
    return np.stack([rle.decode(text, stored.size_hw) for text in counts]) > 0


def teacher_log_probs_of(space: ConceptSpace, stored: StoredImage) -> Tensor:
    """[R, C] the teacher's log-probabilities over the store's concepts, on the CPU."""
    embeddings = np.stack(stored.regions["embedding"].to_numpy(zero_copy_only=False))
    device = space.target_weights.device
    return space.teacher_log_probs(torch.from_numpy(embeddings).to(device)).cpu()
