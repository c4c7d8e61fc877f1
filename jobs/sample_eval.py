"""The sample world's held-out scenes as an evaluation set, drawn on the spot.

They are the validation scenes of `tap-data sample` with the same seed: no training scene is among
them. Objects are the regions, with their names over the whole shipped vocabulary and with the
phrases that the sample world composes for them as references. Images and regions have the numbers
of the store and of the truth table, so predictions join both.
"""

import io
from collections.abc import Mapping

from PIL import Image

from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.pipeline.sample.captions import compose_captions
from tap_engine.pipeline.sample.files import Drawn, SceneName, files_of
from tap_engine.pipeline.sample.scene import Scene
from tap_engine.schemas.shipped import SAMPLE
from tap_engine.schemas.truth import OBJECT
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.ground_truth import Category, GroundTruth, TruthImage, region_table

SCENES = 100
SIZE_PX = 256
"""Side of a scene in px: what the tiny model sees without resizing."""


def sample_set(scenes: int = 0, size_px: int = SIZE_PX, seed: int = 0) -> EvalSet:
    """Held-out scenes with their truth; about 40 per second at 256 px on one core.

    Args:
        scenes: the number of scenes; 0 takes `SCENES`.
        size_px: side of a scene.
        seed: the seed of the sample world.
    """
    names = load_vocabulary(DEFAULT_VOCABULARY)
    images: dict[int, TruthImage] = {}
    jpegs: dict[int, bytes] = {}
    rows: list[dict[str, object]] = []
    for index in range(scenes or SCENES):
        scene_name = SceneName(seed, "validation", index)
        scene = scene_name.render(size_px)
        drawn = files_of(scene_name, scene)
        image_id = drawn.truth[0]["image_id"]
        images[image_id] = TruthImage(
            image_id=image_id,
            size_hw=(size_px, size_px),
            file_name=drawn.annotations["image"]["file_name"],
        )
        jpegs[image_id] = drawn.jpeg
        rows += _object_rows(scene_name, scene, drawn, names.ids)
    categories = {
        concept_id + 1: Category(category_id=concept_id + 1, name=name)
        for concept_id, name in enumerate(names.names)
    }
    truth = GroundTruth(SAMPLE, images, categories, region_table(iter(rows)))

    def pixels(image_id: int) -> Rgb:
        with Image.open(io.BytesIO(jpegs[image_id])) as file:
            return to_rgb(file)

    return EvalSet(truth, pixels)


def _object_rows(
    scene_name: SceneName, scene: Scene, drawn: Drawn, concept_ids: Mapping[str, int]
) -> list[dict[str, object]]:
    """Ground truth of the objects, under the numbers that they have in stores and truth table."""
    phrases: dict[int, list[str]] = {}
    for index, phrase in compose_captions(scene, scene_name.generator(1)):
        phrases.setdefault(index, []).append(phrase)
    return [
        {
            "region_id": known["region_id"],
            "image_id": known["image_id"],
            "category_id": concept_ids[region.concept] + 1,
            "bbox_xywh": [float(side) for side in region.bbox_xywh],
            "area": float(region.area),
            "crowd": False,
            "rle": region.counts,
            "captions": phrases[index],
        }
        for index, (region, known) in enumerate(zip(scene.regions, drawn.truth, strict=True))
        if region.kind == OBJECT
    ]
