import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.schemas.provenance import Provenance
from tap_engine.train.evaluation.predictions import (
    CAPTIONS,
    INSTANCES,
    PredictionWriter,
    open_folder,
    read_predictions,
)
from tap_engine.train.evaluation.tasks.prompts import PROMPTED

MADE = Provenance({"weights": "a"})


def captions(image_id: int, count: int) -> pa.RecordBatch:
    rows = [
        {"image_id": image_id, "region_id": 10 * image_id + i, "caption": f"c{i}"}
        for i in range(count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=CAPTIONS)


def read_rows(path: Path, schema: pa.Schema = CAPTIONS) -> list[dict[str, object]]:
    return [row for batch in read_predictions(str(path), schema) for row in batch.to_pylist()]


def test_rows_come_back_and_images_without_rows_are_done_too(tmp_path: Path) -> None:
    with PredictionWriter(str(tmp_path / "p"), CAPTIONS, MADE, flush_rows=3) as writer:
        for image_id, count in ((1, 2), (2, 0), (3, 2), (4, 1)):
            writer.add(image_id, captions(image_id, count))
    folder = open_folder(str(tmp_path / "p"))
    assert folder.done == {1, 2, 3, 4}
    assert len(folder.parts) == 2, "three rows fill a part"
    assert sorted(row["region_id"] for row in read_rows(tmp_path / "p")) == [10, 11, 30, 31, 40]


def test_a_new_writer_knows_what_is_done_and_refuses_other_settings(tmp_path: Path) -> None:
    path = str(tmp_path / "p")
    with PredictionWriter(path, CAPTIONS, MADE) as writer:
        writer.add(1, captions(1, 1))
    assert PredictionWriter(path, CAPTIONS, MADE).done == {1}
    with pytest.raises(SchemaError, match="weights: 'b' against 'a'"):
        PredictionWriter(path, CAPTIONS, Provenance({"weights": "b"}))


def test_ranks_write_beside_each_other_and_one_image_twice_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "p")
    for rank in (0, 1):
        with PredictionWriter(path, CAPTIONS, MADE, rank=rank) as writer:
            writer.add(rank, captions(rank, 1))
    assert open_folder(path).done == {0, 1}
    late = PredictionWriter(path, CAPTIONS, MADE, rank=0)
    late.add(1, captions(1, 1))
    late.flush()
    with pytest.raises(SchemaError, match="image 1 is in two parts"):
        open_folder(path)


KILLED = """
import sys, time
from tests.train.evaluation.test_predictions import MADE, captions
from tap_engine.train.evaluation.predictions import CAPTIONS, PredictionWriter
writer = PredictionWriter(sys.argv[1], CAPTIONS, MADE, flush_rows=4)
for image_id in range(1000):
    if image_id not in writer.done:
        writer.add(image_id, captions(image_id, 2))
        time.sleep(0.002)
print("all", flush=True)
"""


def test_a_killed_run_continues_with_nothing_lost_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "p"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
        deadline = time.monotonic() + 60
        before = len(list(path.glob("*.parquet"))) if path.exists() else 0
        while time.monotonic() < deadline:
            if path.exists() and len(list(path.glob("*.parquet"))) > before + 5:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (path / "0000-left.draft").write_bytes(b"half a part")
    done = open_folder(str(path)).done
    assert 0 < len(done) < 1000
    with PredictionWriter(str(path), CAPTIONS, MADE) as writer:
        assert writer.done == done
        for image_id in range(1000):
            if image_id not in writer.done:
                writer.add(image_id, captions(image_id, 2))
    assert not list(path.glob("*.draft"))
    ids = [row["region_id"] for row in read_rows(path)]
    assert len(ids) == len(set(ids)) == 2000


def test_parquet_and_lance_files_of_others_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_batches([captions(1, 2)])
    pq.write_table(table, tmp_path / "a.parquet")
    lance.write_dataset(table, str(tmp_path / "a.lance"))
    assert read_rows(tmp_path / "a.parquet") == read_rows(tmp_path / "a.lance")
    pq.write_table(table.drop_columns("caption"), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match="lack column 'caption'"):
        read_rows(tmp_path / "b.parquet")


def test_coco_results_are_read(tmp_path: Path) -> None:
    rows = [
        {"image_id": 3, "category_id": 1, "score": 0.25, "bbox": [1, 2, 3.5, 4]},
        {
            "image_id": 4,
            "category_id": 2,
            "score": 1,
            "segmentation": {"size": [2, 3], "counts": [1, 2, 3]},
        },
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    first, second = read_rows(tmp_path / "r.json", INSTANCES)
    assert (first["bbox_xywh"], first["rle"]) == ([1.0, 2.0, 3.5, 4.0], None)
    assert (second["height"], second["width"], second["bbox_xywh"]) == (2, 3, None)
    del rows[1]["score"]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    with pytest.raises(SchemaError, match="result 1: KeyError\\('score'\\)"):
        read_rows(tmp_path / "r.json", INSTANCES)


@pytest.mark.parametrize(
    ("key", "expected"), [("region_id", 7), ("annotation_id", 7), ("id", 7), ("other", 3)]
)
def test_a_captions_region_goes_by_any_usual_key(tmp_path: Path, key: str, expected: int) -> None:
    (tmp_path / "c.json").write_text(json.dumps([{"image_id": 3, key: 7, "caption": "x"}]))
    assert read_rows(tmp_path / "c.json")[0]["region_id"] == expected


def test_what_is_no_prediction_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_rows(tmp_path / "none.parquet")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(SourceError, match="expected predictions as"):
        read_rows(tmp_path / "x.txt")
    (tmp_path / "x.json").write_text("[{")
    with pytest.raises(SourceError, match="not readable as json"):
        read_rows(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SourceError, match="no json layout"):
        read_rows(tmp_path / "x.json", PROMPTED)
    pq.write_table(pa.Table.from_batches([captions(1, 1)]), tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match="not a part of an evaluation"):
        read_rows(tmp_path)


def test_predictions_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="lake")
        path = "s3://lake/eval/captions"
        assert open_folder(path).done == frozenset()
        for image_id in (1, 2):
            with PredictionWriter(path, CAPTIONS, MADE) as writer:
                writer.add(image_id, captions(image_id, 2))
        assert open_folder(path).done == {1, 2}
        rows = [row for batch in read_predictions(path, CAPTIONS) for row in batch.to_pylist()]
        assert sorted(row["region_id"] for row in rows) == [10, 11, 20, 21]
    finally:
        server.stop()
