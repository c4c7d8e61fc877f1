"""What docs/store.md tells people to paste, run as it stands there."""

import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

DOC = (Path(__file__).parents[2] / "docs" / "store.md").read_text()

pytestmark = pytest.mark.ray


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)


@pytest.fixture
def beside_the_store(built_store, tmp_path, monkeypatch):
    """An own folder with a link to the store: results do not land beside the shared one."""
    (tmp_path / "store").symlink_to(built_store)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_in_one_session(beside_the_store, capsys) -> None:
    session: dict = {}
    for block in blocks("python"):
        exec(compile(block, "docs/store.md", "exec"), session)
    assert "tap_engine" not in "".join(blocks("python"))
    shown = capsys.readouterr().out
    assert "8 images, 40 regions, 6 concepts" in shown
    assert session["counts"].sum() == 40
    assert session["of_image"].num_rows == 5
    assert session["mask"].sum() == session["of_image"]["area"][0].as_py()


def test_the_queries_run(beside_the_store) -> None:
    from tap_engine.jobs.data_cli import app

    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    queries = [shlex.split(line)[1:] for line in lines if line.startswith("tap-data query")]
    assert len(queries) >= 5
    for query in queries:
        done = CliRunner().invoke(app, query)
        assert done.exit_code == 0, (query, done.output)
        assert done.output or "--out" in query
    assert pq.read_table("image_1.parquet").num_rows == 5
    assert pq.read_table("embeddings.parquet").num_rows == 40
