import pytest

from tests.e2e import kill_build


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_builds_lose_and_repeat_nothing(tmp_path, capsys) -> None:
    # A few kills here; benchmarks/results/kill.md holds the long run.
    kill_build.main(kills=5, images=24, seed=3, folder=tmp_path)
    assert "rows identical" in capsys.readouterr().out
