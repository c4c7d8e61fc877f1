"""A cluster of two nodes, one of which dies in the middle of a build."""

import subprocess
import sys

import pytest

from tap_engine.pipeline.store import Store
from tap_engine.pipeline.verify import verify
from tests.e2e.kill_build import same_rows
from tests.e2e.support import tap_data
from tests.scenes import write_shard

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROGRAM = """
import ray, sys
from ray.cluster_utils import Cluster

shards, store, teacher, vocabulary = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
doomed = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()

from tap_engine.pipeline import build as module
from tap_engine.pipeline.config import BuildConfig, WorkerConfig
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.teacher import TeacherConfig

run_units = module.run_units

def watched(*arguments):
    for count, result in enumerate(run_units(*arguments)):
        if count == 2:
            cluster.remove_node(doomed, allow_graceful=False)
            print("a node is gone", flush=True)
        yield result

module.run_units = watched
config = BuildConfig(
    out=store,
    teacher=TeacherConfig(name=teacher),
    vocabulary=vocabulary,
    concepts="top:3",
    workers=WorkerConfig(actors=2, unit_images=2, commit_s=0.5),
)
summary = module.build(Sa1bSource([shards]), config)
print("built", summary.images, "images,", len(summary.failed), "failed")
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_dies_during_a_build(tmp_path, tiny_clip, few_concepts) -> None:
    shard = write_shard(tmp_path / "sa_000000.tar", range(1, 25))
    places = [shard, tmp_path / "two", tiny_clip, few_concepts]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, places)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "a node is gone" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "built 24 images, 0 failed" in done.stdout, done.stdout + done.stderr[-3000:]
    assert verify(Store(str(tmp_path / "two"))).ok
    tap_data(
        *("build-semantic", shard, "--out", tmp_path / "one", "--teacher", tiny_clip),
        *("--vocabulary", few_concepts, "--concepts", "top:3", "--unit-images", "2"),
    )
    same_rows(tmp_path / "one", tmp_path / "two")
