"""Workers for a cluster's resources; every number below was worked out by hand."""

import pytest

from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.layout import WorkerLayout, choose_layout
from tap_engine.schemas.errors import ConfigError

GIB = 1 << 30


def chosen(resources: dict, *, teacher: bool = True, **workers) -> WorkerLayout:
    more = {} if teacher else {"teacher": None}
    return choose_layout(BuildConfig(out="x", workers=WorkerConfig(**workers), **more), resources)


@pytest.mark.parametrize(
    ("resources", "workers", "expected"),
    [
        # one worker per GPU, the CPUs shared out, at most eight each
        ({"CPU": 64, "GPU": 8}, {}, (8, 8, 1.0, 512)),
        ({"CPU": 48, "GPU": 8}, {}, (8, 6, 1.0, 512)),
        ({"CPU": 256, "GPU": 8}, {}, (8, 8, 1.0, 512)),
        # memory does not bound workers that have a GPU
        ({"CPU": 64, "GPU": 8, "memory": 2 * GIB}, {}, (8, 8, 1.0, 512)),
        # two workers share a GPU; one worker has two
        ({"CPU": 16, "GPU": 2}, {"teacher_gpus": 0.5}, (4, 4, 0.5, 512)),
        ({"CPU": 16, "GPU": 3}, {"teacher_gpus": 2}, (1, 8, 2, 512)),
        ({"CPU": 64, "GPU": 8}, {"actors": 3}, (3, 8, 1.0, 512)),
        ({"CPU": 64, "GPU": 8}, {"actors": 4, "crop_cpus": 12}, (4, 12, 1.0, 512)),
        ({"CPU": 64, "GPU": 8}, {"unit_images": 64}, (8, 8, 1.0, 64)),
        # GPUs that are not wanted: as if there were none, small units
        ({"CPU": 6, "GPU": 8, "memory": 64 * GIB}, {"teacher_gpus": 0}, (6, 1, 0.0, 32)),
        # one worker per CPU, or as many as find 2 GiB each
        ({"CPU": 16}, {}, (1, 1, 0.0, 32)),
        ({"CPU": 16, "memory": 64 * GIB}, {}, (16, 1, 0.0, 32)),
        ({"CPU": 16, "memory": 9 * GIB}, {}, (4, 1, 0.0, 32)),
        ({"CPU": 16, "memory": 64 * GIB}, {"crop_cpus": 5}, (3, 5, 0.0, 32)),
        ({"CPU": 1, "memory": GIB}, {}, (1, 1, 0.0, 32)),
    ],
)
def test_workers_fit_the_cluster(resources, workers, expected) -> None:
    assert chosen(resources, **workers) == WorkerLayout(*expected)


def test_without_a_teacher_gpus_are_left_alone_and_units_are_large() -> None:
    found = chosen({"CPU": 4, "GPU": 2, "memory": 64 * GIB}, teacher=False)
    assert found == WorkerLayout(4, 1, 0.0, 512)


@pytest.mark.parametrize(
    ("resources", "workers", "message"),
    [
        (
            {"CPU": 4, "GPU": 8},
            {},
            "8 workers of 1 CPU and 1 GPU were.* has 4 CPU and 8",
        ),
        ({"CPU": 4}, {"teacher_gpus": 1}, "4 CPU and 1 GPU.*the cluster has 4 CPU and 0 GPU"),
        ({"CPU": 64, "GPU": 8}, {"actors": 9}, "9 workers of 7 CPU and 1 GPU"),
        ({"CPU": 64, "GPU": 8}, {"crop_cpus": 9}, "8 workers of 9 CPU and 1 GPU"),
        ({"CPU": 4}, {"actors": 5}, "5 workers of 1 CPU and 0 GPU"),
    ],
)
def test_more_than_there_is_is_refused(resources, workers, message) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen({**resources, "memory": 64 * GIB}, **workers)


def test_a_line_for_people() -> None:
    assert WorkerLayout(8, 6, 0.5, 512).describe() == (
        "8 workers, each 6 CPU and 0.5 GPU; units of 512 images"
    )
    assert WorkerLayout(1, 2, 0.0, 32).describe() == "1 worker, each 2 CPU; units of 32 images"
