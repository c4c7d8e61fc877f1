"""The papers' ablations on the sample world: train each variant, evaluate all on the same scenes.

Concept against feature prediction is TAP's table 4 and TAP-v2's table 6. A variant differs from the
recipe by the settings listed here and by nothing else: same data, steps and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tap_engine.jobs.eval_data import DataChoice
from tap_engine.jobs.evaluation import EvalRequest, run_evaluation
from tap_engine.jobs.sample_eval import SAMPLE
from tap_engine.jobs.train_commands import with_sample_trunk
from tap_engine.train import distributed
from tap_engine.train.config import with_overrides
from tap_engine.train.evaluate import CLASSIFICATION, NAMES, SEGMENTATION
from tap_engine.train.loop import train
from tap_engine.train.recipes import recipe
from tap_engine.train.report import Score
from tap_engine.train.run import open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of an ablation.

    Attributes:
        folder: where it lies.
        name: in the report.
        overrides: what differs from the recipe.
        tasks: what is measured.
    """

    folder: str
    name: str
    overrides: tuple[str, ...]
    tasks: tuple[str, ...]


VARIANTS = (
    Variant(
        folder="concept",
        name="concept prediction",
        overrides=("loss.concept_loss=kl",),
        tasks=(SEGMENTATION, CLASSIFICATION, NAMES),
    ),
    # A cosine is smaller than a KL, so it gets the larger weight; 5 and 10 did better than 20 and
    # 20 in trials. `tap-train gate losses` compares weights over seeds.
    Variant(
        folder="feature",
        name="feature prediction",
        overrides=("loss.concept_loss=feature", "loss.concept=5.0", "loss.auxiliary=10.0"),
        tasks=(SEGMENTATION, CLASSIFICATION, NAMES),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRequest:
    """The command's options.

    Attributes:
        stores: sample-world stores to train on.
        out: folder; each variant has its run and its predictions in a folder of it.
        recipe: what all variants start from.
        overrides: settings of all variants.
        limit: held-out scenes; 0 for the usual number.
    """

    stores: tuple[str, ...]
    out: Path
    recipe: str
    overrides: tuple[str, ...]
    limit: int


def run_ablation(request: AblationRequest, say: Callable[[str], None]) -> list[Score]:
    """Train what is not trained yet, evaluate it; one row a variant and protocol."""
    scores: list[Score] = []
    for variant in VARIANTS:
        folder = request.out / variant.folder
        base = recipe(request.recipe)
        base = replace(base, stream=replace(base.stream, stores=request.stores))
        config = with_overrides(base, (*variant.overrides, *request.overrides))
        say(f"{variant.name}: training in {folder / 'run'}")
        try:
            train(open_run(with_sample_trunk(config), folder / "run"))
        finally:
            distributed.stop()
        evaluation = EvalRequest(
            data=DataChoice(name=SAMPLE, references="region", limit=request.limit),
            out=str(folder / "eval"),
            device=config.train.device,
            precision="float32",
            chunk=64,
            crop_fill="keep",
            model=str(folder / "run"),
            tasks=variant.tasks,
            name=variant.name,
        )
        scores += run_evaluation(evaluation, say)
    return scores
