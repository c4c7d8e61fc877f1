"""Gates: short trainings with a verdict, beside simple baselines.

    overfit   eight scenes by heart: targets, losses and network fit together
    quick     unseen scenes after a few CPU-minutes
    losses    KL against the feature loss: seeds, weights, one budget

Thresholds are docs/training.md's; figures of a run are printed, not assumed.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.settings import with_overrides
from tap_engine.train.config import TrainConfig
from tap_engine.train.held_out import HeldOutFigures, measure_checkpoint
from tap_engine.train.loop import train
from tap_engine.train.opening import open_run
from tap_engine.train.recipes import recipe

Settled = Callable[[TrainConfig], TrainConfig]
"""A recipe -> the same with the command's stores and settings."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that must be passed.

    Attributes:
        figure: a name of `HeldOutFigures.summary`.
        above: the threshold.
    """

    figure: str
    above: float


OVERFIT_SCENES = 8
OVERFIT_BARS = (Bar("box_iou/object", 0.88), Bar("agree_box/all", 0.95))
QUICK_BARS = (Bar("box_iou/object", 0.57), Bar("top1_box/object", 0.30))

LOSS_WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "kl": (0.25, 0.5, 1.0),
    "feature": (2.0, 5.0, 20.0),
}
LOSS_SEEDS = (0, 1, 2)


def run_gate(
    name: str,
    out: Path,
    *,
    stores: tuple[str, ...],
    held_out: str,
    truth: str,
    overrides: Iterable[str],
) -> bool:
    """Trains, measures, prints; runs that were interrupted go on.

    Args:
        name: "overfit", "quick" or "losses".
        out: folder for the runs.
        stores: sample-world stores to train on.
        held_out: store to measure on; overfit measures on its training scenes.
        truth: truth table of the store that is measured on.
        overrides: more settings.

    Returns:
        Whether every bar was passed.
    """
    gates = {"overfit": _overfit, "quick": _quick, "losses": _losses}
    if name not in gates:
        raise ConfigError(f"no gate {name!r}; there are {', '.join(gates)}")
    if name != "overfit" and not held_out:
        raise ConfigError(f"gate {name} measures on unseen scenes: give --held-out STORE")

    def settled(config: TrainConfig) -> TrainConfig:
        stream = replace(config.stream, stores=stores)
        return with_overrides(replace(config, stream=stream), overrides)

    return gates[name](out, settled, stores[0] if name == "overfit" else held_out, truth)


def overfit_config() -> TrainConfig:
    """The sample recipe on eight scenes, nothing varied, every step on two of them."""
    base = recipe("sample")
    return replace(
        base,
        recipe="overfit",
        stream=replace(base.stream, first_images=OVERFIT_SCENES),
        augment=replace(base.augment, flip=0.0, brightness=0.0, channel_shift=0.0),
        prompts=replace(base.prompts, box_share=0.85, box_jitter=0.0),
        loss=replace(base.loss, balanced_steps=200),
        optim=replace(base.optim, rate_batch=2),
        train=replace(base.train, steps=2400, batch=2, images=2),
        checkpoint=replace(base.checkpoint, every=300),
        log=replace(base.log, pictures_every=0),
    )


def quick_config() -> TrainConfig:
    """The sample recipe at 192 px with a complete short schedule."""
    base = recipe("sample")
    return replace(
        base,
        recipe="quick",
        model=replace(base.model, image_size=192),
        train=replace(base.train, steps=700),
        checkpoint=replace(base.checkpoint, every=175),
        log=replace(base.log, pictures_every=0),
    )


def _overfit(out: Path, settled: Settled, store: str, truth: str) -> bool:
    figures = _trained(settled(overfit_config()), out, store, truth, OVERFIT_SCENES)
    return _verdict(figures, OVERFIT_BARS)


def _quick(out: Path, settled: Settled, store: str, truth: str) -> bool:
    figures = _trained(settled(quick_config()), out, store, truth, 100)
    return _verdict(figures, QUICK_BARS)


def _losses(out: Path, settled: Settled, store: str, truth: str) -> bool:
    best: dict[str, float] = {}
    lines = [f"{'loss':9}{'weight':>8}{'seeds':>7}{'top-1':>16}{'object IoU':>16}"]
    for kind, weights in LOSS_WEIGHTS.items():
        for weight in weights:
            found = []
            for seed in LOSS_SEEDS:
                config = quick_config()
                config = replace(
                    config,
                    recipe=f"{kind} x {weight}",
                    loss=replace(
                        config.loss,
                        concept_loss=kind,
                        concept=weight,
                        # The auxiliary loss has the same unit: it keeps its ratio to the main one.
                        auxiliary=weight * config.loss.auxiliary / config.loss.concept,
                    ),
                    train=replace(config.train, seed=seed),
                )
                folder = out / f"{kind}_{weight}_{seed}"
                figures = _trained(settled(config), folder, store, truth, 100).summary()
                found.append((figures["top1_box/object"], figures["box_iou/object"]))
            top, iou = (list(values) for values in zip(*found, strict=True))
            best[kind] = max(best.get(kind, 0.0), statistics.mean(top))
            lines.append(
                f"{kind:9}{weight:>8}{len(found):>7}"
                f"{statistics.mean(top):>9.3f} ±{statistics.stdev(top):5.3f}"
                f"{statistics.mean(iou):>9.3f} ±{statistics.stdev(iou):5.3f}"
            )
    print("\n".join(lines))
    print(
        f"best KL {best['kl']:.3f}, best feature loss {best['feature']:.3f} (mean ± std over seeds)"
    )
    return best["kl"] > best["feature"]


def _trained(config: TrainConfig, out: Path, store: str, truth: str, images: int) -> HeldOutFigures:
    began = time.process_time()
    run = open_run(config, out)
    train(run)
    print(f"{run.step} steps, {(time.process_time() - began) / 60:.1f} CPU-minutes in this process")
    figures = measure_checkpoint(out, store, truth=truth, images=images)
    print(figures.table())
    return figures


def _verdict(figures: HeldOutFigures, bars: Iterable[Bar]) -> bool:
    found, passed = figures.summary(), True
    for bar in bars:
        value = found.get(bar.figure, float("nan"))
        passed &= value > bar.above
        word = "passed" if value > bar.above else "MISSED"
        print(f"{word}: {bar.figure} {value:.3f}, to be above {bar.above}")
    return passed
