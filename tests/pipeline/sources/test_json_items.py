import gzip
import json

import pytest

from tap_engine.pipeline.sources import json_items
from tap_engine.pipeline.sources.json_items import index_json
from tap_engine.schemas.errors import SourceError

DOCUMENTS = [
    {"info": {"a": [1, [2]]}, "images": [{"f": 'a,]}\\" [x'}, None, "t,x", 5, [1, 2]], "b": []},
    [1, 2, {"a": [3]}],
    {},
    [],
    {"shapes": [{"points": [[1, 2], [3, 4]]}] * 3, "n": {"deep": [[1], [2]]}},
]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_frame_and_rows_are_the_document(monkeypatch, chunk, indent, document) -> None:
    monkeypatch.setattr(json_items, "_SCANNED", chunk)
    text = json.dumps(document, indent=indent).encode()
    items = index_json("a.json", text)
    rows = [json.loads(text[a:b]) for a, b in zip(items.starts, items.ends, strict=True)]

    def whole(frame, depth=0):
        if isinstance(frame, list):
            return [rows[number] for number in frame]
        if isinstance(frame, dict) and depth == 0:
            return {k: whole(v, 1) if isinstance(v, list) else v for k, v in frame.items()}
        return frame

    assert whole(items.frame) == document
    assert [text[:start].count(b"\n") + 1 for start in items.starts] == items.lines.tolist()


def test_rows_are_read_from_plain_packed_and_wide_files(tmp_path) -> None:
    text = json.dumps({"images": [{"id": 1}, {"id": 2**70}], "x": "é"}, ensure_ascii=False)
    for data in (text.encode(), gzip.compress(text.encode()), text.encode("utf-16")):
        path = tmp_path / "a.json"
        path.write_bytes(data)
        items = index_json(str(path))
        assert [row["id"] for _, row in items.rows(items.frame["images"])] == [1, 2**70]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b'{"a": [1, 2', "cut short.*line 1"),
        (b'{"a": [1],\n}', "line 2"),
        (b'{"a": [1,]}', "line 1"),
        (b'{"a": 1}\n{"a": 1}', "line 2"),
        (b"<html>", "html"),
        (bytes(99), "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
        (b'{"a": [1], "a": [2]}', "twice"),
        (b'{"a": 1, // mine\n "b": 2}', "line 1"),
        ('{"a": "é"}'.encode("latin-1"), "encoding"),
    ],
)
def test_damage_is_named_with_file_and_line(data, words) -> None:
    with pytest.raises(SourceError, match=f"a.json: .*{words}"):
        index_json("a.json", data)
