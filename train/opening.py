"""Opens a run: reads its state if there is one, and puts model, data and optimiser together."""

from pathlib import Path

import torch

from tap_engine.model.text_tokenizer import TextTokenizer
from tap_engine.schemas.truth import Truth
from tap_engine.train import distributed
from tap_engine.train.attention_start import start_attention
from tap_engine.train.checkpoint import (
    find_checkpoint,
    read_run_state,
)
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.config import TrainConfig
from tap_engine.train.data.examples import ExampleConfig
from tap_engine.train.data.stream import Share, Stream
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.held_out_data import open_measured
from tap_engine.train.manifest import write_manifest
from tap_engine.train.objective import Objective
from tap_engine.train.optim import OptimConfig, make_optimizer, rate_factor
from tap_engine.train.run import Run, copies_of
from tap_engine.train.run_log import RunLog
from tap_engine.train.start import check_start, concept_table_of, initial_model, tokenizer_of


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
        average=copies_of(model) if config.optim.ema_decay else None,
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
