import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.store import Store, blob_bytes, blob_column
from tap_engine.pipeline.verify import verify
from tap_engine.schemas.keys import region_key
from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, REJECTS

pytestmark = pytest.mark.ray


@pytest.fixture
def store(built_store, tmp_path):
    shutil.copytree(built_store, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def append(store: Store, table: str, rows: pa.Table) -> None:
    lance.write_dataset(rows, store.table_uri(table), mode="append")


def problems(store: Store) -> str:
    return "\n".join(verify(store).problems)


def test_a_good_store_passes_every_check(store) -> None:
    report = verify(store)
    assert report.ok, report.problems
    assert len(report.checks) == 21


def test_rows_written_twice_are_found(store) -> None:
    append(store, REGIONS, store.open(REGIONS).to_table(limit=5))
    found = problems(store)
    assert "regions of an image lie together" in found
    assert "region_count 5, 10 rows" in found
    assert "index on regions.key is up to date: 5 rows" in found


def test_lost_rows_are_found(store) -> None:
    store.open(REGIONS).delete("image_id = 3 AND region_id = 3002")
    assert "1 images differ, such as 3: region_count 5, 4 rows" in problems(store)


def test_an_image_without_regions_table_rows_and_regions_without_image_are_found(store) -> None:
    store.open(IMAGES).delete("image_id = 3")
    assert "5 regions without image" in problems(store)


def test_cleaning_old_versions_hurts_nothing(store) -> None:
    store.open(REGIONS).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    assert verify(store).ok


def rewrite(store: Store, table: str, change: Callable[[list[dict]], None]) -> None:
    """All rows again, changed, in the order of the list, and with fresh indices."""
    dataset = store.open(table)
    rows = dataset.to_table(columns=[n for n in dataset.schema.names if n != "jpeg"]).to_pylist()
    if table == IMAGES:
        for row, jpeg in zip(rows, blob_bytes(dataset, "jpeg", range(len(rows))), strict=True):
            row["jpeg"] = jpeg
    change(rows)
    columns = [
        blob_column([row[name] for row in rows])
        if name == "jpeg"
        else pa.array([row[name] for row in rows], dataset.schema.field(name).type)
        for name in dataset.schema.names
    ]
    dataset.delete("true")
    append(store, table, pa.table(columns, schema=dataset.schema))
    store.open(table).optimize.optimize_indices()


def change_row(place: int, **values: object) -> Callable[[list[dict]], None]:
    """`values` may be functions of the old value."""

    def change(rows: list[dict]) -> None:
        for name, value in values.items():
            rows[place][name] = value(rows[place][name]) if callable(value) else value

    return change


def move_row(start: int, count: int, to: int) -> Callable[[list[dict]], None]:
    def change(rows: list[dict]) -> None:
        moved = rows[start : start + count]
        del rows[start : start + count]
        rows[to:to] = moved

    return change


def other_provenance(store: Store) -> None:
    other = store.provenance(IMAGES)
    changed = type(other)({**other.settings, "top_k": 2}, other.made)
    store.open(IMAGES).update_schema_metadata({"tap.provenance": changed.to_json()})


def add_reject(stage: str, reason: str) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        row = {"unit": 1, "stage": stage, "reason": reason, "detail": ""}
        append(store, REJECTS, pa.Table.from_pylist([row], schema=store.open(REJECTS).schema))

    return change


def one_more_concept(store: Store) -> None:
    append(store, CONCEPTS, store.open(CONCEPTS).to_table(limit=1))


def without_index(table: str) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        dataset = store.open(table)
        for index in dataset.describe_indices():
            if index.field_names == ["key" if table == REGIONS else "image_id"]:
                dataset.drop_index(index.name)

    return change


IN_IMAGES, IN_REGIONS = (
    lambda change, table=table: lambda store: rewrite(store, table, change)
    for table in (IMAGES, REGIONS)
)
CONCEPT_CHECK = "concepts are known, sorted and probable: 1 rows are not"
# Rows 0-4 of `regions` are image 1's, 35-39 image 8's; a unit has four images.
BREAKS = {
    "provenance": (other_provenance, "all tables have one provenance: top_k: 2 against 3"),
    "columns": (
        lambda store: store.open(REGIONS).drop_columns(["area"]),
        "columns are those of the contract: table 'regions' lacks column 'area'",
    ),
    "vocabulary": (
        one_more_concept,
        "the concepts table holds the whole vocabulary: 6 in provenance, 7 rows",
    ),
    "image twice": (
        IN_IMAGES(lambda rows: rows.append({**rows[-1], "region_count": 0})),
        "9 image ids are unique: 1 repeated, such as 8",
    ),
    "image size": (IN_IMAGES(change_row(2, width=0)), "image sizes are positive: 1 are not"),
    "units in images": (
        IN_IMAGES(move_row(0, 1, 7)),
        "rows of a unit lie together in images: 1 units are scattered",
    ),
    "key of another image": (
        IN_REGIONS(change_row(39, key=region_key(9, 0))),
        "region keys belong to their image: 1 do not",
    ),
    "no such image": (
        IN_REGIONS(lambda rows: rows.append(rows[-1] | {"image_id": 9, "key": region_key(9, 0)})),
        f"every region's image is in images: 1 regions without image, such as key "
        f"{region_key(9, 0)}",
    ),
    "key twice": (
        IN_REGIONS(change_row(1, key=region_key(1, 0))),
        "region keys are unique and ascending within an image: 1 are not, such as key "
        f"{region_key(1, 0)}",
    ),
    "keys descend": (
        IN_REGIONS(move_row(1, 1, 0)),
        "region keys are unique and ascending within an image: 1 are not, such as key "
        f"{region_key(1, 0)}",
    ),
    "image apart": (
        IN_REGIONS(move_row(4, 1, 9)),
        "regions of an image lie together: 1 or more do not, such as 1",
    ),
    "units in regions": (
        IN_REGIONS(move_row(0, 5, 35)),
        "rows of a unit lie together in regions: 1 units are scattered",
    ),
    "counts": (
        IN_IMAGES(change_row(2, region_count=6)),
        "40 regions agree with the images' counts: 1 images differ, such as 3: region_count 6, "
        "5 rows",
    ),
    "not finite": (
        IN_REGIONS(change_row(7, embedding=lambda old: [np.nan, *old[1:]])),
        "embeddings are finite: 1 are not",
    ),
    "length": (
        IN_REGIONS(change_row(7, embedding=lambda old: [1.01 * v for v in old])),
        "embeddings have unit length: 1 do not",
    ),
    "unknown concept": (
        IN_REGIONS(change_row(7, concept_ids=lambda old: [*old[:2], 6])),
        CONCEPT_CHECK,
    ),
    "negative probability": (
        IN_REGIONS(change_row(7, concept_probs=[0.5, 0.25, -0.125])),
        CONCEPT_CHECK,
    ),
    "probabilities rise": (
        IN_REGIONS(change_row(7, concept_probs=[0.25, 0.5, 0.125])),
        CONCEPT_CHECK,
    ),
    "more than one": (
        IN_REGIONS(change_row(7, concept_probs=[0.5, 0.375, 0.25])),
        CONCEPT_CHECK,
    ),
    "entropy NaN": (IN_REGIONS(change_row(7, concept_entropy=np.nan)), CONCEPT_CHECK),
    "entropy below 0": (IN_REGIONS(change_row(7, concept_entropy=-0.01)), CONCEPT_CHECK),
    "entropy above ln 6": (IN_REGIONS(change_row(7, concept_entropy=1.81)), CONCEPT_CHECK),
    "stage": (add_reject("moon", "json_malformed"), "every reject's stage is a known word: found"),
    "reason": (add_reject("read", "moon phase"), "every reject's reason is a known word: found"),
    "no index on regions": (
        without_index(REGIONS),
        "the index on regions.key is up to date: there is none",
    ),
    "no index on images": (
        without_index(IMAGES),
        "the index on images.image_id is up to date: there is none",
    ),
    "area": (
        IN_REGIONS(change_row(7, area=lambda area: area + 1)),
        "masks fit their image, areas and boxes their masks: 1 do not",
    ),
    "jpeg": (
        IN_IMAGES(change_row(7, jpeg=b"GIF89a")),
        "8 sampled image files are JPEG, PNG or WebP: row 7 is not, and 0 more",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_fails_its_own_check_and_no_other(store, name) -> None:
    damage, expected = BREAKS[name]
    damage(store)
    found = verify(store)
    assert any(line.startswith(expected) for line in found.problems), found.problems
    others = {line for line in found.problems if not line.startswith(expected)}
    # Masks cannot be checked without these; and without a column little of `regions` can be read.
    assert len(others) == (name in ("columns", "image size")), others
    assert len(found.checks) == {"columns": 10, "image size": 19}.get(name, 20)


def test_the_breaks_cover_every_check(store) -> None:
    def name(line: str) -> str:
        return re.sub(r"^[\d,]+ ", "", line.partition(":")[0])

    checks = {name(line) for line in verify(store).checks}
    assert {name(expected) for _, expected in BREAKS.values()} == checks and len(checks) == 21


def test_zeros_in_place_of_masks_are_found(store) -> None:
    """As an interrupted copy leaves them: the trainer needs masks, boxes and areas most."""
    regions = store.open(REGIONS)
    for change in ({"rle": "cast('' as binary)"}, {"area": "0"}):
        broken = regions.update(change, where="image_id = 3")
        assert broken["num_rows_updated"] == 5
        found = problems(store)
        assert "masks fit their image, areas and boxes their masks: 5 do not" in found
        assert f"such as key {region_key(3, 0)}" in found


def test_a_file_that_is_cut_off_is_named_and_the_rest_is_checked(store) -> None:
    file = min(Path(store.table_uri(REGIONS), "data").iterdir())
    file.write_bytes(file.read_bytes()[:3000])
    report = verify(store)
    assert any(f"regions can be read: data/{file.name}" in line for line in report.problems)
    assert any("image ids are unique" in line for line in report.checks)
