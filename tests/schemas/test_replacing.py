import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from tap_engine.schemas.replacing import replacing, replacing_in


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text(content)


def test_a_file_appears_at_the_end_and_replaces_the_old_one(tmp_path) -> None:
    path = tmp_path / "file"
    for content in ("one", "two"):
        with replacing(path) as partial:
            partial.write_text(content)
            assert partial.parent == path.parent, "another disk could not be renamed from"
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content
    assert names(tmp_path) == ["file"]


def test_a_folder_replaces_a_folder(tmp_path) -> None:
    path = tmp_path / "folder"
    for content in ("one", "two"):
        with replacing(path) as partial:
            fill(partial, content)
        assert (path / "inner" / "file").read_text() == content
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there(tmp_path, kind) -> None:
    path = tmp_path / "target"
    path.write_text("old") if kind == "file" else fill(path, "old")
    with pytest.raises(ValueError, match="broken"), replacing(path) as partial:
        partial.write_text("new") if kind == "file" else fill(partial, "new")
        raise ValueError("broken")
    assert (path if kind == "file" else path / "inner" / "file").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass


@pytest.mark.parametrize("death", [OSError("disk full"), None])
def test_the_old_folder_stays_on_the_disk_until_the_new_one_has_its_name(
    tmp_path, monkeypatch, death
) -> None:
    path, aside = tmp_path / "folder", tmp_path / ".folder.old"
    with replacing(path) as partial:
        fill(partial, "old")
    if death is None:  # killed between the two renames
        path.rename(aside)
    else:
        rename = os.replace

        def dies(source: Path, target: Path) -> None:
            if Path(source).name.endswith(".partial"):
                assert (aside / "inner" / "file").read_text() == "old"
                raise death
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("tap_engine.schemas.replacing.os.replace", dies)
            with pytest.raises(OSError, match="disk full"), replacing(path) as partial:
                fill(partial, "new")
        assert (path / "inner" / "file").read_text() == "old"
    with pytest.raises(ValueError, match="later"), replacing(path):
        raise ValueError("later")
    assert (path / "inner" / "file").read_text() == "old", "the next writer puts it back"
    assert names(tmp_path) == ["folder"]


def test_a_killed_writer_leaves_the_old_file_and_its_rest_is_removed(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tap_engine.schemas.replacing import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    with replacing(path) as partial:
        partial.write_text("new")
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "new"


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    path, done = tmp_path / "folder", []
    sync, rename = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def noted_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr("tap_engine.schemas.replacing.os.fsync", noted_sync)
    monkeypatch.setattr("tap_engine.schemas.replacing.os.replace", noted_rename)
    with replacing(path) as partial:
        fill(partial, "new")
    assert set(done[: done.index("rename")]) == {".folder.partial", "inner", "file"}
    assert done[-1] == tmp_path.name, "the folder's entry as well"


def test_two_processes_may_build_one_file_of_a_filesystem(tmp_path) -> None:
    store, path = fs.LocalFileSystem(), str(tmp_path / "file")
    with replacing_in(store, path) as first:
        Path(first).write_text("first")
        with pytest.raises(ValueError, match="broken"), replacing_in(store, path) as second:
            assert second != first
            Path(second).write_text("second")
            raise ValueError("broken")
    assert Path(path).read_text() == "first"
    (tmp_path / ".file.killed.partial").write_text("half")
    (tmp_path / ".file2.running.partial").write_text("of another file")
    with replacing_in(store, path) as third:
        Path(third).write_text("third")
    assert Path(path).read_text() == "third"
    assert names(tmp_path) == [".file2.running.partial", "file"]
