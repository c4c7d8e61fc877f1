import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.build import build
from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import IMAGES, REGIONS, REJECTS
from tests.scenes import scene_members, write_shard, write_tar

pytestmark = pytest.mark.ray


@pytest.fixture
def config(tmp_path, tiny_clip, few_concepts):
    def make(out="store", workers=None, **kwargs):
        return BuildConfig(
            out=str(tmp_path / out),
            teacher=TeacherConfig(name=str(tiny_clip)),
            vocabulary=str(few_concepts),
            concepts="top:3",
            workers=WorkerConfig(**(workers or {"actors": 1, "unit_images": 3})),
            **kwargs,
        )

    return make


def rows(out: str, table: str, columns: list[str] | None = None) -> pa.Table:
    """A table in key order, without what may differ between two builds."""
    found = Store(out).open(table).to_table(columns=columns)
    keys = {REGIONS: "key", IMAGES: "image_id", REJECTS: "image_id"}
    return found.sort_by(keys[table]) if keys[table] in found.column_names else found


REGION_COLUMNS = ["key", "image_id", "region_id", "bbox_xywh", "area", "rle", "concept_ids"]


def assert_same_regions(a: str, b: str) -> None:
    left, right = (rows(out, REGIONS) for out in (a, b))
    assert left.select(REGION_COLUMNS) == right.select(REGION_COLUMNS)
    vectors = [
        np.stack(t.column("embedding").to_pylist()).astype(np.float32) for t in (left, right)
    ]
    np.testing.assert_allclose(*vectors, atol=1e-3)


def test_a_tar_becomes_a_store(tmp_path, config, ray_local) -> None:
    write_shard(tmp_path / "sa_000000.tar", range(1, 8))
    summary = build(Sa1bSource([str(tmp_path / "sa_000000.tar")]), config())
    assert (summary.images, summary.regions, summary.rejected_regions) == (7, 35, 0)
    images = rows(config().out, IMAGES, ["image_id", "file_name", "width", "region_count"])
    assert images.column("image_id").to_pylist() == list(range(1, 8))
    assert images.column("region_count").to_pylist() == [5] * 7
    regions = rows(config().out, REGIONS)
    assert regions.column("key").to_pylist() == [
        region_key(image, ordinal) for image in range(1, 8) for ordinal in range(5)
    ]
    vectors = np.stack(regions.column("embedding").to_pylist()).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    blobs = Store(config().out).open(IMAGES).read_blobs("jpeg", indices=[0])
    number = Store(config().out).open(IMAGES).take([0], columns=["image_id"]).to_pylist()[0]
    assert blobs[0][1] == scene_members([number["image_id"]])[f"sa_{number['image_id']}.jpg"]


