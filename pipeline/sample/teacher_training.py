"""Trains the `sample` teacher from scratch: contrastive learning on crops and names.

Each step takes crops of as many different concepts as the batch holds, so that no text of the
batch is a second right answer, and adds names that no crop shows: a teacher must be able to tell
its concepts from all 2,560. A step's crops and texts follow from its number alone, so a killed
run continues from its last checkpoint with the numbers it would have had.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tap_engine.model.schedule import cosine_rate
from tap_engine.pipeline.concepts import SOURCE_TEMPLATES, TARGET_TEMPLATES
from tap_engine.pipeline.sample.accuracy import AccuracyRow
from tap_engine.pipeline.sample.drawings import concept_groups
from tap_engine.pipeline.sample.files import SceneName
from tap_engine.pipeline.sample.sprites import load_sprites
from tap_engine.pipeline.sample.teacher_accuracy import encode_crops, evaluate_teacher
from tap_engine.pipeline.sample.teacher_crops import TINT_WORDS, LabelledCrops, prepare_crops
from tap_engine.pipeline.sample.teacher_model import (
    CROPS,
    PREPROCESS_CONFIG,
    WEIGHTS_FILE,
    new_model,
    write_config,
    write_teacher,
)
from tap_engine.pipeline.sample.teacher_scenes import (
    LabelledScenes,
    boxes_with_background,
    encode_in_place,
    prepare_scenes,
    scene_batch,
)
from tap_engine.pipeline.sample.world import RENDERER_VERSION
from tap_engine.pipeline.teacher import LOCAL_FOLDER, open_tokenizer
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.schemas.replacing import replacing
from tap_engine.schemas.shipped import SAMPLE, sample_teacher
from tap_engine.schemas.truth import KINDS
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary

TEMPLATES = (*TARGET_TEMPLATES, *SOURCE_TEMPLATES, "{}")
"""The first, half of the steps, is what the data engine embeds concepts with."""

_CHECKPOINT = "checkpoint.pt"
_CHECKPOINT_S = 60.0
_MAX_LOGIT_SCALE = 100.0
_LAST_RATE = 0.01
"""Learning rate at the end, as a share of the highest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTrainingConfig:
    """Settings of the training of a sample teacher.

    Attributes:
        scenes: training scenes, half at 256 and half at 512 px; 0.2 MB of memory each.
        validation: other scenes, drawn likewise, for the report at the end.
        world_seed: seed of the scenes; no shipped or default sample set uses this one.
        steps: optimiser steps.
        batch: crops per step, each of another concept.
        negatives: names of other concepts per step.
        part_rate: share of a step's objects that are shown by one of their parts.
        tint_rate: share of the tinted crops whose text says the tint.
        learning_rate: highest rate; warm-up and cosine lie around it.
        warmup: steps.
        weight_decay: decay of matrices; nothing else decays.
        seed: seed of weights and sampling.
        device: "cpu", "cuda", ...
        whole_scenes: scenes per step that are seen whole: their things are named in place and as
            boxes with their background (teacher_scenes.py). 0 makes a teacher for crops alone;
            a backbone of Open-Vocabulary SAM needs some.
        start: folder of a teacher to go on from; "sample" is the shipped one, empty starts at
            random.
    """

    scenes: int = 4000
    validation: int = 400
    world_seed: int = 60_000
    steps: int = 2000
    batch: int = 256
    negatives: int = 96
    part_rate: float = 0.15
    tint_rate: float = 0.3
    learning_rate: float = 2e-3
    warmup: int = 150
    weight_decay: float = 0.05
    seed: int = 0
    device: str = "cpu"
    whole_scenes: int = 0
    start: str = ""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        for name in ("scenes", "validation", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.batch > len(concept_groups()):
            raise ConfigError(
                f"batch must be at most {len(concept_groups())}, the number of concepts in the "
                f"sample world, got {self.batch!r}"
            )


def train_teacher(
    out: Path,
    config: TeacherTrainingConfig,
    *,
    workers: int = 0,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> list[AccuracyRow]:
    """Train a teacher into the folder `out`; the same call again continues a killed run.

    Args:
        out: gets the teacher (see sample/teacher_model.py) and, until then, crops and checkpoints.
        config: the settings.
        workers: processes that draw scenes; 0 takes one per core.
        progress: called with (stage, done, in all, what else there is to say).

    Returns:
        Accuracy on the validation scenes, as in training.json.

    Raises:
        SchemaError: `out` holds a run of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    provenance = _claim(out, config)
    tell = progress or (lambda stage, done, total, text: None)

    def drawing(part: str) -> Callable[[int, int], None]:
        return lambda done, total: tell(f"draw {part} scenes", done, total, "")

    parts = {}
    for part, count, share in (
        ("train", config.scenes, 0.25),
        ("validation", config.validation, 1.0),
    ):
        names = [SceneName(config.world_seed, part, index) for index in range(count)]
        parts[part] = prepare_crops(
            out / "work" / part,
            names,
            (256, 512),
            CROPS,
            part_share=share,
            workers=workers,
            progress=drawing(part),
        )
    whole = None
    if config.whole_scenes:
        names = [SceneName(config.world_seed, "train", index) for index in range(config.scenes)]
        whole = prepare_scenes(out / "work" / "whole", names, 256, drawing("whole"))
    write_config(out)
    run = _Run(out, config, parts["train"], whole)
    run.resume()
    run.train(lambda done, text: tell("train", done, config.steps, text))
    rows = evaluate_teacher(run.model, run.tokens_of, parts["validation"])
    scale = float(run.model.logit_scale.detach().exp())
    results = {"logit_scale": scale, "accuracy": [asdict(row) for row in rows]}
    training = {"settings": provenance.settings, "made": provenance.made, "results": results}
    write_teacher(out, run.model, training)
    return rows


class _Run:
    """Model, optimiser and sampler of one training run."""

    def __init__(
        self,
        out: Path,
        config: TeacherTrainingConfig,
        crops: LabelledCrops,
        whole: LabelledScenes | None = None,
    ) -> None:
        self.out, self.config, self.crops, self.whole = out, config, crops, whole
        torch.manual_seed(config.seed)
        model: Any = new_model().to(config.device)
        if config.start:
            model.load_state_dict(_weights_of(config.start))
        self.model = model.to(memory_format=torch.channels_last)
        tokenizer = open_tokenizer(f"{LOCAL_FOLDER}{out}")
        self.tokens_of: Callable[[Sequence[str]], Tensor] = lambda texts: tokenizer(list(texts)).to(
            config.device
        )
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self.names = load_vocabulary(DEFAULT_VOCABULARY).names
        is_whole = crops.kind != KINDS.index("part")
        self.shown = np.unique(crops.concept[is_whole])
        self.wholes = _rows_by_concept(crops.concept, is_whole, len(self.names))
        self.parts = _rows_by_concept(crops.concept, ~is_whole, len(self.names))

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        path = self.out / "work" / _CHECKPOINT
        if path.exists():
            state = torch.load(path, map_location=self.config.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        path = self.out / "work" / _CHECKPOINT
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def train(self, tell: Callable[[int, str], None]) -> None:
        """Run the steps that are left."""
        saved = time.monotonic()
        loss = math.nan
        while self.step < self.config.steps:
            self.model.train()
            latest = self.train_step()
            loss = latest if math.isnan(loss) else 0.95 * loss + 0.05 * latest
            self.step += 1
            scale = float(self.model.logit_scale.detach().exp())
            tell(self.step, f"loss {loss:.3f}, logit scale {scale:.1f}")
            if time.monotonic() - saved > _CHECKPOINT_S or self.step == self.config.steps:
                self.save()
                saved = time.monotonic()

    def train_step(self) -> float:
        """One optimiser step; returns its loss."""
        config = self.config
        rate = cosine_rate(
            self.step,
            peak=config.learning_rate,
            last=_LAST_RATE * config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels, texts = self._batch(np.random.default_rng([config.seed, self.step]))
        images = F.normalize(encode_crops(self.model, pixels), dim=-1)
        names = F.normalize(self.model.encode_text(self.tokens_of(texts)), dim=-1)
        logits: Tensor = self.model.logit_scale.exp() * images @ names.T
        target = torch.arange(len(images), device=images.device)
        by_image = F.cross_entropy(logits, target)
        by_text = F.cross_entropy(logits[:, : len(images)].T, target)
        loss = (by_image + by_text) / 2
        if self.whole is not None:
            loss = (loss + self._whole_loss(self.whole)) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        return float(loss.detach())

    def _whole_loss(self, scenes: LabelledScenes) -> Tensor:
        """Cross entropy of the things of some whole scenes over their names and others'."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step, 1])
        mean, std = PREPROCESS_CONFIG["mean"], PREPROCESS_CONFIG["std"]
        batch = scene_batch(scenes, config.whole_scenes, rng, mean, std)
        there, target = np.unique(batch.concepts, return_inverse=True)
        others = rng.permutation(np.setdiff1d(np.arange(len(self.names)), there))
        chosen = [*there, *others[: max(config.batch + config.negatives - len(there), 0)]]
        template = TEMPLATES[rng.choice(len(TEMPLATES), p=[0.5, 0.25, 0.25])]
        texts = [template.format(self.names[i]) for i in chosen]
        names = F.normalize(self.model.encode_text(self.tokens_of(texts)), dim=-1)
        images, rois = batch.images.to(config.device), batch.rois.to(config.device)
        boxes = boxes_with_background(images, rois, self.model.visual.image_size)
        with torch.autocast(images.device.type, torch.bfloat16):
            cut_out = self.model.encode_image(boxes.contiguous(memory_format=torch.channels_last))
        losses = [
            F.cross_entropy(
                self.model.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ names.T,
                torch.from_numpy(target).to(config.device),
            )
            for features in (encode_in_place(self.model, images, rois), cut_out)
        ]
        return (losses[0] + losses[1]) / 2

    def _batch(self, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Crops of different concepts, their texts, and texts of concepts that are not there."""
        config = self.config
        chosen = rng.permutation(self.shown)[: config.batch]
        rows = []
        for concept in chosen:
            parts = self.parts[concept]
            pool = parts if parts.size and rng.random() < config.part_rate else self.wholes[concept]
            rows.append(pool[rng.integers(pool.size)])
        others = rng.permutation(np.setdiff1d(np.arange(len(self.names)), chosen))
        template = TEMPLATES[rng.choice(len(TEMPLATES), p=[0.5, 0.25, 0.25])]
        texts = []
        for concept, row in zip(chosen, rows, strict=True):
            name = self.names[concept]
            tint = TINT_WORDS[self.crops.tint[row]]
            if tint and rng.random() < config.tint_rate:
                name = f"{tint} {name}"
            texts.append(template.format(name))
        texts += [template.format(self.names[i]) for i in others[: config.negatives]]
        return _augment(self.crops.pixels[rows], rng), texts


def _augment(pixels: npt.NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """[N, S, S, 3] uint8: mirrored or not, a little lighter or darker, moved by up to 3 px."""
    count = len(pixels)
    images = torch.from_numpy(pixels)
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, (count, 1, 1, 3)).astype(np.float32))
    images = (images * gain).clamp(0, 255).to(torch.uint8)
    down, right = (int(shift) for shift in rng.integers(-3, 4, 2))
    fill = torch.tensor(PREPROCESS_CONFIG["mean"]).mul(255).round().to(torch.uint8)
    moved = fill.expand_as(images).clone()
    size = images.shape[1]
    inner = slice(max(down, 0), size + min(down, 0)), slice(max(right, 0), size + min(right, 0))
    outer = slice(max(-down, 0), size - max(down, 0)), slice(max(-right, 0), size - max(right, 0))
    moved[:, inner[0], inner[1]] = images[:, outer[0], outer[1]]
    return moved


def _weights_of(start: str) -> dict[str, Tensor]:
    """The weights of a teacher's folder, in float32."""
    folder = sample_teacher() if start == SAMPLE else Path(start)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"no teacher to start from: {folder} holds no {WEIGHTS_FILE}")
    tensors = load_file(folder / WEIGHTS_FILE)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _rows_by_concept(
    concept: npt.NDArray[np.int16], wanted: npt.NDArray[np.bool_], count: int
) -> list[npt.NDArray[np.int64]]:
    rows = np.flatnonzero(wanted)
    order = rows[np.argsort(concept[rows], kind="stable")]
    ends = np.cumsum(np.bincount(concept[rows], minlength=count))
    return np.split(order, ends[:-1])


def _claim(out: Path, config: TeacherTrainingConfig) -> Provenance:
    """Write run.json, or check that the one that is there agrees."""
    settings = {name: value for name, value in asdict(config).items() if name != "device"}
    settings |= {"renderer": RENDERER_VERSION, "sprites": load_sprites().made["pixels"]}
    wanted = Provenance(settings, software())
    path = out / "work" / "run.json"
    if path.is_file():
        wanted.require_same(Provenance.from_json(path.read_text("utf-8")), str(out))
        return wanted
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted.to_json() + "\n", "utf-8")
    return wanted
