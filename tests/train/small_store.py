"""Small Lance stores with known content, written by the schemas alone."""

import io
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from tap_engine.schemas import rle
from tap_engine.schemas.keys import pack_image_id, region_key
from tap_engine.schemas.provenance import METADATA_KEY
from tap_engine.schemas.store_settings import StoreSettings, TeacherInfo
from tap_engine.schemas.tables import concepts_schema, images_schema, regions_schema

EMBEDDING_DIM = 16
TOP_K = 4
CONCEPTS = 12
LOGIT_SCALE = 20.0
TEACHER = TeacherInfo(
    name="made up",
    pretrained="none",
    weights_sha256="0" * 64,
    precision="float32",
    embed_dim=EMBEDDING_DIM,
    image_px=32,
    mean_rgb=(0.5, 0.5, 0.5),
    std_rgb=(0.5, 0.5, 0.5),
    logit_scale=LOGIT_SCALE,
    random_weights=True,
)


def blob_schema() -> pa.Schema:
    schema = images_schema()
    return schema.set(schema.get_field_index("jpeg"), lance.blob_field("jpeg"))


def draw_image(rng: np.random.Generator, size_hw: tuple[int, int], count: int):
    """An image of coloured rectangles, and their visible masks."""
    height, width = size_hw
    pixels = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
    masks = []
    for _ in range(count):
        x, y = rng.integers(0, width - 8), rng.integers(0, height - 8)
        w, h = rng.integers(8, width - x + 1), rng.integers(8, height - y + 1)
        mask = np.zeros(size_hw, np.uint8)
        mask[y : y + h, x : x + w] = 1
        pixels[mask > 0] = rng.integers(0, 255, 3)
        masks = [m & ~mask & 1 for m in masks] + [mask]
    return pixels, [m for m in masks if m.any()]


def make_store(
    root: Path,
    images: int = 20,
    *,
    unit_images: int = 5,
    size_hw: tuple[int, int] = (48, 64),
    regions: int = 6,
    seed: int = 0,
    source: str = "sa1b",
    captions: bool = False,
    first_id: int = 1,
    first_unit: int = 1000,
    pixels: bool = True,
    jpegs: tuple[bytes, ...] = (),
    taught: bool = True,
    splits: tuple[str | None, ...] = (),
    boxes: bool = False,
) -> Path:
    """A store with units out of order, several fragments, and images without regions.

    Adds to a store that is there; then with another `first_id` and `first_unit`.
    `pixels=False` gives every image the same JPEG and cheap masks, for large stores; `jpegs` are
    taken in turn instead, files of `size_hw`.
    `taught=False` leaves out what a teacher adds, `boxes` the masks; `splits` are given to the
    images in turn.
    """
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    text = rng.standard_normal((CONCEPTS, EMBEDDING_DIM)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    schema = concepts_schema(EMBEDDING_DIM)
    concepts = pa.table(
        [
            np.arange(CONCEPTS, dtype=np.int32),
            [f"concept {i}" for i in range(CONCEPTS)],
            [["made up"]] * CONCEPTS,
            vectors(text, pa.float32()),
            vectors(np.roll(text, 1, 1), pa.float32()),
        ],
        schema=schema,
    )
    if taught:
        lance.write_dataset(concepts, str(root / "concepts.lance"), mode="overwrite")
    settings = StoreSettings(teacher=TEACHER if taught else None)
    metadata = {METADATA_KEY: settings.provenance().to_json()}
    shared = jpegs or (_jpeg(draw_image(rng, size_hw, 3)[0]),)
    for unit in range(0, images, unit_images):
        ids = [
            pack_image_id(source, first_id + i)
            for i in range(unit, min(unit + unit_images, images))
        ]
        image_rows, region_rows = [], []
        for image_id in ids:
            count = int(rng.integers(0, regions + 1)) if image_id % 7 == 3 else regions
            if pixels:
                drawn, masks = draw_image(rng, size_hw, count)
                jpeg = _jpeg(drawn)
            else:
                masks = [np.ones(size_hw, np.uint8)] * count
                jpeg = shared[image_id % len(shared)]
            image_rows.append((image_id, jpeg, len(masks)))
            region_rows += [(image_id, ordinal, mask) for ordinal, mask in enumerate(masks)]
        unit_id = first_unit - unit
        # Images of a unit need not be sorted; their regions are.
        rng.shuffle(image_rows)
        table = _images(image_rows, unit_id, source, size_hw)
        _append(_with_splits(table, splits), root / "images.lance", metadata)
        table = _regions(rng, region_rows, unit_id, source, size_hw, captions)
        if boxes:
            at = table.column_names.index("rle")
            table = table.set_column(at, table.schema.field(at), pa.nulls(len(table), pa.binary()))
        if not taught:
            table = table.drop_columns([n for n in table.column_names if n.startswith(_TAUGHT)])
        _append(_with_splits(table, splits), root / "regions.lance", metadata)
    return root


def vectors(values: np.ndarray, type_: pa.DataType) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values).ravel(), type_)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


