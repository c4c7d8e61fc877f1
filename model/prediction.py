"""The work of `tap predict`: prompts as text in, a picture and json out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tap_engine.model.concepts import ConceptTable
from tap_engine.model.device import resolve_device
from tap_engine.model.image_input import Rgb, open_image, open_mask
from tap_engine.model.picture import Prompt, describe, draw_marks, region_mark
from tap_engine.model.predictor import Tap
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.region import Region
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import check_precision
from tap_engine.schemas.vocabulary import load_vocabulary

EmbedNames = Callable[[tuple[str, ...], str], ConceptTable]
"""Names and a teacher's name -> their text embeddings. The teacher is the data engine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """The command's options, as typed."""

    image: Path
    model: Path
    boxes: list[str]
    points: list[str]
    masks: list[Path]
    out: Path | None
    json_out: Path | None
    concepts: str | None
    teacher: str | None
    top_k: int
    device: str
    precision: str


def run_prediction(request: PredictRequest, embed: EmbedNames) -> Iterator[str]:
    """Predicts, writes picture and json, yields the lines to print.

    Args:
        request: what to predict.
        embed: embeds `request.concepts` with `request.teacher`; called only where both are given.

    Raises:
        TapError: no prompt, a prompt that cannot be read, no image, no checkpoint.
    """
    check_precision(request.precision, "--precision")
    boxes = [_parse_numbers(text, "box", (4,)) for text in request.boxes]
    points = [_parse_points(text) for text in request.points]
    if not boxes and not points and not request.masks:
        raise ConfigError("nothing to predict: give --box, --point or --mask, as often as needed")
    rgb = open_image(request.image)
    tap = Tap.from_pretrained(
        request.model,
        device=resolve_device(request.device),
        precision=request.precision,  # type: ignore[arg-type]
    )
    if request.concepts is not None:
        names = _concept_names(request.concepts)
        tap.set_concepts(names if request.teacher is None else embed(names, request.teacher))
    elif request.teacher is not None:
        raise ConfigError("--teacher embeds the names of --concepts: give both")
    tap.set_image(rgb)
    named: list[tuple[dict[str, Any], Region]] = []
    if boxes:
        regions = tap.predict(boxes=boxes, top_k=request.top_k)
        named += [({"box": box}, region) for box, region in zip(boxes, regions, strict=True)]
    for xy, labels in points:
        found = tap.predict(points=xy, point_labels=labels, top_k=request.top_k)
        named += [({"points": xy, "labels": labels}, region) for region in found]
    for path in request.masks:
        found = tap.predict(mask=open_mask(path), top_k=request.top_k)
        named += [({"mask": str(path)}, region) for region in found]
    out = request.out or Path(f"{request.image.stem}.tap.png")
    _save_picture(out, rgb, named)
    content = [_as_json(prompt, region) for prompt, region in named]
    if request.json_out is not None and str(request.json_out) == "-":
        yield json.dumps(content, indent=1)
        return
    for index, (prompt, region) in enumerate(named):
        area = int(region.mask.sum())
        yield (
            f"{index}: {describe(region)}  iou {region.iou:.2f}  {area:,} px  "
            f"{next(iter(prompt))} {next(iter(prompt.values()))}"
        )
    if tap.concepts is None:
        yield f"no names: {request.model} has no concepts.safetensors beside it"
    if tap.tokenizer is None:
        yield f"no captions: {request.model} has no tokenizer.json or tokenizer.model beside it"
    if request.json_out is not None:
        request.json_out.write_text(json.dumps(content, indent=1) + "\n")
        yield f"wrote {request.json_out}"
    yield f"wrote {out}"


def _as_json(prompt: dict[str, Any], region: Region) -> dict[str, Any]:
    mask: npt.NDArray[np.bool_] = region.mask
    size = (mask.shape[0], mask.shape[1])
    counts = rle.encode(mask)
    return {
        "prompt": prompt,
        "bbox_xywh": list(rle.bbox_xywh(rle.runs(counts, size), size)),
        "area": int(mask.sum()),
        "segmentation": {"size": list(size), "counts": counts.decode("ascii")},
        "iou": round(region.iou, 4),
        "candidate": region.candidate,
        "concepts": [
            {"name": c.name, "probability": round(c.probability, 6)} for c in region.concepts
        ],
        # Not a number where there is no vocabulary; json has no word for that but null.
        "entropy": None if np.isnan(region.entropy) else round(region.entropy, 4),
        "caption": region.caption,
    }


def _save_picture(path: Path, rgb: Rgb, named: list[tuple[dict[str, Any], Region]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--out {path}: expected a picture's ending, like .png or .jpg")
    marks = [
        region_mark(
            region,
            Prompt(
                box_xyxy=prompt.get("box"),
                points=prompt.get("points", ()),
                labels=prompt.get("labels", ()),
            ),
            number=number,
        )
        for number, (prompt, region) in enumerate(named)
    ]
    draw_marks(rgb, marks).save(path)


def _concept_names(text: str) -> tuple[str, ...]:
    if "," in text or not Path(text).suffix:
        return tuple(name.strip() for name in text.split(",") if name.strip())
    return load_vocabulary(text).names


def _parse_points(text: str) -> tuple[list[list[float]], list[int]]:
    """Coordinates and labels of "x,y x,y,0"; foreground by default."""
    rows = [_parse_numbers(part, "point", (2, 3)) for part in text.replace(";", " ").split()]
    if not rows:
        raise ConfigError("--point is empty: expected x,y")
    labels = [int(row[2]) if len(row) == 3 else int(Label.FOREGROUND) for row in rows]
    return [row[:2] for row in rows], labels


def _parse_numbers(text: str, name: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        wanted = "left,top,right,bottom" if name == "box" else "x,y or x,y,label"
        raise ConfigError(f"--{name} {text!r}: expected {wanted} in px")
    return values
