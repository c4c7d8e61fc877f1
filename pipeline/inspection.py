"""Overview of a store, and the view of one region, for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tap_engine.model.picture import PAIR_PX, PANEL_PX, Mark, draw_marks, draw_sheet
from tap_engine.pipeline.crop import decode_image
from tap_engine.pipeline.key_index import rows_of_keys
from tap_engine.pipeline.query import concept_names
from tap_engine.pipeline.store import Store
from tap_engine.schemas import rle, tables
from tap_engine.schemas.errors import StoreError


@dataclass(frozen=True)
class StoreOverview:
    """Counts and provenance of a store, or of a mixture plan, which has no units."""

    rows: Mapping[str, int]
    columns: Mapping[str, list[str]]
    sources: Mapping[str, int]
    units: int
    rejects: Mapping[str, int]
    settings: Mapping[str, Any]
    made: Mapping[str, Any]


def overview(store: Store) -> StoreOverview:
    """Read the small columns and the metadata.

    Raises:
        StoreError: not a store.
    """
    names = [
        name
        for name in (tables.IMAGES, tables.REGIONS, tables.CONCEPTS, tables.REJECTS, tables.MIXTURE)
        if store.exists(name)
    ]
    main = next((name for name in (tables.IMAGES, tables.MIXTURE) if name in names), None)
    if main is None:
        raise StoreError(
            f"{store.uri} has neither table 'images' nor 'mixture'; is it a store of this system?"
        )
    datasets = {name: store.open(name) for name in names}
    images = datasets[main].to_table(
        columns=["source", *(["unit"] if main == tables.IMAGES else [])]
    )
    reasons = (
        datasets[tables.REJECTS].to_table(columns=["reason"]).column("reason")
        if tables.REJECTS in names
        else pa.chunked_array([], pa.string())
    )
    provenance = store.provenance(main)
    return StoreOverview(
        rows={name: dataset.count_rows() for name, dataset in datasets.items()},
        columns={
            name: [f"{f.name}: {f.type}" for f in dataset.schema]
            for name, dataset in datasets.items()
        },
        sources=_counts(images.column("source")),
        units=len(pc.unique(images.column("unit"))) if main == tables.IMAGES else 0,
        rejects=_counts(reasons),
        settings=provenance.settings,
        made=provenance.made,
    )


@dataclass(frozen=True)
class RegionView:
    """One region: its row, its most probable concepts, and its picture.

    Attributes:
        row: columns of `regions` but for the vectors and the mask.
        concepts: (name, probability), most probable first; empty if the store keeps none.
        picture: [h, w, 3] uint8 RGB, the region with some context, enlarged to `PANEL_PX`.
    """

    row: Mapping[str, Any]
    concepts: list[tuple[str, float]]
    picture: npt.NDArray[np.uint8]


def view_region(store: Store, key: int, *, top: int = 5, context: float = 0.3) -> RegionView:
    """Look up one region by key.

    Args:
        store: the store.
        key: region key.
        top: the number of concepts.
        context: margin around the box in the picture, share of its sides.

    Raises:
        StoreError: no such key.
    """
    row = rows_of_keys(store.open(tables.REGIONS), [key]).to_pylist()[0]
    concepts = []
    if "concept_ids" in row:
        names = concept_names(store)
        pairs = zip(row["concept_ids"], row["concept_probs"], strict=True)
        concepts = [(names[index], float(share)) for index, share in list(pairs)[:top]]
    best = concepts[0] if concepts else None
    hidden = ("embedding", "concept_ids", "concept_probs", "rle")
    return RegionView(
        {name: value for name, value in row.items() if name not in hidden},
        concepts,
        _picture(read_image(store, row["image_id"]), row["rle"], row["bbox_xywh"], context, best),
    )


def read_image(store: Store, image_id: int) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB of a stored image.

    Raises:
        StoreError: no such image.
    """
    images = store.open(tables.IMAGES)
    rows = images.to_table(columns=["image_id"], filter=f"image_id = {image_id}", with_row_id=True)
    if not rows.num_rows:
        raise StoreError(f"no image {image_id} in {store.uri}")
    ids = [int(rows.column("_rowid")[0].as_py())]
    blob = images.take_blobs("jpeg", ids=ids)[0]
    assert blob is not None
    return decode_image(blob.readall())


def draw_regions(
    store: Store, keys: Sequence[int], texts: Sequence[str], *, columns: int = 4
) -> Image.Image:
    """Regions with some of what is around them, on one sheet.

    Args:
        store: the store.
        keys: at least one region key, in the order to draw.
        texts: what stands behind the name of each.
        columns: the number of panels per row.
    """
    panels = []
    for key, text in zip(keys, texts, strict=True):
        view = view_region(store, key, top=1)
        panel = Image.fromarray(view.picture)
        panel.thumbnail((PAIR_PX, PAIR_PX))
        name = f"{view.concepts[0][0]}  {text}" if view.concepts else text
        panels.append(draw_sheet([panel], columns=1, title=name))
    return draw_sheet(panels, columns=columns)


def save_picture(picture: npt.NDArray[np.uint8], path: str) -> None:
    """Write an [h, w, 3] uint8 RGB array as PNG."""
    Image.fromarray(picture).save(path, "PNG")


def _picture(
    image: npt.NDArray[np.uint8],
    counts: bytes | None,
    box: list[float],
    context: float,
    concept: tuple[str, float] | None,
) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    margin_x, margin_y = context * box[2] + 8, context * box[3] + 8
    left, top = max(int(box[0] - margin_x), 0), max(int(box[1] - margin_y), 0)
    right = min(int(np.ceil(box[0] + box[2] + margin_x)), width)
    bottom = min(int(np.ceil(box[1] + box[3] + margin_y)), height)
    window = (left, top, right, bottom)
    if counts is None:
        inside = np.zeros((bottom - top, right - left), np.uint8)
        columns = slice(int(box[0]) - left, int(box[0] + box[2]) - left)
        inside[int(box[1]) - top : int(box[1] + box[3]) - top, columns] = 1
    else:
        inside = rle.decode_window(rle.runs(counts, (height, width)), (height, width), window)
    name = "region" if concept is None else concept[0]
    text = "" if concept is None else f"{name} {concept[1]:.2f}"
    mark = Mark(mask=inside, name=name, text=text)
    return np.asarray(draw_marks(image[top:bottom, left:right], [mark], side_px=PANEL_PX))


def _counts(column: Any) -> dict[str, int]:
    # Chunks of a dictionary column have dictionaries of their own; as strings they are one count.
    column = column.cast(pa.string())
    return {
        str(entry["values"]): int(entry["counts"]) for entry in pc.value_counts(column).to_pylist()
    }
