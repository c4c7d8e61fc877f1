"""Dump a teacher's image features: SAM-H costs 3 TFLOP a picture, and stage 1 sees each 24 times.

One commit a unit of the store, so a unit is there whole or not at all; a killed dump goes on with
the units that lack. Several processes share the units by their place in the list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import torch

from tap_engine.model.ovsam.image_input import fit_picture
from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.schemas.teacher_features import METADATA_KEY, teacher_features_schema
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.held_out_data import pixels_of
from tap_engine.train.ovsam.teachers import FeatureTeacher

TABLE = "features.lance"


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpConfig:
    """What to dump.

    Attributes:
        store: whose pictures.
        out: folder of the dump.
        image_px: side of the input; 1024 for SAM.
        images: pictures computed at a time.
        split: only pictures of this split; empty for all.
        share: this process's place among `shares`, from 0.
        shares: processes that dump together.
    """

    store: str
    out: Path
    image_px: int = 1024
    images: int = 4
    split: str = ""
    share: int = 0
    shares: int = 1

    def __post_init__(self) -> None:
        if self.images < 1 or not 0 <= self.share < self.shares:
            raise ConfigError(
                "images must be at least 1 and share in 0..shares - 1, got "
                f"{self.images}, {self.share}, {self.shares}"
            )


def dump_features(
    config: DumpConfig,
    teacher: FeatureTeacher,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the features of the pictures that the dump lacks.

    Args:
        config: what to dump.
        teacher: on `device`.
        device: where to compute.
        progress: called with (pictures done, in all), of this share.

    Returns:
        How many pictures were added.

    Raises:
        SchemaError: the dump that is there is of another teacher, input size or store.
        ConfigError: another process dumps this share.
    """
    lock = FolderLock(config.out / f"share_{config.share}_of_{config.shares}")
    lock.take()
    reader = StoreReader(config.store, region_columns=())
    units = reader.unit_rows()[config.share :: config.shares]
    kept = reader.split_rows(config.split) if config.split else None
    total = sum(last - first for _, first, last in units)
    uri = str(config.out / TABLE)
    done, added = 0, 0
    table = lance.dataset(uri) if Path(uri).exists() else None
    wanted = None
    finished: set[int] = set()
    if table is not None:
        finished = set(table.to_table(columns=["unit"])["unit"].to_pylist())
    for unit, first, last in units:
        rows = np.arange(first, last)
        rows = rows if kept is None else np.intersect1d(rows, kept)
        if unit not in finished and len(rows):
            ids, features = [], []
            for batch_ids, batch in _features(reader, rows, config, teacher, device):
                ids += batch_ids
                features.append(batch)
            found = np.concatenate(features)
            if wanted is None:
                wanted = _provenance(config, teacher, reader, found.shape[1:])
                require_same_dump(uri, wanted)
            _append(uri, ids, unit, found, wanted)
            added += len(ids)
        done += last - first
        progress(done, total)
    lock.release()
    return added


def _features(
    reader: StoreReader,
    rows: np.ndarray,
    config: DumpConfig,
    teacher: FeatureTeacher,
    device: str | torch.device,
) -> Iterator[tuple[list[int], np.ndarray]]:
    for start in range(0, len(rows), config.images):
        stored = reader.read(rows[start : start + config.images])
        fitted = [fit_picture(pixels_of(image), config.image_px) for image in stored]
        pixels = torch.from_numpy(np.stack([f.canvas for f in fitted])).permute(0, 3, 1, 2)
        content = torch.tensor([f.content_hw for f in fitted])
        found = teacher.features(pixels.to(device), content)
        yield [image.image_id for image in stored], found.half().cpu().numpy()


def _provenance(
    config: DumpConfig, teacher: FeatureTeacher, reader: StoreReader, shape: tuple[int, ...]
) -> Provenance:
    settings = {
        "teacher": teacher.fingerprint,
        "image_px": config.image_px,
        "shape": list(shape),
        "split": config.split,
        "images": reader.rows,
    }
    return Provenance(settings, software())


def require_same_dump(uri: str, wanted: Provenance) -> None:
    """Refuses to add to a dump of another teacher, input or store.

    Raises:
        SchemaError: says what differs.
    """
    if not Path(uri).exists():
        return
    metadata = (lance.dataset(uri).schema.metadata or {}).get(METADATA_KEY.encode())
    if metadata is None:
        raise SchemaError(f"{uri} is no dump of features: it has no {METADATA_KEY!r} metadata")
    wanted.require_same(Provenance.from_json(metadata.decode()), f"the dump {uri}")


def _append(
    uri: str,
    ids: list[int],
    unit: int,
    features: np.ndarray,
    provenance: Provenance,
) -> None:
    schema = teacher_features_schema(features.shape[1:])
    schema = schema.with_metadata({METADATA_KEY: provenance.to_json()})
    flat = pa.array(features.reshape(-1), pa.float16())
    width = int(np.prod(features.shape[1:]))
    table = pa.table(
        [
            pa.array(ids, pa.int64()),
            pa.array([unit] * len(ids), pa.int64()),
            pa.FixedSizeListArray.from_arrays(flat, width),
        ],
        schema=schema,
    )
    mode = "append" if Path(uri).exists() else "create"
    lance.write_dataset(table, uri, mode=mode)
