import os

import pytest

# A test must not reach for a hub, whatever the machine allows.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Processes of pytest-xdist share the cores; threads of torch in each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: processes that share the modules then end at the same time."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session")
def ray_local():
    """One small Ray for the whole run."""
    from tap_engine.jobs.cluster import ray_session

    with ray_session(None, 2, None):
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a tiny real open_clip model."""
    from tests.scenes import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def few_concepts(tmp_path_factory):
    """A vocabulary file of six concepts."""
    path = tmp_path_factory.mktemp("vocabulary") / "six.txt"
    path.write_text("person\ndog\ncat\ntree\ncar\nsky\n")
    return path


@pytest.fixture(scope="session")
def built_store(tmp_path_factory, ray_local, tiny_clip, few_concepts):
    """A small valid store; copy it before changing it."""
    from tap_engine.pipeline.build import build
    from tap_engine.pipeline.config import BuildConfig, WorkerConfig
    from tap_engine.pipeline.sources.sa1b import Sa1bSource
    from tap_engine.pipeline.teacher import TeacherConfig
    from tests.scenes import write_shard

    folder = tmp_path_factory.mktemp("built")
    write_shard(folder / "sa_000000.tar", range(1, 9))
    config = BuildConfig(
        out=str(folder / "store"),
        teacher=TeacherConfig(name=str(tiny_clip)),
        vocabulary=str(few_concepts),
        concepts="top:3",
        workers=WorkerConfig(actors=1, unit_images=4),
    )
    build(Sa1bSource([str(folder)]), config)
    return folder / "store"
