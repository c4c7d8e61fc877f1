"""RefCOCOg references as ground truth for region captioning, in the three ways they are used.

No paper says which way it used (docs/evaluation.md); the counts in the stamp tell them apart: UMD
val has 2,573 regions with 4,896 sentences, Google's val 5,000 regions.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa

from tap_engine.schemas import pickles
from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.ground_truth import GroundTruth, read_coco_layout, region_table

Grouping = Literal["region", "sentence"]
Text = Literal["raw", "sent"]


def read_refcocog(
    refs: str,
    instances: str,
    *,
    split: str = "val",
    grouping: Grouping = "region",
    text: Text = "raw",
) -> GroundTruth:
    """Ground truth of a `refs(umd).p` or `refs(google).p` file.

    Args:
        refs: the pickle, opened by the restricted unpickler; Python 2 wrote the originals.
        instances: `instances.json` beside it, which has the boxes.
        split: train, val or test.
        grouping: `region`, one sample a referred region with all its sentences as references; or
            `sentence`, one sample a sentence with that one reference.
        text: `raw` as people wrote it, or `sent`, lower-cased and spaced out.

    Raises:
        CheckpointError: the pickle asks for anything but plain values.
        SchemaError: not RefCOCOg's layout, no such split, or an annotation without a box.
    """
    content = pickles.load(refs, encoding="latin1")
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise SchemaError(f"{refs}: expected a list of references, found {type(content).__name__}")
    splits = {str(row.get("split")) for row in content}
    if split not in splits:
        raise SchemaError(f"{refs}: no split {split!r}; it has {', '.join(sorted(splits))}")
    wanted = [row for row in content if row.get("split") == split]
    truth = read_coco_layout(instances, masks=False)
    boxes = dict(
        zip(
            truth.regions["region_id"].to_pylist(),
            truth.regions.select(["image_id", "bbox_xywh", "area", "category_id"]).to_pylist(),
            strict=True,
        )
    )
    try:
        regions = region_table(_rows(wanted, boxes, grouping, text))
    except (KeyError, TypeError) as error:
        raise SchemaError(f"{refs}: a reference lacks or garbles {error}") from error
    image_ids = set(regions["image_id"].to_pylist())
    missing = image_ids - truth.images.keys()
    if missing:
        raise SchemaError(f"{instances}: image {min(missing)} of the references is not there")
    images = {image_id: truth.images[image_id] for image_id in sorted(image_ids)}
    return GroundTruth(
        f"refcocog {split} by {grouping}", images, truth.categories, _sorted(regions)
    )


def _rows(
    refs: list[Mapping[str, Any]],
    boxes: Mapping[int, Mapping[str, Any]],
    grouping: Grouping,
    text: Text,
) -> Iterator[dict[str, Any]]:
    for ref in refs:
        box = boxes.get(int(ref["ann_id"]))
        if box is None:
            raise SchemaError(f"reference {ref['ref_id']}: no annotation {ref['ann_id']}")
        row = {**box, "crowd": False, "rle": None}
        sentences = {int(one["sent_id"]): str(one[text]) for one in ref["sentences"]}
        if grouping == "region":
            yield {**row, "region_id": int(ref["ref_id"]), "captions": list(sentences.values())}
        else:
            for sent_id, sentence in sentences.items():
                yield {**row, "region_id": sent_id, "captions": [sentence]}


def _sorted(regions: pa.Table) -> pa.Table:
    return regions.sort_by([("image_id", "ascending"), ("region_id", "ascending")])
