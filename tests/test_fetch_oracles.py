"""The script that fetches public test data; its downloads are replaced, so no network is needed."""

import hashlib
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fetch_oracles import ORACLES, WRITTEN, WrongFile, fetch_oracle, main
from tests.support import shared_data

MADE = b'{"made": "by this test"}'
ORACLE = replace(ORACLES[0], sha256=hashlib.sha256(MADE).hexdigest())


def test_a_dry_run_prints_every_source_and_touches_neither_network_nor_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert main([str(tmp_path / "data"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(oracle.url in printed and oracle.path in printed for oracle in ORACLES)
    assert not (tmp_path / "data").exists()


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongFile, match=f"expected SHA-256 {ORACLE.sha256}"):
        fetch_oracle(ORACLE, tmp_path, lambda url: MADE + b" ")
    assert not list(tmp_path.rglob("*.json"))
    assert fetch_oracle(ORACLE, tmp_path, lambda url: MADE).startswith("fetched")
    assert (tmp_path / ORACLE.path).read_bytes() == MADE


def test_what_is_there_is_checked_and_not_fetched_again(tmp_path: Path) -> None:
    fetch_oracle(ORACLE, tmp_path, lambda url: MADE)

    def fetch(url: str) -> bytes:
        raise AssertionError("fetched again")

    assert fetch_oracle(ORACLE, tmp_path, fetch).startswith("there already")
    (tmp_path / ORACLE.path).write_bytes(b"changed")
    with pytest.raises(WrongFile, match="it was left alone"):
        fetch_oracle(ORACLE, tmp_path, fetch)


def test_failures_are_counted_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        raise OSError("no route to host")

    assert main([str(tmp_path)], fetch) == 1
    assert asked == [oracle.url for oracle in ORACLES]
    assert capsys.readouterr().err.count("no route to host") == len(ORACLES)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: Path(oracle.path).name)
def test_the_hashes_are_those_of_the_files_that_tests_use(oracle) -> None:
    content = shared_data(oracle.path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == oracle.sha256


@pytest.mark.parametrize("name", WRITTEN)
def test_written_numbers_are_those_that_tests_use(name: str) -> None:
    found = json.loads(shared_data(name).read_text())
    for corpus, kinds in WRITTEN[name].items():
        assert {kind: found[corpus][kind] for kind in kinds} == kinds
