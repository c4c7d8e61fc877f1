"""One run, put together: model, data, optimiser, state, saving.

RUN/config.json       the resolved settings
RUN/manifest.json     software, machine, stores with their versions and provenance
RUN/log.jsonl         a line per report
RUN/tensorboard/      the same as event files, and pictures
RUN/checkpoints/      see checkpoint.py
"""

import json
import platform
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
from tap_engine.train.attention_start import start_attention
from tap_engine.train.checkpoint import (
    find_checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_run_state,
    read_tensors,
    save_checkpoint,
)
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.config import TrainConfig, differences
from tap_engine.train.data.examples import Batch, ExampleConfig
from tap_engine.train.data.store_reader import StoreReader
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.distributed import Process
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.held_out import measure_all
from tap_engine.train.held_out_data import open_measured
from tap_engine.train.held_out_picture import draw
from tap_engine.train.objective import Objective
from tap_engine.train.optim import OptimConfig, make_optimizer, rate_factor, update_ema
from tap_engine.train.run_log import RunLog
from tap_engine.train.start import check_start, concept_table_of, initial_model, tokenizer_of
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
            own = _copies(self.model)
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
            self.average = _copies(self.model)
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


def open_run(config: TrainConfig, folder: Path, resume: str = "auto") -> Run:
    """Everything ready to train; goes on from a checkpoint if there is one.

    Args:
        config: resolved settings.
        folder: the folder that the run writes to; made if missing.
        resume: "auto", "never" or a checkpoint folder.

    Raises:
        ConfigError, StoreError, CheckpointError: before anything is computed; ConfigError also
            where another process trains in this folder.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    process = distributed.start(config.train.device)
    torch.backends.cuda.matmul.allow_tf32 = config.train.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.train.allow_tf32
    share = Share(
        images=config.train.images,
        accumulate=config.train.accumulate(process.world),
        rank=process.rank,
        world=process.world,
    )
    lock: FolderLock | None = FolderLock(folder) if process.is_main else None
    distributed.from_main(lock.take if lock else bool)
    held = config.held_out
    if held.store and held.truth:  # now, not after the steps up to the first measuring
        distributed.from_main(lambda: bool(Truth.read(held.truth)))
    checkpoint = distributed.from_main(lambda: find_checkpoint(folder, resume))
    before = read_run_state(checkpoint) if checkpoint is not None else None
    if checkpoint is None:
        check_start(config)
    versions = before["stream"]["versions"] if before else None
    # One process finds out where units lie; the others are told.
    tokenizer = tokenizer_of(config, checkpoint)
    samples = sample_config(config, tokenizer)
    stream = distributed.from_main(lambda: Stream(config.stream, samples, versions))
    taught = [r for r in stream.readers if r.has_concepts]
    space = ConceptSpace.of_stores(taught, config.loss.logit_scale) if taught else None

    torch.manual_seed(config.train.seed)
    model, notes = initial_model(config, tokenizer, resumed=checkpoint is not None)
    objective = Objective(
        model,
        space,
        config.loss,
        config.prompts,
        by_source=len(stream.readers) > 1,
    ).to(process.device)
    model.sync_batch_norm()
    model.set_activation_checkpointing(config.train.recompute)
    if config.train.channels_last:
        model.image_encoder.to(memory_format=torch.channels_last)
    freeze(objective, config.optim)
    objective.train()
    optimizer = make_optimizer(objective, config.optim)
    if config.train.compile:
        model.compile_parts()
    loss_scaling = config.train.precision == "fp16" and process.device.type == "cuda"
    run = Run(
        folder=folder,
        config=config,
        process=process,
        share=share,
        stream=stream,
        objective=objective,
        wrapped=distributed.wrap(objective, process),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(process.device.type, enabled=loss_scaling),
        average=_copies(model) if config.optim.ema_decay else None,
        log=RunLog(
            folder,
            config.log,
            step=int(before["step"]) if before else 0,
            steps=config.train.steps,
            active=process.is_main,
        ),
        names=concept_table_of(config, space, checkpoint),
        tokenizer=tokenizer,
        lock=lock,
        viewed=open_measured(
            config.held_out.store or config.stream.stores[0], config.stream.options
        ),
    )
    if checkpoint is not None:
        run.restore(checkpoint)
    if process.is_main:
        write_manifest(run, notes)
    run.log.say(start_attention(config, process.device))
    distributed.barrier()
    return run


def sample_config(config: TrainConfig, tokenizer: TextTokenizer | None = None) -> ExampleConfig:
    """Settings by which the stream makes examples for this run."""
    pooled = config.loss.pooled_regions if config.loss.auxiliary else 0
    return ExampleConfig(
        image_px=config.model.image_size,
        mask_px=config.model.mask_size,
        regions=max(config.prompts.per_image, pooled),
        prompted=config.prompts.per_image,
        soft_masks=config.stream.soft_masks,
        fill_rgb=config.model.fill_rgb,
        columns=config.loss.columns,
        augment=config.augment,
        seed=config.train.seed,
        tokenizer=tokenizer,
        positions=config.model.text.max_seq_len,
    )


def freeze(objective: Objective, optim: OptimConfig) -> None:
    """No gradients for what has a rate factor of 0, nor for what no loss depends on."""
    unused = objective.unused()
    for name, parameter in objective.named_parameters():
        trained = rate_factor(name, optim.rate_factors) > 0
        parameter.requires_grad_(trained and not name.startswith(unused))


def write_manifest(run: Run, notes: list[str]) -> None:
    """Writes config.json and manifest.json, and says what is about to happen."""
    config, process = run.config, run.process
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    stores = [
        {
            "uri": r.uri,
            "versions": r.versions,
            "images": r.rows,
            "provenance": r.provenance.settings,
        }
        for r in run.stream.readers
    ]
    manifest = {
        "software": software(),
        "machine": {"platform": platform.platform(), "device": str(process.device)},
        "processes": process.world,
        "stores": stores,
    }
    (run.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    trained = sum(p.numel() for p in run.parameters())
    total = sum(p.numel() for p in run.model.parameters())
    batch, optim = config.train.batch, config.optim
    rate = f"peak rate {optim.peak_rate(batch):.2e}"
    if batch != optim.rate_batch:
        rate += (
            f" ({optim.rate:.2e} is meant for {optim.rate_batch} images per step, here {batch}; "
            f"optim.scaling={optim.scaling})"
        )
    epochs = config.train.steps * batch / run.stream.epoch_images
    for note in notes if run.step == 0 else []:
        run.log.say(f"started from {note}")
    run.log.say(
        f"{config.recipe}: {trained:,} of {total:,} parameters train on {process.world} x "
        f"{process.device.type}, {config.train.precision}\n"
        f"{config.train.steps:,} steps of {batch} images ({run.share.images} x "
        f"{run.share.accumulate} x {process.world} processes), {epochs:.2f} epochs of "
        f"{run.stream.epoch_images:,} images; {rate}"
    )
    if run.names is not None:
        run.log.say(f"concepts: {len(run.names.names):,}, logit scale {run.names.logit_scale:.1f}")
    if run.tokenizer is not None:
        run.log.say(f"captions: {run.tokenizer.vocab_size:,} ids of {run.tokenizer.fingerprint}")
    run.log.say(f"run folder {run.folder}")


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