def test_concepts_are_those_of_the_stored_embedding(tmp_path, config, ray_local) -> None:
    write_shard(tmp_path / "sa_000000.tar", [3])
    build(Sa1bSource([str(tmp_path / "sa_000000.tar")]), config())
    store = Store(config().out)
    info = store.provenance(REGIONS).settings["teacher"]
    target = np.stack(store.open("concepts").to_table().column("target_embedding").to_pylist())
    for row in store.open(REGIONS).to_table().to_pylist():
        vector = np.asarray(row["embedding"], np.float64)
        logits = info["logit_scale"] * (target @ (vector / np.linalg.norm(vector)))
        p = np.exp(logits - logits.max())
        p /= p.sum()
        assert row["concept_ids"] == np.argsort(-p)[:3].tolist()
        np.testing.assert_allclose(row["concept_probs"], np.sort(p)[::-1][:3], atol=1e-3)
        assert row["concept_entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)


@pytest.mark.parametrize("workers", [{"actors": 2, "unit_images": 1}, {"unit_images": 512}])
def test_workers_and_unit_size_change_nothing(tmp_path, config, ray_local, workers) -> None:
    write_shard(tmp_path / "sa_000000.tar", range(1, 6), regions=9)
    source = Sa1bSource([str(tmp_path / "sa_000000.tar")])
    build(source, config("a"))
    build(source, config("b", workers))
    assert_same_regions(config("a").out, config("b").out)


def test_the_same_command_continues_and_then_has_nothing_to_do(tmp_path, config, ray_local) -> None:
    write_shard(tmp_path / "sa_000000.tar", range(1, 8))
    write_shard(tmp_path / "sa_000001.tar", range(10, 13))
    first = Sa1bSource([str(tmp_path / "sa_000000.tar")])
    both = Sa1bSource([str(tmp_path)])
    assert build(first, config(limit=4)).images == 4
    assert build(first, config(limit=4)).images == 0
    # other units, more shards: what is there stays, the rest comes
    assert build(both, config(workers={"unit_images": 2})).images == 6
    assert build(both, config()).images == 0
    build(both, config("whole"))
    assert_same_regions(config().out, config("whole").out)


def test_other_settings_are_refused_with_both_values(tmp_path, config, ray_local) -> None:
    write_shard(tmp_path / "sa_000000.tar", [1])
    source = Sa1bSource([str(tmp_path / "sa_000000.tar")])
    build(source, config())
    other = BuildConfig(
        out=config().out,
        teacher=config().teacher,
        vocabulary=config().vocabulary,
        concepts="top:2",
    )
    with pytest.raises(SchemaError, match=r"top_k: 2 against 3"):
        build(source, other)


def test_bad_input_is_set_aside_and_good_neighbours_stay(tmp_path, config, ray_local) -> None:
    members = scene_members(range(1, 8))
    good = json.loads(members["sa_4.json"])
    broken = {**good, "annotations": [dict(a) for a in good["annotations"]]}
    masks = [dict(a["segmentation"]) for a in broken["annotations"]]
    masks[0]["counts"] = "garbage!"
    masks[1]["size"] = [60, 80]
    masks[2]["counts"] = "Pf01"[:3]
    for entry, mask in zip(broken["annotations"], masks, strict=True):
        entry["segmentation"] = mask
    broken["annotations"][4]["id"] = broken["annotations"][3]["id"]
    members["sa_4.json"] = json.dumps(broken).encode()
    members["sa_1.jpg"] = members["sa_1.jpg"][:700]
    members["sa_2.json"] = b'{"image": '
    members["sa_3.json"] = members["sa_5.json"]
    del members["sa_6.json"]
    tar = write_tar(tmp_path / "sa_000000.tar", members)
    summary = build(Sa1bSource([str(tar)]), config())
    assert summary.images == 3
    assert summary.regions == 5 + 5 + 1
    assert dict(summary.rejects) == {
        "image_unreadable": 1,
        "json_malformed": 1,
        "json_of_other_image": 1,
        "annotations_missing": 1,
        "rle_garbage": 2,
        "rle_size_mismatch": 1,
        "duplicate_region": 1,
    }
    assert summary.reject_share == 4 / 7
    stored = rows(config().out, REJECTS)
    # a unit without an image is marked as done: images 1-3
    assert sorted(stored.column("reason").to_pylist()) == sorted(
        [*summary.rejects.elements(), "unit_empty"]
    )
    # once set aside, a thing is not tried again
    assert build(Sa1bSource([str(tar)]), config()).units == 0


def test_a_folder_that_grows_builds_only_what_is_new(tmp_path, config, ray_local) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    members = scene_members(range(1, 8))
    late = ("sa_5.jpg", "sa_5.json", "sa_6.jpg", "sa_7.json")
    for name in members.keys() - set(late):
        (folder / name).write_bytes(members[name])

    def run():
        return build(Sa1bSource([str(folder)]), replace(config(), teacher=None))

    def halves() -> list[tuple[str, int]]:
        found = Store(config().out).open(REJECTS).to_table().to_pylist()
        assert {row["stage"] for row in found} == {"index"}
        return sorted((row["reason"], row["image_id"]) for row in found)

    first = run()
    assert (first.images, dict(first.rejects)) == (
        4,
        {"annotations_missing": 1, "image_missing": 1},
    )
    assert halves() == [("annotations_missing", 7), ("image_missing", 6)]
    # another photo is half a pair now: its row comes, the others are not written again
    (folder / "sa_5.json").write_bytes(members["sa_5.json"])
    second = run()
    assert (second.images, second.units, dict(second.rejects)) == (0, 0, {"image_missing": 1})
    assert halves() == [("annotations_missing", 7), ("image_missing", 5), ("image_missing", 6)]
    (folder / "sa_5.jpg").write_bytes(members["sa_5.jpg"])
    (folder / "sa_6.jpg").write_bytes(members["sa_6.jpg"])
    third = run()
    assert (third.images, third.built_before, third.rejects.total()) == (2, 4, 0)
    assert halves() == [("annotations_missing", 7)], "whole pairs are rejects no more"
    assert run().units == 0
    stored = rows(config().out, REGIONS, ["key", "rle"]).to_pylist()
    assert [row["key"] for row in stored] == [
        region_key(image, ordinal) for image in range(1, 7) for ordinal in range(5)
    ]


def test_folders_of_one_name_and_repeated_images_lose_nothing(tmp_path, config, ray_local) -> None:
    members = scene_members([1, 2, 3, 4])
    for place, numbers in (("a", (1, 2)), ("b", (3, 4))):
        folder = tmp_path / place / "images"
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"sa_{number}.jpg").write_bytes(members[f"sa_{number}.jpg"])
        (folder / f"sa_{numbers[0]}.json").write_bytes(members[f"sa_{numbers[0]}.json"])
    # a second file of image 1: one of them is built, although the other is a reject of its id
    again = tmp_path / "a" / "images"
    (again / "x_1.jpg").write_bytes(members["sa_1.jpg"])
    (again / "x_1.json").write_bytes(members["sa_1.json"])
    source = Sa1bSource([str(tmp_path / "a" / "images"), str(tmp_path / "b" / "images")])
    for units in (2, 0):
        assert build(source, replace(config(), teacher=None)).units == units
    found = rows(config().out, REJECTS, ["reason", "image_id"]).to_pylist()
    assert sorted((row["reason"], row["image_id"]) for row in found) == [
        ("annotations_missing", 2),
        ("annotations_missing", 4),
        ("duplicate_image", 1),
    ]
    assert rows(config().out, IMAGES, ["image_id"]).column(0).to_pylist() == [1, 3]
