"""Real photos with real masks: the same rows whatever the run, the workers and the unit size."""

import numpy as np
import pytest

from tap_engine.pipeline.build import build
from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.tables import REGIONS
from tests.support import shared_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_real_photos_give_the_same_rows_each_time(
    tmp_path, ray_local, tiny_clip, few_concepts
) -> None:
    source = Sa1bSource([str(shared_data("real_sa1b"))])
    found = []
    for number, (actors, unit_images) in enumerate([(1, 512), (1, 512), (2, 1)]):
        config = BuildConfig(
            out=str(tmp_path / str(number)),
            teacher=TeacherConfig(name=str(tiny_clip), pretrained="none", seed=5),
            vocabulary=str(few_concepts),
            concepts="top:3",
            workers=WorkerConfig(actors=actors, unit_images=unit_images),
        )
        summary = build(source, config)
        assert (summary.images, dict(summary.rejects), summary.failed) == (6, {}, [])
        table = Store(config.out).open(REGIONS).to_table().sort_by("key")
        assert table.num_rows == summary.regions > 6
        found.append(table)
    first, *others = found
    derived = ("unit", "embedding", "concept_ids", "concept_probs", "concept_entropy")
    same = [name for name in first.column_names if name not in derived]
    vectors = np.stack(first.column("embedding").to_pylist()).astype(np.float32)
    assert len(np.unique(vectors, axis=0)) > len(vectors) / 2  # it does look at the crops
    for other in others:
        assert other.select(same) == first.select(same)
        again = np.stack(other.column("embedding").to_pylist()).astype(np.float32)
        np.testing.assert_allclose(again, vectors, atol=1e-3)
