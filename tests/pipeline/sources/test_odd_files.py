"""Names, forms and files that people have: each costs itself at most, and is said."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from tap_engine.pipeline.planning import StoredImages, make_plan
from tap_engine.pipeline.sources import sa1b
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.schemas import rle
from tap_engine.schemas.errors import SourceError
from tap_engine.schemas.rejects import Reason
from tests.scenes import draw_scene, scene_members, write_shard, write_tar


def read_all(*paths):
    """(numbers of the images that are whole, reasons and details of all rejects)."""
    source = Sa1bSource([str(path) for path in paths])
    good, rejects = [], []
    for shard in source.shards():
        units, left_out = source.index(shard, 3)
        rejects += left_out
        for unit in units:
            for place in range(len(unit)):
                record, problems = source.load(unit, place)
                rejects += problems
                if record is not None:
                    good.append(record.image_id)
            unit.require_unchanged()
    return good, [(reject.reason, reject.detail) for reject in rejects]


def write_folder(folder, members):
    folder.mkdir(exist_ok=True)
    for name, content in members.items():
        with open(os.fsencode(folder) + b"/" + os.fsencode(name), "wb") as file:
            file.write(content)
    return folder


def named(prefix: str, number: int) -> dict[str, bytes]:
    members = scene_members([number])
    return {f"{prefix}{number}{name[name.rindex('.') :]}": v for name, v in members.items()}


@pytest.mark.parametrize("prefix", ["x\nline_", "caf\udce9_", "tab\t_"], ids=ascii)
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_name_that_no_table_holds_costs_its_image_only(tmp_path, prefix, kind) -> None:
    members = named(prefix, 7) | scene_members(range(1, 5))
    if kind == "folder":
        place = write_folder(tmp_path / "in", members)
    else:
        place = tmp_path / "in.tar"
        gnu = {"format": tarfile.GNU_FORMAT, "errors": "surrogateescape"}
        with tarfile.open(place, "w", **gnu) as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    good, ((reason, detail),) = read_all(place)
    assert good == [1, 2, 3, 4]
    assert reason == Reason.BAD_NAME
    assert detail.isprintable() and "_7.jp" in detail
    detail.encode()


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_sidecars_of_macos_are_no_images(tmp_path, write) -> None:
    members = scene_members([1, 2])
    sidecars = {f"._{name}": b"\0\5\x16\7" * 40 for name in members}
    assert read_all(write(tmp_path / "in.tar", sidecars | members)) == ([1, 2], [])


def test_upper_case_endings_are_endings(tmp_path) -> None:
    members = {name.replace(".jpg", ".JPG"): v for name, v in scene_members([1]).items()}
    members |= {name.replace(".json", ".JSON"): v for name, v in scene_members([2]).items()}
    assert read_all(write_folder(tmp_path / "in", members)) == ([1, 2], [])


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_pairs_without_a_number_are_said(tmp_path, write) -> None:
    odd = {}
    for place, name in enumerate(["photo (copy)", "photo", "99999999999999"]):
        jpeg, annotations = draw_scene(place + 5)
        odd |= {f"{name}.jpg": jpeg, f"{name}.json": json.dumps(annotations).encode()}
    good, rejects = read_all(write(tmp_path / "in.tar", odd | scene_members([1, 2])))
    assert good == [1, 2]
    assert [reason for reason, _ in rejects] == [Reason.BAD_NAME] * 3


def test_shards_of_one_name_and_size_with_other_images_are_two(tmp_path) -> None:
    paths = [write_shard(tmp_path / name / "00000.tar", [n]) for n, name in ((1, "a"), (2, "b"))]
    size = max(path.stat().st_size for path in paths)
    for path in paths:
        with path.open("ab") as file:
            file.write(bytes(size - path.stat().st_size))
    assert read_all(tmp_path / "a", tmp_path / "b") == ([1, 2], [])


def plan(*paths, done=(), stored=None):
    source = Sa1bSource([str(path) for path in paths])
    done_images = np.array(done, np.int64)
    return make_plan(
        source, source.shards(), unit_images=2, limit=0, done_images=done_images, stored=stored
    )


def test_another_picture_of_the_same_number_is_a_reject_and_a_copy_is_not(tmp_path) -> None:
    write_shard(tmp_path / "cats" / "cats.tar", [1, 2, 3])
    os.makedirs(tmp_path / "copy")
    (tmp_path / "copy" / "copy.tar").write_bytes((tmp_path / "cats" / "cats.tar").read_bytes())
    write_shard(tmp_path / "dogs" / "dogs.tar", [1, 2, 3], size_hw=(90, 100))
    copied = plan(tmp_path / "cats", tmp_path / "copy")
    assert (copied.total_images, copied.duplicate_images, copied.rejects) == (3, 3, [])
    both = plan(tmp_path / "cats", tmp_path / "dogs")
    assert (both.total_images, both.duplicate_images) == (3, 0)
    assert [reject.reason for reject in both.rejects] == [Reason.DUPLICATE_IMAGE] * 3
    assert "sa_1.jpg of dogs.tar: another picture" in both.rejects[0].detail
    cats = plan(tmp_path / "cats")
    held = StoredImages(np.arange(1, 4), np.concatenate([u.image_bytes for u in cats.units]))
    again = plan(tmp_path / "cats", done=[1, 2, 3], stored=held)
    assert (again.built_images, again.rejects) == (3, [])
    other = plan(tmp_path / "dogs", done=[1, 2, 3], stored=held)
    assert [reject.image_id for reject in other.rejects] == [1, 2, 3]
    assert "the store has another picture" in other.rejects[0].detail


def test_masks_of_every_form_are_read(tmp_path) -> None:
    jpeg, content = draw_scene(1, (50, 60), 3)
    mask = np.zeros((50, 60), np.uint8)
    mask[7:37, 5:45] = 1
    counts = rle.encode(mask)
    plain = rle.runs(counts, (50, 60)).tolist()
    forms = [
        {"size": [50, 60], "counts": plain},
        [[5, 7, 45, 7, 45, 37, 5, 37]],
        {"size": [50, 60], "counts": counts.decode()},
    ]
    for annotation, form in zip(content["annotations"], forms, strict=True):
        annotation["segmentation"] = form
    path = write_tar(
        tmp_path / "x.tar", {"sa_1.jpg": jpeg, "sa_1.json": json.dumps(content).encode()}
    )
    source = Sa1bSource([str(path)])
    ((unit,), _) = source.index(*source.shards(), 8)
    record, rejects = source.load(unit, 0)
    assert rejects == []
    assert [region.area for region in record.regions] == [1200] * 3
    assert [region.bbox_xywh for region in record.regions] == [(5, 7, 40, 30)] * 3


def test_json_of_another_form_says_what_it_is(tmp_path) -> None:
    jpeg, content = draw_scene(1)
    bare = json.dumps(content["annotations"]).encode()
    path = write_tar(tmp_path / "x.tar", {"sa_1.jpg": jpeg, "sa_1.json": bare})
    _, ((reason, detail),) = read_all(path)
    assert reason == Reason.JSON_MALFORMED
    assert 'expected {"image"' in detail and "found a list of 5" in detail


@pytest.mark.parametrize("change", [{"id": None}, {"id": 1 << 70}, None, {"segmentation": 5}])
def test_a_region_without_id_is_not_a_whole_image(tmp_path, change) -> None:
    jpeg, content = draw_scene(1)
    first = content["annotations"][0]
    content["annotations"][0] = None if change is None else first | change
    path = write_tar(
        tmp_path / "x.tar", {"sa_1.jpg": jpeg, "sa_1.json": json.dumps(content).encode()}
    )
    source = Sa1bSource([str(path)])
    ((unit,), _) = source.index(*source.shards(), 8)
    record, (reject,) = source.load(unit, 0)
    assert len(record.regions) == 4
    assert reject.region_id is not None


def test_a_file_that_the_system_does_not_give_out_is_a_reject(tmp_path) -> None:
    members = scene_members([1, 2, 3])
    folder = write_folder(tmp_path / "in", members)
    source = Sa1bSource([str(folder)])
    ((unit,), _) = source.index(*source.shards(), 8)
    (folder / "sa_2.jpg").unlink()
    (folder / "sa_3.json").unlink()
    outcomes = [source.load(unit, place) for place in range(3)]
    assert [record is not None for record, _ in outcomes] == [True, False, False]
    for _, (reject,) in outcomes[1:]:
        assert reject.reason == Reason.IMAGE_UNREADABLE
        assert "No such file" in reject.detail


def test_an_image_of_any_stated_size_is_not_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sa1b, "_MAX_BYTES", 100_000)
    size = 200_000
    members = scene_members([1])
    path = write_tar(tmp_path / "x.tar", members | {"sa_2.jpg": bytes(size), "sa_2.json": b"{}"})
    good, ((reason, detail),) = read_all(path)
    assert good == [1]
    assert reason == Reason.IMAGE_UNREADABLE and "200,000 bytes" in detail
    folder = write_folder(tmp_path / "in", members | {"sa_2.jpg": bytes(size), "sa_2.json": b"{}"})
    assert read_all(folder)[0] == [1]


def test_a_tar_that_changes_while_it_is_read_is_built_again_later(tmp_path) -> None:
    path = write_shard(tmp_path / "x.tar", [1, 2, 3])
    source = Sa1bSource([str(path)])
    ((unit,), _) = source.index(*source.shards(), 8)
    source.load(unit, 0)
    unit.require_unchanged()
    content = bytearray(path.read_bytes())
    content[2000:4000] = bytes(2000)  # being overwritten, of the same size
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since it was indexed"):
        unit.require_unchanged()
    with pytest.raises(SourceError, match="changed since it was indexed"):
        Sa1bSource([str(path)]).load(unit, 1)


def test_a_tar_that_is_gone_is_a_source_error(tmp_path) -> None:
    path = write_shard(tmp_path / "x.tar", [1])
    source = Sa1bSource([str(path)])
    ((unit,), _) = source.index(*source.shards(), 8)
    path.unlink()
    with pytest.raises(SourceError, match="changed since it was indexed"):
        source.load(unit, 0)
    with pytest.raises(SourceError, match="no such file or folder"):
        source.shards()
