import pytest

from tests.e2e import kill_build


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "images"),
    [
        (2, 12),
        # benchmarks/results/kill.md holds a longer run still.
        pytest.param(8, 30, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_killed_builds_lose_and_repeat_nothing(tmp_path, capsys, kills, images) -> None:
    kill_build.main(kills=kills, images=images, seed=3, folder=tmp_path)
    assert "rows identical" in capsys.readouterr().out
