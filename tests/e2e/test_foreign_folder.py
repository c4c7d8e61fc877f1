"""A user's folder may have its own train.py, model/ and schemas/; workers start there, too."""

import pytest

from tests.e2e.support import tap_data
from tests.scenes import write_shard

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_build_from_a_folder_with_colliding_names(tmp_path, tiny_clip, few_concepts) -> None:
    trap = "raise RuntimeError('the user\\'s own file was imported')\n"
    for name in ("train.py", "pipeline.py", "jobs.py", "tap_engine_is_not_here.py"):
        (tmp_path / name).write_text(trap)
    for name in ("model", "schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(trap)
    write_shard(tmp_path / "sa_000000.tar", [1, 2])
    done = tap_data(
        *("build-semantic", "sa_000000.tar", "--out", "store", "--teacher", tiny_clip),
        *("--vocabulary", few_concepts, "--concepts", "none"),
        cwd=tmp_path,
    )
    assert "built 2 images and 10 regions" in done.stdout
    assert "21 checks" not in tap_data("inspect", "store", cwd=tmp_path).stdout
    tap_data("verify", "store", cwd=tmp_path)
