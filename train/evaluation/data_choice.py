"""Resolves the data options of `eval` and `score` to an evaluation set."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tap_engine.model.image_input import Rgb
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.shipped import SAMPLE
from tap_engine.train.evaluation.data_sets import EvalSet, from_store, with_folder
from tap_engine.train.evaluation.ground_truth import GroundTruth, read_coco_layout
from tap_engine.train.evaluation.refcocog import read_refcocog

DrawSamples = Callable[[int], EvalSet]
"""How many held-out scenes of the sample world, 0 for the usual number -> the scenes. The data
engine draws them, so a command passes this in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChoice:
    """One data set.

    Attributes:
        name: `sample`, a COCO-layout json, RefCOCOg's refs pickle, or a store.
        references: what has captions of its own: region or sentence of a refs pickle; region or box
            of a store.
        images: image folder of a json or pickle; None where no pixels are needed.
        instances: boxes of a refs pickle.
        split: `val` of a refs pickle; `FILE.json:NAME` for image numbers of a store.
        truth_table: what the regions of a sample store are.
        limit: only the first images; 0 for all, or for the usual number of the sample world.
    """

    name: str
    references: str
    images: str | None = None
    instances: str | None = None
    split: str | None = None
    truth_table: str | None = None
    limit: int = 0


def evaluation_set(choice: DataChoice, draw_samples: DrawSamples, *, masks: bool = True) -> EvalSet:
    """The data of a choice.

    Args:
        choice: which.
        draw_samples: makes the data set `sample`.
        masks: make masks of a json's polygons.

    Raises:
        TapError: files missing or of another layout, options that do not go together.
    """
    if choice.name == SAMPLE:
        return draw_samples(choice.limit)
    if choice.name.endswith((".p", ".pkl")):
        return _limited(_in_folder(_refcocog(choice), choice.images), choice.limit)
    if choice.name.endswith(".json"):
        truth = read_coco_layout(choice.name, masks=masks)
        return _limited(_in_folder(truth, choice.images), choice.limit)
    numbers = _split_numbers(choice.split) if choice.split else None
    return from_store(
        choice.name,
        truth_table=choice.truth_table,
        image_numbers=numbers,
        first=choice.limit,
        by_box=_by_box(choice),
    )


def _by_box(choice: DataChoice) -> bool:
    if choice.references not in ("region", "box"):
        raise ConfigError(
            f"--references must be region or box for a store, got {choice.references!r}"
        )
    return choice.references == "box"


def _refcocog(choice: DataChoice) -> GroundTruth:
    if not choice.instances:
        raise ConfigError("RefCOCOg needs --instances, the instances.json beside its pickle")
    if choice.references not in ("region", "sentence"):
        raise ConfigError(f"--references must be region or sentence, got {choice.references!r}")
    return read_refcocog(
        choice.name,
        choice.instances,
        split=choice.split or "val",
        grouping="region" if choice.references == "region" else "sentence",
    )


def _in_folder(truth: GroundTruth, images: str | None) -> EvalSet:
    if images is not None:
        return with_folder(truth, images)

    def pixels(image_id: int) -> Rgb:
        raise ConfigError("this data needs --images, the folder that its pictures lie in")

    return EvalSet(truth, pixels)


def _limited(data: EvalSet, limit: int) -> EvalSet:
    if not limit or limit >= len(data.truth.images):
        return data
    return EvalSet(data.truth.restricted_to(list(data.truth.images)[:limit]), data.pixels)


def _split_numbers(split: str) -> list[int]:
    """Image numbers of `FILE.json:NAME`, such as densecap_splits.json:test."""
    path, _, name = split.rpartition(":")
    try:
        return [int(number) for number in json.loads(Path(path).read_text())[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--split must be FILE.json:NAME, a list of image numbers under a name; got "
            f"{split!r}: {error!r}"
        ) from error
