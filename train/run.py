"""One run: model, data, optimiser, state, and how it is saved. opening.py puts it together.

RUN/config.json       the resolved settings
RUN/manifest.json     software, machine, stores with their versions and provenance
RUN/log.jsonl         a line per report
RUN/tensorboard/      the same as event files, and pictures
RUN/checkpoints/      see checkpoint.py
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tap_engine.model.checkpoint import ModelCard, load_weights, save_model
from tap_engine.model.concepts import CONCEPTS_FILE, ConceptTable
from tap_engine.model.predictor import Tap
from tap_engine.model.tap import TapModel
from tap_engine.model.text_tokenizer import TextTokenizer
from tap_engine.schemas.errors import CheckpointError
from tap_engine.schemas.provenance import software
from tap_engine.schemas.truth import Truth
from tap_engine.train import distributed
from tap_engine.train.checkpoint import (
    load_optimizer,
    optimizer_tensors,
    read_run_state,
    read_tensors,
    save_checkpoint,
)
from tap_engine.train.config import TrainConfig, differences
from tap_engine.train.data.examples import Batch
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.distributed import Process
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.held_out import measure_all
from tap_engine.train.held_out_picture import draw
from tap_engine.train.objective import Objective
from tap_engine.train.optim import update_ema
from tap_engine.train.run_log import RunLog
from tap_engine.train.terms import count


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that can be trained, saved and gone on with.

    Attributes:
        folder: the folder it writes to.
        config: resolved settings.
        process: this process among all.
        share: its part of every step.
        stream: the data.
        objective: model and losses; `wrapped` is the same under DDP.
        wrapped: what the loop calls.
        optimizer, scaler: torch's objects.
        average: moving average of the model's state, or None.
        log: reports.
        names: concepts that go with the model, or None.
        tokenizer: tokenizer of its captions, or None.
        lock: keeps other runs out of the folder; None in all but the main process.
        viewed: the store that is measured on and drawn: the held-out one, or the first.
        step: steps done.
        consumed: images of the stream consumed.
    """

    folder: Path
    config: TrainConfig
    process: Process
    share: Share
    stream: Stream
    objective: Objective
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor] | None
    log: RunLog
    names: ConceptTable | None
    tokenizer: TextTokenizer | None
    viewed: StoreReader
    lock: FolderLock | None
    step: int = 0
    consumed: int = 0

    @property
    def model(self) -> TapModel:
        """The network."""
        return self.objective.model

    def batches(self) -> Iterator[Batch]:
        """This process's batches of the steps that are left."""
        left = self.config.train.steps - self.step
        pin = self.process.device.type == "cuda"
        return self.stream.batches(self.share, consumed=self.consumed, steps=left, pin=pin)

    def count(self, batches: list[Batch]) -> dict[str, Tensor]:
        """What the losses of a step are divided by, of these passes of it."""
        return count(batches)

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the forward passes."""
        precision = self.config.train.precision
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        return torch.autocast(self.process.device.type, dtype, enabled=dtype is not None)

    def update_average(self) -> None:
        """After an optimiser step."""
        if self.average is not None:
            decay = self.config.optim.ema_decay
            update_ema(self.average.values(), self.model.state_dict().values(), decay)

    def due(self, every: int) -> bool:
        """Tells whether something that is due every N steps, and at the end, is due now."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    @contextmanager
    def in_use(self) -> Iterator[Tap]:
        """The model as a user would have it: averaged weights, no dropout; for a while."""
        own = None
        if self.average is not None:
            own = copies_of(self.model)
            self.model.load_state_dict(self.average)
        try:
            yield Tap(self.model, concept_table=self.names, tokenizer=self.tokenizer)
        finally:
            if own is not None:
                self.model.load_state_dict(own)
            self.objective.train()

    def measure(self) -> None:
        """Reports figures on the held-out store, where there is one."""
        config = self.config.held_out
        if not config.store or not self.process.is_main:
            return
        truth = Truth.read(config.truth) if config.truth else None
        with self.in_use() as tap:
            reports = measure_all(tap, self.viewed, config, truth, self.objective.space)
        self.log.measured(self.step, {k: v for r in reports for k, v in r.summary().items()})
        for report in reports:
            self.log.say(report.table())

    def draw(self) -> None:
        """Saves a picture of held-out (or else training) images: truth left, prediction right."""
        if not self.process.is_main:
            return
        with self.in_use() as tap:
            sheet = draw(tap, self.objective.space, self.viewed, 4, self.config.held_out.split)
        self.log.picture(self.step, sheet)

    def save(self) -> Path | None:
        """Writes a checkpoint of this moment; in the main process only, the others wait."""
        path = None
        if self.process.is_main:
            path = save_checkpoint(
                self.folder,
                self.step,
                write_model=self._write_model,
                tensors=self._trainer_tensors(),
                state={
                    "stream": self.stream.state(self.consumed),
                    "scaler": self.scaler.state_dict(),
                    "config": self.config.to_dict(),
                },
                config=self.config.checkpoint,
            )
            self.log.say(f"saved {path}")
        distributed.barrier()
        return path

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            CheckpointError: damaged, or of another model or stream.
        """
        state, tensors = read_run_state(path), read_tensors(path)
        self.consumed = self.stream.resume(state["stream"])
        self.step = int(state["step"])
        load_weights(self.model, path)
        if self.average is not None:
            raw = {k.removeprefix("raw/"): v for k, v in tensors.items() if k.startswith("raw/")}
            if not raw:
                raise CheckpointError(f"{path} kept no moving average; --set optim.ema_decay=0")
            self.average = copies_of(self.model)
            self.model.load_state_dict(raw)
        extra = self.objective.auxiliary
        if extra is not None:
            prefix = "auxiliary/"
            extra.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        load_optimizer(self.optimizer, tensors)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        changed = differences(self.config.to_dict(), state["config"])
        self.log.say(f"going on from {path}, step {self.step}")
        if changed:
            self.log.say("settings that changed: " + "; ".join(changed))

    def _write_model(self, folder: Path) -> None:
        concepts, words = self.names, self.tokenizer
        if concepts is not None:
            concepts.save(folder / CONCEPTS_FILE)
        if words is not None:
            words.save(folder)
        card = ModelCard(
            config=self.config.model,
            tokenizer=words.fingerprint if words is not None else None,
            vocabulary=concepts.fingerprint if concepts is not None else None,
            logit_scale=concepts.logit_scale if concepts is not None else None,
            about={"recipe": self.config.recipe, "step": self.step, "software": software()},
        )
        save_model(folder, self.average or self.model.state_dict(), card)

    def _trainer_tensors(self) -> dict[str, Tensor]:
        tensors = optimizer_tensors(self.optimizer)
        if self.objective.auxiliary is not None:
            own = self.objective.auxiliary.state_dict()
            tensors |= {f"auxiliary/{k}": v for k, v in own.items()}
        if self.average is not None:
            tensors |= {f"raw/{k}": v for k, v in self.model.state_dict().items()}
        return tensors


def copies_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers, by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
