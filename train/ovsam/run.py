"""One run of Open-Vocabulary SAM: the trainer's own loop, stream and checkpoints, another model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tap_engine.model.ovsam.checkpoint import save_ovsam
from tap_engine.model.ovsam.classes import BASE, CLASSES_FILE, NOVEL, ClassTable
from tap_engine.model.ovsam.predictor import OpenVocabularySam
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.provenance import software
from tap_engine.schemas.truth import Truth
from tap_engine.train import distributed
from tap_engine.train.checkpoint import find_checkpoint, read_state
from tap_engine.train.data.examples import Batch, ExampleConfig
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.manifest import write_manifest
from tap_engine.train.optim import make_optimizer
from tap_engine.train.ovsam.config import OvsamTrainConfig
from tap_engine.train.ovsam.labels import labels_of_stores
from tap_engine.train.ovsam.objectives import TRAINED, Distillation, Naming
from tap_engine.train.ovsam.start import initial_ovsam
from tap_engine.train.ovsam.teachers import StoredFeatures, open_teacher
from tap_engine.train.run import Run
from tap_engine.train.run_log import RunLog


class OvsamRun(Run):
    """A run whose model is Open-Vocabulary SAM; see `Run` for what it holds."""

    @property
    def model(self) -> Any:
        """The network."""
        return self.objective.model

    @property
    def classes(self) -> ClassTable | None:
        """What goes with the model; None in stage 1."""
        return self.names  # type: ignore[return-value]

    def count(self, batches: list[Batch]) -> dict[str, Tensor]:
        """What the losses of a step are divided by."""
        totals: dict[str, Tensor] = {}
        objective: Any = self.objective
        for batch in batches:
            for name, value in objective.count(batch).items():
                totals[name] = totals.get(name, torch.zeros(())) + value
        return totals

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """The model as a user would have it, for a while."""
        try:
            yield OpenVocabularySam(self.model, classes=self.classes)
        finally:
            self.objective.train()

    def measure(self) -> None:
        """Nothing: `tap-train ovsam-eval` measures checkpoints."""

    def draw(self) -> None:
        """Nothing."""

    def _write_model(self, folder: Path) -> None:
        if self.classes is not None:
            self.classes.save(folder / CLASSES_FILE)
        config: Any = self.config
        about = {
            "recipe": config.recipe,
            "stage": config.stage,
            "step": self.step,
            "software": software(),
            "backbone": config.model.backbone.name,
        }
        save_ovsam(folder, self.model.state_dict(), config.model, about)


def open_ovsam_run(config: OvsamTrainConfig, folder: Path, resume: str = "auto") -> OvsamRun:
    """Everything ready to train; goes on from a checkpoint if there is one.

    Args:
        config: resolved settings.
        folder: where the run writes; made if missing.
        resume: "auto", "never" or a checkpoint folder.

    Raises:
        ConfigError, StoreError, CheckpointError: before anything is computed.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    process = distributed.start(config.train.device)
    share = Share(
        images=config.train.images,
        accumulate=config.train.accumulate(process.world),
        rank=process.rank,
        world=process.world,
    )
    lock: FolderLock | None = FolderLock(folder) if process.is_main else None
    distributed.from_main(lock.take if lock else bool)
    checkpoint = distributed.from_main(lambda: find_checkpoint(folder, resume))
    before = read_state(checkpoint) if checkpoint is not None else None
    versions = before["stream"]["versions"] if before else None
    stream = distributed.from_main(lambda: Stream(config.stream, samples_of(config), versions))
    torch.manual_seed(config.train.seed)
    objective, notes, classes = _objective(config, stream)
    objective = objective.to(process.device)
    trained = TRAINED[config.stage]
    for name, parameter in objective.model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    objective.train()
    run = OvsamRun(
        folder=folder,
        lock=lock,
        config=config,  # type: ignore[arg-type]
        process=process,
        share=share,
        stream=stream,
        objective=objective,
        wrapped=distributed.wrap(objective, process),
        optimizer=make_optimizer(objective, config.optim),
        scaler=torch.amp.GradScaler(process.device.type, enabled=False),
        average=None,
        log=RunLog(
            folder,
            config.log,
            step=int(before["step"]) if before else 0,
            steps=config.train.steps,
            active=process.is_main,
        ),
        names=classes,  # type: ignore[arg-type]
        tokenizer=None,
        viewed=stream.readers[0],
    )
    if checkpoint is not None:
        run.restore(checkpoint)
    if process.is_main:
        run.names = None
        write_manifest(run, notes)
        run.names = classes  # type: ignore[assignment]
        if classes is not None:
            kinds = classes.kinds
            run.log.say(
                f"classes: {len(classes.names):,}, {int((kinds == BASE).sum()):,} base and "
                f"{int((kinds == NOVEL).sum()):,} novel, fingerprint {classes.fingerprint}"
            )
    distributed.barrier()
    return run


def _objective(
    config: OvsamTrainConfig, stream: Stream
) -> tuple[Any, list[str], ClassTable | None]:
    if config.stage == "s2c":
        stored = None
        if config.init.features:
            stored = StoredFeatures(config.init.features, config.model)
        # The teacher is wanted for what the student starts from, even beside a dump.
        teacher = open_teacher(config.init.teacher) if config.init.teacher or not stored else None
        if stored is not None and teacher is not None:
            stored.require_teacher(teacher)
        model, notes = initial_ovsam(config, teacher)
        if stored is not None:
            notes.append(f"{config.init.features}: features of teacher {stored.fingerprint}")
            return Distillation(model, None, stored), notes, None
        return Distillation(model, teacher), notes, None
    if not config.init.classes:
        raise ConfigError("stage c2s needs classes: --set init.classes=FILE of `ovsam-classes`")
    model, notes = initial_ovsam(config, None)
    classes = ClassTable.load(config.init.classes)
    base = [name for name, kind in zip(classes.names, classes.kinds, strict=True) if kind == BASE]
    # Where there is no split every class is learned.
    learned = classes.subset(base) if base else classes
    truth = Truth.read(config.init.labels) if config.init.labels else None
    labels = labels_of_stores(stream.readers, learned.ids, truth)
    if not len(labels):
        raise ConfigError("no region of these stores is of a class that is learned")
    notes.append(f"{config.init.classes}: {len(labels):,} regions of {len(learned.names)} classes")
    return Naming(model, learned, labels, config.loss, config.prompts), notes, classes


def samples_of(config: OvsamTrainConfig) -> ExampleConfig:
    """What the stream has to make of an image: the pixels that inference sees."""
    distils = config.stage == "s2c"
    return ExampleConfig(
        image_px=config.model.image_size,
        mask_px=16 if distils else config.mask_px,
        regions=1 if distils else 4 * config.prompts.per_image,
        soft_masks=False,
        fill_rgb=(0, 0, 0),
        columns=(),
        augment=config.augment,
        seed=config.train.seed,
        opencv=True,
    )
