"""Pictures of what a model predicts on held-out images, beside what is true."""

import numpy as np
from PIL import Image

from tap_engine.model.picture import (
    PAIR_PX,
    Mark,
    Prompt,
    draw_marks,
    draw_sheet,
    region_mark,
    top_level,
)
from tap_engine.model.predictor import Tap
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.held_out_captions import questions_of
from tap_engine.train.held_out_data import (
    boxes_xyxy_of,
    masks_of,
    pixels_of,
    stored_images,
    teacher_log_probs_of,
)


def draw(
    tap: Tap, space: ConceptSpace | None, reader: StoreReader, count: int, split: str = ""
) -> Image.Image:
    """Draws the first images of a split twice: the truth beside the prediction."""
    if space is not None and "embedding" in reader.columns:
        left = "true masks, the teacher's names"
        pairs = [pair(tap, space, stored) for stored in stored_images(reader, count, split)]
    else:
        left = "boxes with their phrases"
        pairs = [draw_captions(tap, stored) for stored in reader.first(count, split)]
    columns = 2 if len(pairs) == 1 else 4
    heads = (left, "prediction from the boxes") * 2
    return draw_sheet([side for both in pairs for side in both], columns=columns, heads=heads)


def pair(
    tap: Tap, space: ConceptSpace, stored: StoredImage, most: int = 12
) -> tuple[Image.Image, Image.Image]:
    """Draws one image twice.

    Args:
        tap: the model.
        space: concepts of the store.
        stored: an image of `stored_images`, with embeddings.
        most: number of regions shown: the largest that lie inside no larger one.

    Returns:
        The true masks with the teacher's names, and what the model predicts from their boxes.
    """
    rgb = pixels_of(stored)
    masks, boxes = masks_of(stored), boxes_xyxy_of(stored)
    largest = np.argsort(-masks.sum((1, 2)), kind="stable")[: 3 * most]
    shown = largest[top_level([masks[i] for i in largest])[:most]]
    scores, names = teacher_log_probs_of(space, stored).exp().max(-1)
    true = []
    for i in shown:
        name = space.names[names[i]]
        true.append(Mark(mask=masks[i], name=name, text=f"{name} {float(scores[i]):.2f}"))
    tap.set_image(rgb)
    found = tap.predict(boxes=boxes[shown]) if len(shown) else []
    predicted = [
        region_mark(region, Prompt(box_xyxy=box))
        for region, box in zip(found, boxes[shown].tolist(), strict=True)
    ]
    return (
        draw_marks(rgb, true, side_px=PAIR_PX),
        draw_marks(rgb, predicted, side_px=PAIR_PX),
    )


def draw_captions(tap: Tap, stored: StoredImage, most: int = 6) -> tuple[Image.Image, Image.Image]:
    """Draws one image twice.

    Args:
        tap: the model.
        stored: an image with captions.
        most: number of regions shown, the first.

    Returns:
        The boxes with their phrases, and what the model predicts from the boxes.
    """
    rgb = pixels_of(stored)
    questions = [q for q in questions_of(stored, None) if q.references][:most]
    boxes = boxes_xyxy_of(stored)[[question.row for question in questions]]
    nothing = np.zeros(rgb.shape[:2], np.bool_)
    true = [
        Mark(mask=nothing, name=phrase, text=phrase, prompt=Prompt(box_xyxy=box))
        for phrase, box in zip((q.references[0] for q in questions), boxes.tolist(), strict=True)
    ]
    tap.set_image(rgb)
    found = tap.predict(boxes=boxes) if len(boxes) else []
    predicted = [
        region_mark(region, Prompt(box_xyxy=box), number=number)
        for number, (region, box) in enumerate(zip(found, boxes.tolist(), strict=True))
    ]
    return draw_marks(rgb, true, side_px=PAIR_PX), draw_marks(rgb, predicted, side_px=PAIR_PX)
