from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.picture import (
    PictureRegion,
    PictureScene,
    draw_picture,
    draw_stored,
    read_scenes,
)
from tap_engine.pipeline.sample.files import SceneName
from tap_engine.pipeline.store import Store
from tap_engine.schemas import rle
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.keys import pack_image_id, region_key
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.tables import (
    CONCEPTS,
    IMAGES,
    REGIONS,
    concepts_schema,
    images_schema,
    regions_schema,
)


def square(top: int, left: int, side: int, concept: str, **more: object) -> PictureRegion:
    mask = np.zeros((100, 100), np.uint8)
    mask[top : top + side, left : left + side] = 1
    values = {"probability": 0.9, "entropy": 0.1} | more
    return PictureRegion(counts=rle.encode(mask), concept=concept, **values)  # type: ignore[arg-type]


def test_masks_are_coloured_where_they_are_and_nowhere_else() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    scene = PictureScene(image_rgb=image, regions=[square(10, 10, 30, "cat")])
    drawn = np.asarray(draw_stored(scene, 200))
    assert drawn.shape == (200, 200, 3)
    changed = (np.abs(drawn.astype(int) - 128) > 3).any(axis=-1)
    assert changed[22:36, 22:78].all(), "the mask above its label"
    assert not changed[100:].any()
    assert not changed[:, 120:].any()


def test_a_part_is_outlined_but_neither_coloured_nor_named() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    whole, part = square(10, 10, 60, "cat"), square(14, 44, 20, "ear")
    alone = np.asarray(draw_stored(PictureScene(image_rgb=image, regions=[whole]), 400))
    both = np.asarray(draw_stored(PictureScene(image_rgb=image, regions=[part, whole]), 400))
    differs = (alone != both).any(axis=-1)
    assert differs.any()
    assert not differs[64:128, 184:248].any(), "inside the part nothing changes"


def test_wrong_and_unknown_regions_look_different() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    pictures = [
        np.asarray(draw_stored(PictureScene(image_rgb=image, regions=[region]), 300))
        for region in (
            square(20, 20, 60, "cat", truth="cat"),
            square(20, 20, 60, "cat", truth="dog"),
            square(20, 20, 60, "cat", entropy=5.0),
        )
    ]
    red = [(picture == (178, 34, 34)).all(axis=-1).sum() for picture in pictures]
    gray = [(picture == (110, 110, 110)).all(axis=-1).sum() for picture in pictures]
    assert red[1] > 200 and red[0] == red[2] == 0
    assert gray[2] > 200 and gray[0] == gray[1] == 0


def test_a_sheet_holds_all_scenes(tmp_path: Path) -> None:
    wide = PictureScene(image_rgb=np.full((50, 100, 3), 90, np.uint8), regions=[])
    sheet = draw_picture([wide] * 5, panel_px=100, columns=3, title="five")
    assert sheet.size == (3 * 110 + 10, 2 * 60 + 45)
    sheet.save(tmp_path / "sheet.png")
    below_the_title = np.asarray(sheet)[45:]  # a letter's edge may have the panels' grey
    panels = (below_the_title == 90).all(axis=-1).sum()
    assert panels == 5 * 50 * 100


def test_scenes_of_a_store(tmp_path: Path) -> None:
    scenes = [SceneName(3, "train", index).render(128) for index in range(3)]
    names = sorted({region.concept for scene in scenes for region in scene.regions})
    images, regions = [], []
    for number, scene in enumerate(scenes, 1):
        image_id = pack_image_id("sample", number)
        bgr = cv2.cvtColor(scene.image_rgb, cv2.COLOR_RGB2BGR)
        images.append(
            {
                "image_id": image_id,
                "source": "sample",
                "unit": 0,
                "file_name": f"sa_{number}.jpg",
                "width": 128,
                "height": 128,
                "jpeg": cv2.imencode(".jpg", bgr)[1].tobytes(),
                "region_count": len(scene.regions),
            }
        )
        regions += [
            {
                "key": region_key(image_id, ordinal),
                "image_id": image_id,
                "region_id": ordinal,
                "source": "sample",
                "unit": 0,
                "bbox_xywh": list(region.bbox_xywh),
                "area": region.area,
                "rle": region.counts,
                "embedding": np.zeros(4, np.float16),
                "concept_ids": [names.index(region.concept)],
                "concept_probs": [0.5],
                "concept_entropy": 1.0,
            }
            for ordinal, region in enumerate(scene.regions)
        ]
    zeros = np.zeros(4, np.float32)
    concepts = [
        {
            "concept_id": number,
            "name": name,
            "sources": [],
            "source_embedding": zeros,
            "target_embedding": zeros,
        }
        for number, name in enumerate(names)
    ]
    store, made = Store(str(tmp_path / "store")), Provenance({})
    store.create(IMAGES, pa.Table.from_pylist(images, images_schema()), made)
    store.create(REGIONS, pa.Table.from_pylist(regions, regions_schema(4, 1)), made)
    store.create(CONCEPTS, pa.Table.from_pylist(concepts, concepts_schema(4)), made)
    found = read_scenes(store.uri, 5)
    assert len(found) == 3
    for read, scene in zip(found, scenes, strict=True):
        assert np.abs(read.image_rgb.astype(int) - scene.image_rgb).mean() < 4
        assert [region.counts for region in read.regions] == [r.counts for r in scene.regions]
        assert [region.concept for region in read.regions] == [r.concept for r in scene.regions]
    with pytest.raises(StoreError, match="no table 'images'"):
        read_scenes(str(tmp_path / "nothing"), 1)
