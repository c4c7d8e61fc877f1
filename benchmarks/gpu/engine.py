"""The data engine end to end on one GPU: regions per second, stages, and what limits."""

import os
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.bench import Bench

TEACHERS = (("ViT-L-14", 256), ("EVA02-E-14-plus", 96))
"""A light teacher, whose crops are hard to keep up with, and the paper's; images built for each."""


def engine(bench: Bench) -> None:
    """Builds a store from one made-up SA-1B shard with a teacher of random weights."""
    for name, images in TEACHERS[:1] if bench.dry else TEACHERS:
        bench.part(f"build with {name}", lambda name=name, images=images: run(bench, name, images))


def run(bench: Bench, name: str, images: int) -> None:
    import ray

    from tap_engine.jobs.cluster import ray_session
    from tap_engine.pipeline.build import build
    from tap_engine.pipeline.config import BuildConfig, WorkerConfig
    from tap_engine.pipeline.sources.sa1b import Sa1bSource
    from tap_engine.pipeline.teacher import TeacherConfig

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard, teacher = folder / "sa_000000.tar", TeacherConfig(name=name, pretrained="none")
        if bench.dry:
            from tests.scenes import write_shard, write_tiny_clip

            write_shard(shard, range(1, 3))
            teacher = TeacherConfig(name=str(write_tiny_clip(folder / "teacher")), device="cpu")
        else:
            from benchmarks.engine import write_shard as write_large_shard

            write_large_shard(shard, None, images)
        vocabulary = folder / "two.txt"
        vocabulary.write_text("dog\ncat\n")
        config = BuildConfig(
            out=str(folder / "store"),
            teacher=teacher,
            concepts="none",
            vocabulary=str(vocabulary),
            workers=WorkerConfig(actors=1 if bench.dry else 0),
        )
        cpus = 2 if bench.dry else None
        with nullcontext() if ray.is_initialized() else ray_session(None, cpus, None):
            summary = build(Sa1bSource([str(shard)]), config, say=lambda text: None)
    if summary.failed or summary.rejects:
        raise RuntimeError(f"units failed or rows were left out: {summary}")
    spent = summary.stage_seconds
    stages = ", ".join(f"{k} {v:.1f} s" for k, v in sorted(spent.items(), key=lambda p: -p[1]))
    rate = summary.regions / summary.seconds
    note = f"{os.cpu_count()} cores; work by stage: {stages}"
    bench.figure(f"engine: {name}", rate, "regions/s", note)
    busy = spent["teacher"] / summary.seconds
    bench.figure(
        f"engine: GPU busy share with {name}", busy, "", "loading the teacher counts as idle"
    )
    if name == TEACHERS[-1][0]:
        bench.figure("engine: GPU busy share", busy, "")
