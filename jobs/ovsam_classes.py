"""What of Open-Vocabulary SAM needs CLIP's text tower, or the whole CLIP on cut-out pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tap_engine.model.image_input import Rgb
from tap_engine.model.ovsam.classes import TEMPLATES, ClassTable, make_classes, synonyms
from tap_engine.model.ovsam.union import aliases_of, union_classes
from tap_engine.pipeline.config import CropOptions
from tap_engine.pipeline.crop import crop_regions
from tap_engine.pipeline.teacher import Teacher, TeacherConfig
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.truth import OBJECT, read_truth
from tap_engine.train.ovsam.measure import ImageEncoder, Masks


def make_class_file(
    out: Path,
    *,
    clip: str,
    pretrained: str | None,
    download: bool,
    names: Path | None,
    truth: Path | None,
    annotations: list[Path] | None,
    base: Path | None,
    base_share: float,
    seed: int,
    templates: tuple[str, ...] = (),
) -> ClassTable:
    """Writes the class table of some names; the arguments are those of `ovsam-classes`.

    Raises:
        ConfigError: no names, or a split that cannot be.
    """
    if sum(map(bool, (names, truth, annotations))) != 1:
        raise ConfigError(
            "give one of --names, --truth and --annotations: it says which classes there are"
        )
    if not 0 <= base_share < 1:
        raise ConfigError(f"--base-share must be in 0..1, got {base_share}")
    aliases: dict[str, int] = {}
    if truth is not None:
        table = read_truth(truth, ("kind", "concept"))
        pairs = zip(table["kind"].to_pylist(), table["concept"].to_pylist(), strict=True)
        listed = sorted({concept for kind, concept in pairs if kind == OBJECT})
        texts = [synonyms(name) for name in listed]
    elif annotations and len(annotations) == 1:
        listed = _categories(annotations[0])
        texts = [synonyms(name) for name in listed]
    elif annotations:
        union = union_classes({path.name: _categories(path) for path in annotations})
        listed, texts = [found.name for found in union], [found.texts for found in union]
        aliases = aliases_of(union)
    else:
        assert names is not None
        lines = [line.strip() for line in names.read_text("utf-8").splitlines() if line.strip()]
        listed = [line.partition(";")[0].strip() for line in lines]
        texts = [
            tuple(t.strip() for t in line.split(";")) if ";" in line else synonyms(line)
            for line in lines
        ]
    teacher = Teacher(TeacherConfig(name=clip, pretrained=pretrained, download=download))
    if wrong := [sentence for sentence in templates if "{}" not in sentence]:
        raise ConfigError(f"--template {wrong[0]!r} has no {{}} for the name")
    made = make_classes(listed, teacher.encode_texts, texts=texts, templates=templates or TEMPLATES)
    found = replace(made, aliases=aliases)
    chosen = _base_names(listed, base, base_share, seed)
    if chosen:
        found = found.with_kinds(base=chosen, novel=set(listed) - chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out)
    return found


def _categories(path: Path) -> list[str]:
    return [str(category["name"]) for category in json.loads(path.read_text("utf-8"))["categories"]]


def _base_names(listed: list[str], base: Path | None, share: float, seed: int) -> set[str]:
    if base is not None:
        return {line.strip() for line in base.read_text("utf-8").splitlines() if line.strip()}
    order = np.random.default_rng(seed).permutation(len(listed))
    return {listed[i] for i in order[: round(share * len(listed))]}


def crop_encoders(clip: str) -> dict[str, ImageEncoder]:
    """The image-crop baselines: the whole CLIP on each object, cut by its mask or its box.

    The mask is the model's own, as in the paper, where SAM cuts; the rule is the data engine's:
    the mean colour outside the mask, the box padded to a square.
    """
    teacher = Teacher(TeacherConfig(name=clip))

    def encoder(fill: str) -> ImageEncoder:
        config = CropOptions(fill=fill).for_teacher(teacher.info)  # type: ignore[arg-type]

        def encode(pixels: Rgb, masks: Masks, boxes: npt.NDArray[np.float64]) -> Tensor:
            size_hw = (pixels.shape[0], pixels.shape[1])
            cut = [
                rle.runs(rle.encode(mask), size_hw) if fill != "keep" and mask.any() else None
                for mask in masks
            ]
            low = np.floor(boxes[:, :2]).clip(0)
            high = np.ceil(boxes[:, 2:]).clip(low + 1, size_hw[::-1])
            xywh = np.concatenate([low, high - low], axis=1).astype(np.int64)
            return teacher.encode_crops(crop_regions(pixels, cut, xywh, config)).float().cpu()

        return encode

    return {"image crop, mask": encoder("mean"), "image crop, box": encoder("keep")}
