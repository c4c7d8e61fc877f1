"""A unit from shard to fragments, without Ray."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tap_engine.pipeline.concepts import ConceptPacker, embed_concepts
from tap_engine.pipeline.config import CropOptions
from tap_engine.pipeline.sources.sa1b import Sa1bSource
from tap_engine.pipeline.store import Store
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.pipeline.unit_builder import UnitBuilder
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.tables import IMAGES, REGIONS, images_schema, regions_schema
from tests.scenes import write_shard


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_clip) -> tuple[pa.Table, ConceptPacker]:
    """Rows of six scenes in batches that end within images, and the packer they went through."""
    folder = tmp_path_factory.mktemp("unit")
    source = Sa1bSource([str(write_shard(folder / "sa_000000.tar", range(1, 7)))])
    teacher = Teacher(TeacherConfig(name=str(tiny_clip), device="cpu", batch_size=7))
    names = ["person", "dog", "cat", "tree", "car", "sky"]
    target = embed_concepts(teacher, names, ["a photo of a {}."]).cpu().numpy()
    packer = ConceptPacker.of(target, teacher.info.logit_scale, 3)
    store = Store(str(folder / "store"))
    regions = regions_schema(teacher.info.embed_dim, 3)
    for table, schema in ((IMAGES, images_schema()), (REGIONS, regions)):
        store.create(table, schema.empty_table(), Provenance({}, {}))
    crop = CropOptions().for_teacher(teacher.info)
    builder = UnitBuilder(source, store, teacher, packer, crop, threads=2)
    ((unit,), _) = source.index(source.shards()[0], 512)
    result = builder(unit)
    assert (result.images, result.regions, result.crops) == (6, 30, 30)
    store.append(REGIONS, result.region_fragments)
    return store.open(REGIONS).to_table(), packer


def test_concepts_are_computed_from_the_stored_float16(built) -> None:
    """To the bit, or `reproject` would change columns that nobody asked it to change."""
    rows, packer = built
    for image in range(1, 7):
        mask = pa.array(np.asarray(rows["image_id"]) == image)
        some = rows.filter(mask).combine_chunks()
        vectors = np.stack(some["embedding"].to_pylist()).astype(np.float16)
        packed = packer.pack(torch.from_numpy(vectors))
        for name, column in zip(
            ("concept_ids", "concept_probs", "concept_entropy"), packed, strict=True
        ):
            assert some[name].to_pylist() == column.to_pylist(), name


def test_regions_of_an_image_follow_its_annotations(built) -> None:
    rows, _ = built
    assert rows["region_id"].to_pylist() == [1000 * n + k for n in range(1, 7) for k in range(5)]