_TAUGHT = ("embedding", "concept_")


def _with_splits(table: pa.Table, splits: tuple[str | None, ...]) -> pa.Table:
    if not splits:
        return table
    named = [splits[image_id % len(splits)] for image_id in table["image_id"].to_pylist()]
    return table.append_column("split", pa.array(named, pa.string()))


def _append(table: pa.Table, path: Path, metadata: dict[str, str]) -> None:
    table = table.replace_schema_metadata(metadata)
    mode = "append" if path.exists() else "create"
    lance.write_dataset(table, str(path), mode=mode, data_storage_version="2.2")


def _images(rows, unit_id: int, source: str, size_hw: tuple[int, int]) -> pa.Table:
    n = len(rows)
    return pa.table(
        [
            pa.array([r[0] for r in rows], pa.int64()),
            pa.array([source] * n).cast(images_schema().field("source").type),
            pa.array([unit_id] * n, pa.int64()),
            pa.array([f"{r[0]}.jpg" for r in rows]),
            pa.array([size_hw[1]] * n, pa.int32()),
            pa.array([size_hw[0]] * n, pa.int32()),
            lance.blob_array([r[1] for r in rows]),
            pa.array([r[2] for r in rows], pa.int32()),
        ],
        schema=blob_schema(),
    )


def _regions(rng, rows, unit_id: int, source: str, size_hw, captions: bool) -> pa.Table:
    n = len(rows)
    embeddings = rng.standard_normal((n, EMBEDDING_DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    runs = [rle.runs(rle.encode(mask), size_hw) for _, _, mask in rows]
    box = np.array([rle.bbox_xywh(r, size_hw) for r in runs], np.float32).reshape(n, 4)
    ids = np.stack([rng.permutation(CONCEPTS)[:TOP_K] for _ in range(n)] or [np.zeros(TOP_K)])[:n]
    return pa.table(
        [
            pa.array([region_key(i, o) for i, o, _ in rows], pa.int64()),
            pa.array([r[0] for r in rows], pa.int64()),
            pa.array(range(n), pa.int64()),
            pa.array([source] * n, pa.string()).cast(images_schema().field("source").type),
            pa.array([unit_id] * n, pa.int64()),
            vectors(box, pa.float32()),
            pa.array([rle.area(r) for r in runs], pa.int32()),
            pa.array(
                [None if captions and k % 2 else rle.encode(m) for k, (_, _, m) in enumerate(rows)],
                pa.binary(),
            ),
            pa.nulls(n, pa.float32()),
            pa.nulls(n, pa.float32()),
            vectors(embeddings.astype(np.float16), pa.float16()),
            vectors(ids.astype(np.uint16), pa.uint16()),
            vectors(np.full((n, TOP_K), 0.25, np.float16), pa.float16()),
            pa.array([0.0] * n, pa.float32()),
            pa.array([f"word {k}" if captions else None for k in range(n)], pa.string()),
        ],
        schema=regions_schema(EMBEDDING_DIM, TOP_K),
    )


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
