"""Own photos through the whole engine: built, continued, verified."""

import sys

import pyarrow as pa
import pytest

from tap_engine.pipeline.build import build
from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.query import Query, run_query
from tap_engine.pipeline.sources.detect import find_annotations, open_folder
from tap_engine.pipeline.sources.photo_folder import PhotoFolderSource
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.pipeline.verify import verify
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.tables import IMAGES, REGIONS, REJECTS
from tap_engine.schemas.vocabulary import Vocabulary
from tests.pipeline.sources.own_photos import SQUARE, encoded, pixels, put

pytestmark = pytest.mark.ray


def source(folder) -> PhotoFolderSource:
    opened = open_folder([str(folder)])
    return PhotoFolderSource(opened, find_annotations(opened))


def write(folder, photos) -> None:
    images, rows = [], []
    for number, name in enumerate(photos):
        images.append({"id": name, "file_name": name.rsplit("/", 1)[-1]})
        of = {"image_id": name, "category_id": number % 2, "iscrowd": 1}
        rows.append({"id": f"first of {name}", "segmentation": [SQUARE]} | of)
        rows.append({"id": number, "bbox": [20, 5, 10, 9]} | of)
        rows.append({"id": number, "segmentation": [SQUARE[:7]]} | of)
        put(folder / name, encoded(pixels(seed=number), "WEBP" if number % 2 else "PNG"))
    categories = [{"id": 0, "name": "red kite"}, {"id": 1, "name": "boat"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    put(folder / "annotations.json", content)


def test_photos_with_annotations_become_a_valid_labelled_store(
    tmp_path, tiny_clip, ray_local
) -> None:
    photos = [f"photos/my cat {n}.png" for n in range(5)]
    write(tmp_path / "mine", photos)
    found = source(tmp_path / "mine")
    config = BuildConfig(
        out=str(tmp_path / "store"),
        teacher=TeacherConfig(name=str(tiny_clip)),
        vocabulary=Vocabulary("source", found.labels()),
        concepts="top:2",
        workers=WorkerConfig(actors=1, unit_images=2),
    )
    summary = build(found, config)
    assert (summary.images, summary.regions, summary.rejected_regions) == (5, 10, 5)
    store = Store(config.out)
    images = store.open(IMAGES).to_table(columns=["file_name", "region_count", "source"])
    assert sorted(images.column("file_name").to_pylist()) == photos
    assert set(images.column("source").to_pylist()) == {"photos"}
    regions = store.open(REGIONS).to_table(columns=["label", "area", "rle"]).to_pylist()
    assert sorted((r["label"], r["area"], r["rle"] is None) for r in regions) == sorted(
        [("red kite", 120, False), ("red kite", 90, True)] * 3
        + [("boat", 120, False), ("boat", 90, True)] * 2
    )
    kites = store.open(REGIONS).to_table(columns=["key"], filter="label = 'red kite'")
    assert len(kites) == 6
    query = Query(filter="file_name LIKE '%cat 1.png'", columns=["file_name", "label", "concept"])
    rows = pa.Table.from_batches(run_query(store, query)).to_pylist()
    assert [(r["file_name"], r["label"]) for r in rows] == [(photos[1], "boat")] * 2
    names = store.open("concepts").to_table(columns=["name"]).column("name").to_pylist()
    assert names == ["red kite", "boat"]
    details = store.open(REJECTS).to_table().column("detail").to_pylist()
    assert all("7 numbers" in text and "annotations.json:" in text for text in details)
    assert verify(store).ok
    again = build(source(tmp_path / "mine"), config)
    assert (again.images, again.built_before) == (0, 5)
    write(tmp_path / "mine", photos[:3])
    with pytest.raises(SchemaError, match="annotations"):
        build(source(tmp_path / "mine"), config)


MODULE = '''
import io
import numpy as np
from PIL import Image
from tap_engine.pipeline.sources.records import ImageRecord, RegionRecord, Shard, Unit
from tap_engine.schemas import rle
from tap_engine.schemas.keys import pack_image_id

class Stripes:
    """One drawn image, half of it a region."""

    name, captioned, labelled = "photos", False, True

    def __init__(self, paths):
        self.paths = paths

    def prepare(self, index_folder, say):
        pass

    def settings(self):
        return {}

    def shards(self):
        return [Shard("stripes", 0)]

    def index(self, shard, unit_images):
        ids = np.array([pack_image_id("photos", 7)], np.int64)
        return [Unit("stripes", 0, "seven", ids, np.zeros((1, 0), np.int64))], []

    def load(self, unit, index):
        out = io.BytesIO()
        Image.new("RGB", (8, 6), "red").save(out, "JPEG")
        mask = np.zeros((6, 8), bool)
        mask[:3] = True
        counts = rle.encode(mask)
        runs = rle.runs(counts, mask.shape)
        region = RegionRecord(0, 1, counts, runs, (0, 0, 8, 3), 24, label="upper")
        return ImageRecord(int(unit.image_ids[0]), "seven", 8, 6, out.getvalue(), [region]), []
'''


def test_a_source_by_module_path_needs_no_change_of_the_package(
    tmp_path, tiny_clip, few_concepts, ray_local, monkeypatch
) -> None:
    from tap_engine.jobs.source_commands import open_source

    put(tmp_path / "my_stripes.py", MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = open_source(["anywhere"], "my_stripes:Stripes")
    config = BuildConfig(
        out=str(tmp_path / "store"),
        teacher=TeacherConfig(name=str(tiny_clip)),
        vocabulary=str(few_concepts),
        concepts="top:2",
        workers=WorkerConfig(actors=1),
    )
    assert build(made, config).regions == 1
    (row,) = Store(config.out).open(REGIONS).to_table().to_pylist()
    assert (row["label"], row["area"]) == ("upper", 24)
