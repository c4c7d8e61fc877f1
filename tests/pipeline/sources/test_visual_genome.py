import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tap_engine.pipeline.build import build
from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.inspection import overview, view_region
from tap_engine.pipeline.query import Query, run_query
from tap_engine.pipeline.sources import visual_genome_stage
from tap_engine.pipeline.sources.visual_genome import read_splits
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.pipeline.verify import verify
from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.keys import pack_image_id, region_key
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, REJECTS
from tests.pipeline.sources.vg_layout import (
    add_photo,
    jpeg,
    prepared,
    region,
    simple_world,
    source_of,
    write_world,
)
from tests.support import shared_data

pytestmark = pytest.mark.ray


def config(out: Path, teacher: TeacherConfig | None = None, unit_images: int = 2, **kwargs):
    workers = WorkerConfig(actors=1, unit_images=unit_images)
    return BuildConfig(out=str(out), teacher=teacher, workers=workers, **kwargs)


def rows(out: Path, table: str, **kwargs) -> list[dict]:
    return Store(str(out)).open(table).to_table(**kwargs).to_pylist()


def load_all(source) -> tuple[list, list]:
    """Every record and every reject of a source, as a worker would see them."""
    units, rejects = source.index(source.shards()[0], 2)
    worker = pickle.loads(pickle.dumps(source))
    records = []
    for unit in units:
        for index in range(len(unit)):
            record, left_out = worker.load(unit, index)
            records.append(record)
            rejects += left_out
    return records, rejects


@pytest.mark.parametrize(("version", "expected"), [("v1.0", [265, 256]), ("v1.2", [262, 256])])
def test_all_regions_of_the_real_files_come_in(tmp_path, ray_local, version, expected) -> None:
    real = shared_data("vg_real") / version
    splits = shared_data("densecap_splits.json")
    for number, size in ((1, (800, 600)), (2, (800, 600))):
        add_photo(tmp_path, number, size)
    said: list[str] = []
    source = source_of(real, images=[str(tmp_path)])
    summary = build(source, config(tmp_path / "store"), say=said.append)
    assert (summary.images, summary.regions) == (2, sum(expected))
    assert not summary.rejects
    images = rows(tmp_path / "store", IMAGES, columns=["image_id", "region_count", "split"])
    by_number = {row["image_id"] & 0xFFFF: row["region_count"] for row in images}
    assert by_number == {1: expected[0], 2: expected[1]}
    stored = {row["region_id"]: row for row in rows(tmp_path / "store", REGIONS)}
    for entry in json.loads((real / "region_descriptions.json").read_text()):
        for stated in entry["regions"]:
            row = stored.pop(stated["region_id"] if version == "v1.2" else stated["id"])
            assert row["caption_raw"] == stated["phrase"]
            assert row["caption"] == " ".join(stated["phrase"].lower().split()).rstrip(" .")
            box = [stated[side] for side in ("x", "y", "width", "height")]
            assert row["bbox_xywh"] == box
            assert row["area"] == box[2] * box[3]
    assert not stored
    assert source.counts.phrases == sum(expected)
    print("\n".join(source.counts.lines()))
    found = Counter(read_splits(str(splits)).values())
    assert found == {0: 77_398, 1: 5_000, 2: 5_000}


