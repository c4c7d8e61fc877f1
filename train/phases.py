"""Recipes of several phases: each is a run of its own that goes on from the weights of the last.

    RUN/1-start  RUN/2-clicks  RUN/3-captions     run folders, as of any run

A phase that has done its last step is left alone, so after a kill the same command goes on where
it was. The model of RUN is that of the latest phase (`checkpoint.model_folder`). A recipe of one
phase lies in RUN itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tap_engine.model.text_tokenizer import BpeTokenizer
from tap_engine.schemas.errors import ConfigError
from tap_engine.train import distributed
from tap_engine.train.caption_tokens import learn_tokenizer
from tap_engine.train.checkpoint import checkpoints, read_state
from tap_engine.train.config import TrainConfig
from tap_engine.train.loop import train
from tap_engine.train.opening import open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRun:
    """One phase with everything resolved.

    Attributes:
        folder: its run folder.
        config: its settings, but for weights and tokenizer, which the phases before it make.
    """

    folder: Path
    config: TrainConfig

    @property
    def learns_captions_alone(self) -> bool:
        """Whether it trains the text decoder and nothing else."""
        loss = self.config.loss
        return loss.caption > 0 and loss.concept == loss.segmentation == 0

    @property
    def done(self) -> bool:
        """Whether its last step is saved."""
        found = checkpoints(self.folder)
        return bool(found) and int(read_state(found[-1])["step"]) >= self.config.train.steps


def plan_phases(
    configs: Sequence[tuple[str, TrainConfig]],
    out: Path,
    captions: str,
    say: Callable[[str], None],
) -> list[PhaseRun]:
    """Folders of the phases, and the stores that each trains on.

    Args:
        configs: name and settings of each phase, of `recipes.phases`.
        out: the run's folder.
        captions: captioned store for the phases that learn captions alone; empty: those use the
            same stores as the others if there is only one phase, and are left out otherwise.
        say: called with a line about what is left out.
    """
    alone = len(configs) == 1
    runs = []
    for number, (name, config) in enumerate(configs, 1):
        run = PhaseRun(folder=out if alone else out / f"{number}-{name}", config=config)
        if run.learns_captions_alone and captions:
            stream = replace(config.stream, stores=(captions,))
            run = replace(run, config=replace(config, stream=stream))
        elif run.learns_captions_alone and not alone:
            say(f"phase {name} is left out: it needs --captions, a captioned store")
            continue
        runs.append(run)
    return runs


def train_phases(runs: Sequence[PhaseRun], resume: str, say: Callable[[str], None]) -> int:
    """Trains the phases in turn.

    Args:
        runs: of `plan_phases`.
        resume: as for one run; with several phases it must be "auto" or "never".
        say: called with a line per phase, where there are several.

    Returns:
        The steps of the last phase.

    Raises:
        ConfigError: a checkpoint given for a recipe of several phases.
    """
    if len(runs) > 1 and resume not in ("auto", "never"):
        raise ConfigError(
            f"a recipe of {len(runs)} phases goes on by itself: --resume auto, or never"
        )
    before: Path | None = None
    steps = 0
    for number, phase in enumerate(runs, 1):
        config = phase.config
        process = distributed.start(config.train.device)
        if before is not None:
            config = going_on(config, before)
        if len(runs) > 1 and process.is_main:
            state = "done before" if phase.done else f"in {phase.folder}"
            say(f"phase {number} of {len(runs)}: {config.recipe}, {state}")
        if len(runs) == 1 or not phase.done:
            run = open_run(config, phase.folder, resume)
            train(run)
        steps, before = config.train.steps, phase.folder
    return steps


def going_on(config: TrainConfig, before: Path) -> TrainConfig:
    """The settings of a phase that starts from the model of the phase in the folder `before`."""
    init = replace(config.init, weights=str(before), trunk="")
    if config.loss.caption > 0 and not init.tokenizer:
        file = before.parent / BpeTokenizer.file_name
        distributed.from_main(lambda: _learn(config, file))
        init = replace(init, tokenizer=str(file))
    return replace(config, init=init)


def _learn(config: TrainConfig, file: Path) -> None:
    # Once; a run that goes on has it already.
    if not file.is_file():
        size, split = config.model.text.vocab_size, config.stream.split or "train"
        learn_tokenizer(list(config.stream.stores), size, split)[0].save(file)
