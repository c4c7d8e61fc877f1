"""The chat run, put together, and its loop, top to bottom.

RUN/config.json    the resolved settings
RUN/log.jsonl      one line per report
RUN/checkpoints/   see train/checkpoint.py; the model part is model/chat/checkpoint.py's
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.checkpoint import load_chat, save_chat
from tap_engine.model.chat.language_model import load_language_model
from tap_engine.model.chat.tokens import ChatTokens
from tap_engine.model.predictor import Tap
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.train import distributed
from tap_engine.train.chat.config import ChatRunConfig
from tap_engine.train.chat.stream import ChatSequences, ChatStream
from tap_engine.train.checkpoint import (
    find_checkpoint,
    load_optimizer,
    model_folder,
    optimizer_tensors,
    read_state,
    read_tensors,
    save_checkpoint,
)
from tap_engine.train.config import differences
from tap_engine.train.data.noise import seed_of
from tap_engine.train.distributed import Process
from tap_engine.train.folder_lock import FolderLock
from tap_engine.train.loop import Interrupted, StopRequest, TrainingError, rate_at, synchronised
from tap_engine.train.optim import make_optimizer, set_rate
from tap_engine.train.run_log import RunLog


class ChatObjective(nn.Module):
    """The sum of the next-token losses of a pass; DDP wraps this."""

    def __init__(self, model: ChatModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: ChatSequences) -> tuple[Tensor, Tensor, Tensor]:
        """Loss summed over the learned tokens, how many there are, and how many are right."""
        batch = sequences.batch
        if sequences.images is not None:
            batch.features = self.model.encode_images(sequences.images)
        logits, targets = self.model.target_logits(batch)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        if batch.features is None:
            # Every process has the same gradients to exchange.
            loss = loss + 0 * sum(p.sum() for p in self.model.projector.parameters())
        return loss, torch.tensor(float(len(targets))), (logits.argmax(-1) == targets).sum().float()


@dataclass(slots=True, kw_only=True)
class ChatRun:
    """A chat run that can be trained, saved and gone on with."""

    folder: Path
    config: ChatRunConfig
    process: Process
    model: ChatModel
    tokens: ChatTokens
    stream: ChatStream
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    log: RunLog
    lock: FolderLock | None
    step: int = 0

    def save(self) -> None:
        """Write a checkpoint."""
        if self.process.is_main:
            save_checkpoint(
                self.folder,
                self.step,
                write_model=lambda folder: save_chat(
                    folder,
                    self.model,
                    tokens=self.tokens.fingerprint,
                    tap=self.config.init.tap,
                    dtype=torch.float32,  # going on must not round what was learned
                ),
                tensors=optimizer_tensors(self.optimizer),
                state={"config": self.config.to_dict()},
                config=self.config.checkpoint,
            )
        distributed.barrier()


def open_chat_run(config: ChatRunConfig, folder: Path, resume: str = "auto") -> ChatRun:
    """Load what a run needs, and what it has done.

    Raises:
        ConfigError: settings that do not go together, or a language model that is not here.
        CheckpointError: the folder holds a run of other settings, or a damaged checkpoint.
    """
    if not config.init.tap:
        raise ConfigError("init.tap is empty: --set init.tap=CHECKPOINT names the TAP model")
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    process = distributed.start(config.train.device)
    lock = FolderLock(folder) if process.is_main else None
    distributed.from_main(lock.take if lock else bool)
    torch.manual_seed(config.train.seed)
    # Half precision is the language model's own; what trains stays in float32.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    lm, tokens = load_language_model(config.chat.language_model, dtype=dtype or torch.float32)
    tap_folder = model_folder(Path(config.init.tap))
    tap = Tap.from_pretrained(tap_folder)
    model = ChatModel(tap.model, lm, config.chat)
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    if config.init.chat:
        load_chat(model_folder(Path(config.init.chat)), model)
    model.to(process.device)
    stream = ChatStream(
        config.data,
        tokens,
        visual_tokens=model.visual_tokens,
        max_tokens=config.chat.max_tokens,
        image_size=tap.model.config.image_size,
        fill_rgb=tap.model.fill_rgb,
        seed=config.train.seed,
    )
    objective = ChatObjective(model)
    optimizer = make_optimizer(objective, config.optim)
    step = 0
    found = find_checkpoint(folder, resume)
    if found is not None:
        state = read_state(found)
        before = {**state["config"], "recipe": config.recipe}
        changed = [d for d in differences(config.to_dict(), before) if not d.startswith("train.st")]
        if changed:
            raise CheckpointError(
                f"{folder} is a run of other settings: {'; '.join(changed)}; give another --out"
            )
        load_chat(found, model)
        load_optimizer(optimizer, read_tensors(found))
        step = int(state["step"])
    log = RunLog(folder, config.log, step=step, steps=config.train.steps, active=process.is_main)
    if process.is_main:
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    log.say(
        f"{config.recipe}: {trained:,} parameters train; {stream.rows:,} conversations, "
        f"{config.train.steps * config.train.batch / stream.rows:.2f} epochs"
    )
    return ChatRun(
        folder=folder,
        config=config,
        process=process,
        model=model,
        tokens=tokens,
        stream=stream,
        wrapped=distributed.wrap(objective, process),
        optimizer=optimizer,
        log=log,
        lock=lock,
        step=step,
    )


def train_chat(run: ChatRun) -> None:
    """Train from where the run stands to its last step.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint was written.
        TrainingError: the loss is not finite, or too many images cannot be read.
    """
    config, process = run.config, run.process
    accumulate = config.train.accumulate(process.world)
    batches = run.stream.batches(
        step=run.step,
        steps=config.train.steps,
        batch=config.train.batch,
        rank=process.rank,
        world=process.world,
        at_once=config.train.images,
    )
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    window = _Window()
    run.model.train()
    with StopRequest() as stop:
        for passes in batches:
            asked = distributed.add_up({"stop": torch.tensor(float(stop.signal > 0))})
            if asked["stop"] > 0:
                run.save()
                raise Interrupted(f"stopped after step {run.step}, saved", stop.signal)
            # The mean is over the learned tokens of the whole step, all passes and processes.
            mine = float(sum((one.batch.targets[:, 1:] >= 0).sum() for one in passes))
            totals = distributed.add_up({"tokens": torch.tensor(mine)})
            tokens = max(totals["tokens"].item(), 1.0)
            rate = rate_at(run.step, config.optim, config.train)
            set_rate(run.optimizer, rate)
            loss, right = torch.zeros(()), torch.zeros(())
            for turn, one in enumerate(passes):
                torch.manual_seed(seed_of(config.train.seed, run.step, turn, process.rank))
                moved = _moved(one, process.device)
                with synchronised(run.wrapped, when=turn + 1 == accumulate):
                    part, _, hits = run.wrapped(moved)
                    (part / tokens * process.world).backward()
                loss, right = loss + part.detach().cpu(), right + hits.cpu()
            sums = distributed.add_up({"loss": loss, "right": right})
            mean = sums["loss"].item() / tokens
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss is {mean} at step {run.step}; go on from the last checkpoint with "
                    "a lower optim.rate"
                )
            torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm or math.inf)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            window.add(mean, sums["right"].item() / tokens, passes)
            if window.problems > config.data.max_problems:
                raise TrainingError(
                    f"{window.problems} images could not be read, more than data.max_problems"
                )
            if _due(run, config.log.every):
                figures = window.averages(rate) | {"images": window.steps * config.train.batch}
                run.log.report(run.step, figures, seconds=window.seconds, steps=window.steps)
                window = _Window(problems=window.problems)
            if _due(run, config.checkpoint.every):
                run.save()
    run.model.eval()
    run.log.close()


def _due(run: ChatRun, every: int) -> bool:
    return run.step % every == 0 or run.step == run.config.train.steps


def _moved(one: ChatSequences, device: torch.device) -> ChatSequences:
    images = None if one.images is None else one.images.to(device)
    return ChatSequences(one.batch.to(device), images, one.cut, one.problems)


class _Window:
    """Figures between two reports."""

    def __init__(self, problems: int = 0) -> None:
        self.problems = problems
        self.steps = self.cut = 0
        self._loss = self._right = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def add(self, loss: float, right: float, passes: list[ChatSequences]) -> None:
        self.steps += 1
        self._loss += loss
        self._right += right
        self.cut += sum(one.cut for one in passes)
        self.problems += sum(len(one.problems) for one in passes)

    def averages(self, rate: float) -> dict[str, Any]:
        return {
            "loss": self._loss / self.steps,
            "next_word": self._right / self.steps,
            "rate": rate,
            "wait_s": 0.0,
            "cut_turns": float(self.cut),
            "unreadable": float(self.problems),
        }