def test_what_cannot_be_used_is_rejected_and_its_neighbours_stay(tmp_path) -> None:
    bad = [
        region(1, 7, "Fine  thing. ", (-5, -5, 20, 20)),
        region(2, 7, "fine thing", (90, 70, 50, 50)),
        region(3, 7, "no width", (5, 5, 0, 9)),
        region(4, 7, "negative", (5, 5, 9, -9)),
        region(5, 7, "below", (5, -904, 20, 20)),
        region(6, 7, "beyond", (100, 5, 20, 20)),
        region(7, 7, " . "),
        region(8, 7, None),
        region(9, 8, "of another image"),
        region(1, 7, "second of its id"),
        region(10, 7, "huge", (1e300, 0, 1e300, 1)),
        {"region_id": 11, "phrase": "no box"},
        {"phrase": "no id", "x": 1, "y": 1, "width": 1, "height": 1},
        "not a region",
        region(12, 7, "half px", (1.5, 2.25, 3.5, 4)),
    ]
    entries = [
        {"id": 7, "regions": bad},
        {"id": 7, "regions": [region(1, 7, "again")]},
        {"id": 20, "regions": [region(1, 20, "no photo")]},
        {"id": 21, "regions": [region(1, 21, "no size")]},
        {"id": -1, "regions": []},
        {"regions": [region(1, 1, "no id")]},
        {"id": 9, "regions": []},
        3,
    ]
    folder = write_world(tmp_path / "vg", entries, {7: (100, 80), 9: (10, 10)})
    add_photo(folder, 21, (5, 5))
    records, rejects = load_all(prepared(folder, tmp_path / "index"))
    assert [record.image_id for record in records] == [pack_image_id("vg", n) for n in (7, 9)]
    kept = records[0].regions
    assert [(r.ordinal, r.region_id, r.bbox_xywh, r.area) for r in kept] == [
        (0, 1, (0, 0, 15, 15), 225),
        (1, 2, (90, 70, 10, 10), 100),
        (14, 12, (1.5, 2.25, 3.5, 4), 14),
    ]
    assert (kept[0].caption, kept[0].caption_raw) == ("fine thing", "Fine  thing. ")
    assert kept[1].caption == "fine thing", "the same phrase twice is no mistake"
    assert Counter(str(r.reason) for r in rejects) == {
        "box_empty": 2,
        "box_outside": 3,
        "caption_empty": 1,
        "json_malformed": 4 + 3,
        "json_of_other_image": 1,
        "duplicate_region": 1,
        "duplicate_image": 1,
        "image_missing": 1,
        "annotations_missing": 1,
    }
    assert not records[1].regions


