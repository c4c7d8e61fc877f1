"""The sample world's held-out scenes as an evaluation set, drawn on the spot.

They are the validation scenes of `tap-data sample` with the same seed: no training scene is among
them. Objects are the regions, with their names over the whole shipped vocabulary and with the
phrases that the sample world composes for them as references.
"""

import io
from collections.abc import Mapping

from PIL import Image

from tap_engine.model.image_input import Rgb, to_rgb
from tap_engine.pipeline.sample.captions import compose_captions
from tap_engine.pipeline.sample.files import JPEG_QUALITY, SceneName
from tap_engine.pipeline.sample.scene import Scene
from tap_engine.schemas.truth import OBJECT
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary
from tap_engine.train.evaluation.data_sets import EvalSet
from tap_engine.train.evaluation.ground_truth import Category, GroundTruth, TruthImage, region_table

SCENES = 100
SIZE_PX = 256
"""Side of a scene; what the tiny model sees without resizing."""

SAMPLE = "sample"


def sample_set(scenes: int = SCENES, size_px: int = SIZE_PX, seed: int = 0) -> EvalSet:
    """Held-out scenes with their truth; about 40 a second at 256 px on one core."""
    names = load_vocabulary(DEFAULT_VOCABULARY)
    images: dict[int, TruthImage] = {}
    jpegs: dict[int, bytes] = {}
    rows: list[dict[str, object]] = []
    for index in range(scenes):
        scene_name = SceneName(seed, "validation", index)
        scene = scene_name.render(size_px)
        number = scene_name.number
        images[number] = TruthImage(
            image_id=number, size_hw=(size_px, size_px), file_name=f"sa_{number}.jpg"
        )
        jpegs[number] = _jpeg(scene)
        rows += _rows(number, scene, scene_name, names.ids)
    categories = {
        concept_id + 1: Category(category_id=concept_id + 1, name=name)
        for concept_id, name in enumerate(names.names)
    }
    truth = GroundTruth(SAMPLE, images, categories, region_table(iter(rows)))

    def pixels(image_id: int) -> Rgb:
        with Image.open(io.BytesIO(jpegs[image_id])) as file:
            return to_rgb(file)

    return EvalSet(truth, pixels)


def _rows(
    number: int, scene: Scene, scene_name: SceneName, concept_ids: Mapping[str, int]
) -> list[dict[str, object]]:
    phrases: dict[int, list[str]] = {}
    for index, phrase in compose_captions(scene, scene_name.generator(1)):
        phrases.setdefault(index, []).append(phrase)
    return [
        {
            "region_id": number * 1000 + index,
            "image_id": number,
            "category_id": concept_ids[region.concept] + 1,
            "bbox_xywh": [float(side) for side in region.bbox_xywh],
            "area": float(region.area),
            "crowd": False,
            "rle": region.counts,
            "captions": phrases[index],
        }
        for index, region in enumerate(scene.regions)
        if region.kind == OBJECT
    ]


def _jpeg(scene: Scene) -> bytes:
    """The picture as training saw its own: through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(scene.image_rgb).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
