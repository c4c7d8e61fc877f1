"""Files become tables: whole or not at all, each row once, each reject with its place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tap_engine.jobs.data_cli import app
from tap_engine.pipeline.conversations import files as files_module
from tap_engine.pipeline.conversations.files import check_file, read_file
from tap_engine.pipeline.store import Store
from tap_engine.schemas.conversations import (
    CONVERSATION_REJECTS,
    CONVERSATIONS,
    conversation_of,
    conversations_schema,
)
from tap_engine.schemas.errors import SourceError


def sample(number: int, image: str | None = None) -> dict[str, object]:
    marker = "<image>\n" if image else ""
    turns = [
        {"from": "human", "value": f"{marker}Question {number}?"},
        {"from": "gpt", "value": f"Answer \u00e9{number} \u2028 to its end."},
    ]
    return {"id": number, "conversations": turns} | ({"image": image} if image else {})


ROWS = [sample(number) for number in range(3)]


def written(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", ["list", "indented", "lines", "gzip", "bom", "utf-16", "parquet"])
def test_every_form_gives_the_same_rows(tmp_path, monkeypatch, form: str, block: int) -> None:
    """With blocks of one character every row, number and letter is cut in every place."""
    monkeypatch.setattr(files_module, "_BLOCK", block)
    text = json.dumps(ROWS, ensure_ascii=False)
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    path = tmp_path / "rows.json"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        content = {
            "list": text.encode(),
            "indented": json.dumps(ROWS, indent=2).encode(),
            "lines": lines.encode(),
            "gzip": gzip.compress(text.encode()),
            "bom": text.encode("utf-8-sig"),
            "utf-16": text.encode("utf-16"),
        }[form]
        path.write_bytes(content)
    check_file(str(path))
    assert list(read_file(str(path))) == ROWS


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        ("<html></html>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("id,question\n1,x\n", "begins with 'id,question"),
        (json.dumps({"data": ROWS}), "found one object"),
        (json.dumps(ROWS)[:-30], "cannot be read to its end"),
        (json.dumps(ROWS)[:-1] + ", ]", "cannot be read to its end"),
        (json.dumps(ROWS) + "x", "text follows the end"),
        (json.dumps(ROWS).replace("]}, {", "]} {"), "expected a comma"),
        ('[{"a": NaN}]', "NaN is no json"),
        ('[{"a": ' + "[" * 3000 + "]" * 3000 + "}]", "too deep"),
        (json.dumps(ROWS).encode("utf-16")[:-3], "cannot be read to its end"),
        (b"[{}]" + b"\xe9", "cannot be read to its end"),
        (gzip.compress(json.dumps(ROWS).encode())[:-9], "cannot be read to its end"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, monkeypatch, content, problem, block):
    monkeypatch.setattr(files_module, "_BLOCK", block)
    path = written(tmp_path / "rows.json", content)
    with pytest.raises(SourceError, match=problem) as error:
        check_file(path)
    assert "rows.json" in str(error.value)


def test_numbers_of_any_size_are_kept(tmp_path) -> None:
    path = written(tmp_path / "rows.json", f"[{2**70}, 1.5, 7 , 8]")
    assert list(read_file(path)) == [2**70, 1.5, 7, 8]


def tap_data(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    assert found.exit_code == code, found.output
    return found.output


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("coco/1.jpg", "vg/1.jpg", "vg/2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    (tmp_path / "images" / "cut.jpg").write_bytes((tmp_path / "images/vg/1.jpg").read_bytes()[:90])
    (tmp_path / "outside.jpg").write_bytes((tmp_path / "images/vg/1.jpg").read_bytes())
    return tmp_path / "images"


def test_images_are_found_below_their_folder_and_nowhere_else(tmp_path, images) -> None:
    names = {
        "coco/1.jpg": None,
        "./vg\\2.jpg ": None,
        "2.jpg": None,
        "1.jpg": "fits 'coco/1.jpg' and 'vg/1.jpg'",
        "coco/2.jpg": "not below the image folder",
        "../outside.jpg": "outside",
        "/vg/1.jpg": "outside",
        "https://x.org/1.jpg": "not fetched",
        "vg": "is a folder",
        "cut.jpg": "unreadable image",
    }
    (images / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    names["link.jpg"] = "outside"
    rows = [sample(number, name) for number, name in enumerate(names)]
    path = written(tmp_path / "rows.json", json.dumps(rows))
    output = tap_data("import-conversations", path, "--images", images, "--out", tmp_path / "s")
    store = Store(str(tmp_path / "s"))
    kept = store.open(CONVERSATIONS).to_table().to_pylist()
    assert [row["image"] for row in kept] == ["coco/1.jpg", "vg/2.jpg", "vg/2.jpg"]
    assert [row["source"] for row in kept] == ["coco", "vg", "vg"]
    rejects = store.open(CONVERSATION_REJECTS).to_table().to_pylist()
    for (name, problem), row in zip(list(names.items())[3:], rejects, strict=True):
        assert problem is not None and problem in row["detail"], name
        assert f"rows.json row {row['row']} (id '{row['row']}')" in row["detail"]
    assert "kept 3 conversations (coco 1, vg 2)" in output
    assert "left out: 8" in output


def test_rows_of_several_files_come_once_and_in_order(tmp_path) -> None:
    first = written(tmp_path / "a.json", json.dumps([*ROWS, ROWS[0]]))
    lines = "\n".join([json.dumps(ROWS[1]), "{cut", json.dumps(sample(9))])
    second = written(tmp_path / "b.jsonl", lines)
    broken = written(tmp_path / "c.json", "[{")
    out = tmp_path / "store"
    output = tap_data("import-conversations", first, second, broken, "--out", out, code=1)
    assert "c.json" in output
    table = Store(str(out)).open(CONVERSATIONS).to_table()
    assert table.schema.remove_metadata() == conversations_schema()
    places = [(row["file"], row["row"]) for row in table.to_pylist()]
    assert places == [("a.json", 0), ("a.json", 1), ("a.json", 2), ("b.jsonl", 2)]
    assert conversation_of(table.to_pylist()[3]).pairs[0][0] == "Question 9?"
    rejects = Store(str(out)).open(CONVERSATION_REJECTS).to_table().to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in rejects] == [
        ("c.json", None, "file unreadable"),
        ("a.json", 3, "same row as before"),
        ("b.jsonl", 0, "same row as before"),
        ("b.jsonl", 1, "bad line"),
    ]
    again = tap_data("import-conversations", first, second, "--out", out, code=1)
    assert "has conversations already" in again
    tap_data("import-conversations", first, second, "--out", out, "--replace")
    assert Store(str(out)).open(CONVERSATIONS).to_table().to_pylist() == table.to_pylist()


def test_a_cut_file_leaves_no_store(tmp_path) -> None:
    path = written(tmp_path / "rows.json", json.dumps(ROWS)[:-30])
    assert "rows.json" in tap_data("import-conversations", path, "--out", tmp_path / "s", code=1)
    assert not (tmp_path / "s").exists()