def test_the_json_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch) -> None:
    folder = simple_world(tmp_path / "vg", range(1, 12))
    monkeypatch.setattr(visual_genome_stage, "_BATCH_ROWS", 7)  # batches end at image borders
    source = prepared(folder, tmp_path / "index")
    records, _ = load_all(source)
    assert [[r.caption for r in record.regions] for record in records] == [
        ["thing 0", "thing 1", "thing 2"]
    ] * 11
    assert [r.region_id for record in records for r in record.regions] == [
        n * 100 + k for n in range(1, 12) for k in range(3)
    ]
    again = []
    same = prepared(folder, tmp_path / "index", say=again.append)
    assert not again
    assert same.settings() == source.settings()
    assert same.counts == source.counts
    # nothing is written before there is a store, and the rows are those of the kept files
    early = source_of(folder)
    early.prepare(str(tmp_path / "other"), again.append)
    assert not (tmp_path / "other").exists() and len(again) == 1
    assert early.settings() == source.settings()
    assert [r.caption for r in load_all(early)[0][3].regions] == ["thing 0", "thing 1", "thing 2"]
    assert len(list((tmp_path / "other").iterdir())) == 2
    again.clear()
    # killed while it was written: whatever is there is not taken for a whole file
    files = sorted((tmp_path / "index").iterdir())
    assert [f.name.rsplit(".", 2)[1] for f in files] == ["images", "regions"]
    files[0].write_bytes(files[0].read_bytes()[:100])
    (tmp_path / "index" / f".{files[1].name}.0.partial").write_bytes(b"half")
    prepared(folder, tmp_path / "index", say=again.append)
    assert len(again) == 1
    assert sorted((tmp_path / "index").iterdir()) == files, "what was half written is gone"
    simple_world(folder, range(1, 12), regions=4)
    other = prepared(folder, tmp_path / "index", say=again.append)
    assert len(again) == 2
    assert other.settings()["annotations"] != source.settings()["annotations"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"images": []}', SchemaError, "expected a list"),
        ("[]", SchemaError, "found no image"),
        ('[{"id": 1, "regions": [', SourceError, "not readable as json"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, text, error, message) -> None:
    folder = simple_world(tmp_path / "vg", [1])
    (folder / "region_descriptions.json").write_text(text)
    with pytest.raises(error, match=rf"region_descriptions.json: .*{message}"):
        prepared(folder, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_image_in_two_splits_is_refused(tmp_path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('{"train": [1, 2], "test": [2]}')
    with pytest.raises(SchemaError, match="image 2 is in test and in train"):
        read_splits(str(path))
    path.write_text('{"training": [1, 2]}')
    with pytest.raises(SchemaError, match="densecap_splits"):
        read_splits(str(path))


def test_a_store_without_teacher_holds_up(tmp_path, ray_local) -> None:
    folder = simple_world(tmp_path / "vg", range(1, 6))
    splits = tmp_path / "splits.json"
    splits.write_text('{"train": [1, 2], "val": [3], "test": [4]}')
    out = tmp_path / "store"
    source = source_of(folder, splits=str(splits))
    assert build(source, config(out)).regions == 15
    report = verify(Store(str(out)))
    assert report.ok, report.problems
    assert not any("embedding" in line for line in report.checks)
    assert "every region has a caption, clean and raw" in report.checks
    images = rows(out, IMAGES, columns=["image_id", "split", "file_name"])
    assert {row["file_name"]: row["split"] for row in images} == {
        "1.jpg": "train",
        "2.jpg": "train",
        "3.jpg": "val",
        "4.jpg": "test",
        "5.jpg": None,
    }
    assert rows(out, CONCEPTS) == []
    names = Store(str(out)).open(REGIONS).schema.names
    assert not {"embedding", "concept_ids"} & set(names)
    assert all(row["rle"] is None for row in rows(out, REGIONS))
    found = overview(Store(str(out)))
    assert found.settings["source"]["cleaning_rules"] == 1
    assert found.settings["teacher"] is None
    batches = list(run_query(Store(str(out)), Query(filter="split = 'val'")))
    shown = [row for batch in batches for row in batch.to_pylist()]
    assert [(row["caption"], row["split"]) for row in shown] == [
        (f"thing {k}", "val") for k in range(3)
    ]
    view = view_region(Store(str(out)), region_key(pack_image_id("vg", 3), 1))
    assert view.row["caption_raw"] == "thing 1"
    # other splits would be other rows
    other = source_of(folder)
    with pytest.raises(SchemaError, match=r"source\.splits: None against"):
        build(other, config(out))
    with pytest.raises(SchemaError, match="without a teacher"):
        build(source, config(out, TeacherConfig(name="sample")))


def test_boxes_are_embedded_as_they_are(tmp_path, ray_local, tiny_clip, few_concepts) -> None:
    """No mask is filled in: the crop of a box is the rectangle of the photo."""
    from tap_engine.pipeline.crop import crop_regions, decode_image
    from tap_engine.pipeline.teacher import Teacher

    folder = simple_world(tmp_path / "vg", [1])
    teacher = TeacherConfig(name=str(tiny_clip))
    out = tmp_path / "store"
    made = config(out, teacher, vocabulary=str(few_concepts), concepts="top:3")
    build(source_of(folder), made)
    report = verify(Store(str(out)))
    assert report.ok, report.problems
    loaded = Teacher(teacher)
    pixels = decode_image(jpeg(1, (100, 80)))
    crop = crop_regions(pixels, [None], [(10, 20, 30, 40)], made.crop.for_teacher(loaded.info))
    expected = loaded.encode_crops(crop)[0].numpy()
    for row in rows(out, REGIONS):
        np.testing.assert_allclose(row["embedding"], expected, atol=2e-3)
        assert len(row["concept_ids"]) == 3
    with pytest.raises(SchemaError, match=r"teacher\.name: None against"):
        build(source_of(folder), config(out))


def test_photos_that_come_later_are_built_alone(tmp_path, ray_local) -> None:
    folder = simple_world(tmp_path / "vg", range(1, 8))
    late = {number: next(folder.rglob(f"{number}.jpg")).read_bytes() for number in (3, 6, 7)}
    for number in late:
        next(folder.rglob(f"{number}.jpg")).unlink()
    out = tmp_path / "store"

    def run():
        return build(source_of(folder), config(out))

    def missing() -> list[int]:
        found = rows(out, REJECTS)
        assert {(row["stage"], row["reason"]) for row in found} <= {("index", "image_missing")}
        return sorted(row["image_id"] & 0xFF for row in found)

    first = run()
    assert (first.images, dict(first.rejects)) == (4, {"image_missing": 3})
    assert missing() == [3, 6, 7]
    again = run()
    assert (again.units, again.rejects.total()) == (0, 0)
    assert missing() == [3, 6, 7], "written once"
    for number in (3, 6):
        (folder / "VG_100K" / f"{number}.jpg").write_bytes(late[number])
    later = run()
    assert (later.images, later.built_before, later.rejects.total()) == (2, 4, 0)
    assert missing() == [7], "what was found is missing no more"
    report = verify(Store(str(out)))
    assert report.ok, report.problems
