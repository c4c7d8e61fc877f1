"""The training loop, top to bottom."""

import json
import math
import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tap_engine.model.schedule import cosine_rate, stepped_rate
from tap_engine.schemas.errors import TapError
from tap_engine.train import distributed
from tap_engine.train.config import LoopConfig
from tap_engine.train.data.examples import Batch
from tap_engine.train.data.loading import loader_errors
from tap_engine.train.data.noise import seed_of
from tap_engine.train.optim import OptimConfig, set_rate
from tap_engine.train.run import Run
from tap_engine.train.run_log import RunLog
from tap_engine.train.terms import Figures


class TrainingError(TapError):
    """Training cannot go on: the loss is not finite, or too much of the data is unreadable."""


class Interrupted(TapError):
    """The run was asked to stop and has saved itself.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


def train(run: Run) -> None:
    """Trains from where the run stands to its last step.

    Args:
        run: what `run.open_run` returned.

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGHUP came; a checkpoint was written.
        LoaderError: a loader process died or cannot deliver; steps without all their batches are
            not counted.
        TrainingError: the loss is not finite; the step's batch is written beside the run.
    """
    config, device, log = run.config, run.process.device, run.log
    batches = iter(run.batches())
    window = Window()
    with StopRequest() as stop, loader_errors():
        while run.step < config.train.steps:
            waited = time.perf_counter()
            step_batches = list(islice(batches, run.share.accumulate))
            window.wait_s += time.perf_counter() - waited

            # One exchange: how many prompts there are in all, whether to stop, what is missing.
            missing = run.share.accumulate - len(step_batches)
            totals = distributed.add_up(
                {
                    **run.count(step_batches),
                    "stop": torch.tensor(float(stop.signal > 0)),
                    "missing": torch.tensor(float(missing)),
                }
            )
            lost = int(totals.pop("missing"))
            if totals.pop("stop") > 0:
                run.save()
                number = stop.signal or signal.SIGTERM  # of another process
                raise Interrupted(f"stopped after step {run.step}, saved", number)
            if lost:
                raise TrainingError(
                    f"step {run.step + 1} lacks {lost} of its batches, so it was not made; the "
                    "same command goes on from the last checkpoint"
                )

            rate = rate_at(run.step, config.optim, config.train)
            set_rate(run.optimizer, rate)
            loss = torch.zeros((), device=device)
            for turn, batch in enumerate(step_batches):
                # Dropout and drop path: a function of the step, so nothing has to be saved.
                torch.manual_seed(seed_of(config.train.seed, run.step, turn, run.process.rank))
                last = turn + 1 == len(step_batches)
                with synchronised(run.wrapped, when=last):
                    with run.autocast():
                        part, figures = run.wrapped(batch.to(device), totals, run.step)
                    # DDP averages over processes; the parts are meant to be summed.
                    run.scaler.scale(part * run.process.world).backward()
                loss += part.detach()
                window.add(figures, batch)
            loss_value = distributed.add_up({"loss": loss})["loss"].item()
            if not math.isfinite(loss_value):
                raise not_finite(run, step_batches, loss_value)

            run.scaler.unscale_(run.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(
                run.parameters(), config.optim.clip_norm or math.inf
            )
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad(set_to_none=True)
            run.update_average()
            run.step += 1
            run.consumed += run.share.step_images
            window.tick(loss_value, norm)

            if run.due(config.log.every):
                log.report(
                    run.step, window.averages(rate), seconds=window.seconds, steps=window.steps
                )
                window.check(config.stream.max_problems, log)
                window = Window(problems=window.problems)
            if run.due(config.checkpoint.every):
                run.save()
            if run.due(config.log.pictures_every):
                run.draw()
            if run.due(config.held_out.every):
                run.measure()
    log.close()


def rate_at(step: int, optim: OptimConfig, length: LoopConfig) -> float:
    """Learning rate of the update with this 0-based index."""
    peak = optim.peak_rate(length.batch)
    if optim.milestones:
        return stepped_rate(
            step,
            peak=peak,
            steps=length.steps,
            milestones=optim.milestones,
            warmup_steps=optim.warmup_steps,
            warmup_from=optim.warmup_from,
        )
    return cosine_rate(
        step,
        peak=peak,
        last=peak * optim.final_share,
        steps=length.steps,
        warmup_steps=optim.warmup_steps,
        warmup_from=optim.warmup_from,
    )


def synchronised(module: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Gradients are exchanged in this pass only if `when`; the last pass of a step."""
    if isinstance(module, DistributedDataParallel) and not when:
        return module.no_sync()
    return nullcontext()


def not_finite(run: Run, batches: list[Batch], loss: float) -> TrainingError:
    """Writes which images and regions the step had, and makes the error that says so."""
    path = run.folder / f"not_finite_step_{run.step:08d}_rank_{run.process.rank}.json"
    content = {
        "step": run.step,
        "loss": repr(loss),
        "image_ids": [image for batch in batches for image in batch.image_ids],
        "keys": [batch.keys[batch.valid].tolist() for batch in batches],
    }
    path.write_text(json.dumps(content))
    return TrainingError(
        f"the loss is {loss} at step {run.step}; the images of the step are in {path}. Go on from "
        "the last checkpoint, where there is one, with a lower optim.rate or another "
        "train.precision; or start again so"
    )


class Window:
    """Figures between two reports."""

    def __init__(self, problems: int = 0) -> None:
        self.problems = problems
        self.images = self.steps = 0
        self.wait_s = self.loss = 0.0
        self.norm: Tensor | float = 0.0
        self._sums: Figures = {}
        self._texts: list[str] = []
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was opened."""
        return time.perf_counter() - self._began

    def add(self, figures: Figures, batch: Batch) -> None:
        """One forward pass."""
        for name, (total, number) in figures.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + total, before[1] + number)
        self.images += len(batch.image_ids)
        self._texts += batch.problems

    def tick(self, loss: float, norm: Tensor) -> None:
        """One step."""
        self.steps += 1
        self.loss += loss
        self.norm = self.norm + norm.detach()

    def averages(self, rate: float) -> dict[str, float]:
        """Over all processes; they call it together."""
        sums = {f"{name}/{i}": v for name, pair in self._sums.items() for i, v in enumerate(pair)}
        sums |= {"images": torch.tensor(float(self.images)), "wait": torch.tensor(self.wait_s)}
        totals = {k: v.item() for k, v in distributed.add_up(sums).items()}
        means = {
            name: totals[f"{name}/0"] / max(totals[f"{name}/1"], 1)
            for name in self._sums
            if totals[f"{name}/1"]
        }
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return {
            "loss": self.loss / self.steps,
            **means,
            "norm": float(self.norm) / self.steps,
            "rate": rate,
            "images": totals["images"],
            "wait_s": totals["wait"] / world,
        }

    def check(self, most: int, log: RunLog) -> None:
        """Says what could not be read.

        Raises:
            TrainingError: it is more than `most` images since the run was started.
        """
        found = distributed.collect(self._texts)
        for text in found:
            log.say(f"left out: {text}")
        self.problems += len(found)
        if self.problems > most:
            raise TrainingError(
                f"{self.problems} images could not be read, more than stream.max_problems={most}; "
                f"the last: {found[-1]}. `tap-data verify` checks a store"
            )


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGHUP while open; a second SIGINT interrupts at once.

    Attributes:
        signal: the number of the signal that came; 0 until then.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # signals are the main thread's, which is Ray's in a Ray Train worker
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: to go on is what was asked for
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
