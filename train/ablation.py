"""The papers' ablations on the sample world: train each variant, evaluate all on the same scenes.

    tasks   concept against feature prediction (TAP's table 4, TAP-v2's table 6), and which token
            prompts the text decoder after which pre-training (table 5 of both)
    masks   whether predicting concepts costs masks: with them, without, and as SAM's five tokens
    scale   half or all of the images, half or all of the steps (TAP's table 6a)
    text    depth and width of the text decoder (TAP's table 6b, TAP-v2's table 7)

A variant differs from its recipe by the settings listed here and by nothing else: same data, steps
and seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tap_engine.model.text_tokenizer import BpeTokenizer
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.settings import with_overrides
from tap_engine.schemas.shipped import SAMPLE
from tap_engine.train import distributed
from tap_engine.train.caption_tokens import learn_tokenizer
from tap_engine.train.config import TrainConfig
from tap_engine.train.evaluation.data_choice import DataChoice
from tap_engine.train.evaluation.report import Score
from tap_engine.train.evaluation.request import DataEngine, EvalRequest, run_evaluation
from tap_engine.train.loop import train
from tap_engine.train.opening import open_run
from tap_engine.train.recipes import recipe

CAPTION_RECIPE = "sample_caption"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of an ablation.

    Attributes:
        folder: its folder.
        name: its name in the report.
        overrides: what differs from the recipe.
        tasks: what is measured.
        start: folder of the pre-trained variant whose captions are tuned; empty pre-trains.
    """

    folder: str
    name: str
    overrides: tuple[str, ...]
    tasks: tuple[str, ...]
    start: str = ""


CONCEPT, FEATURE, MASK = "concept", "feature", "mask"

PRETRAINED = (
    Variant(
        folder=CONCEPT,
        name="concept prediction",
        overrides=("loss.concept_loss=kl",),
        tasks=("segmentation", "classification", "names"),
    ),
    # A cosine is smaller than a KL, so it gets the larger weight; 5 and 10 did better than 20 and
    # 20 in trials. `tap-train gate losses` compares weights over seeds.
    Variant(
        folder=FEATURE,
        name="feature prediction",
        overrides=("loss.concept_loss=feature", "loss.concept=5.0", "loss.auxiliary=10.0"),
        tasks=("segmentation", "classification", "names"),
    ),
    Variant(
        folder=MASK,
        name="masks alone",
        overrides=("loss.concept=0", "loss.auxiliary=0"),
        tasks=("segmentation",),
    ),
)

CAPTIONED = tuple(
    Variant(
        folder=f"{start}-{token}-token",
        name=f"{name}, {token} token",
        overrides=(f"model.text.prompt={token}",),
        tasks=("captions",),
        start=start,
    )
    for start, name, token in (
        (MASK, "masks alone", "mask"),
        (CONCEPT, "masks and concepts", "mask"),
        (FEATURE, "masks and features", "semantic"),
        (CONCEPT, "masks and concepts", "semantic"),
    )
)
"""Models A to D of TAP's table 5."""


MASKS = (
    Variant(
        folder=CONCEPT,
        name="masks and concepts",
        overrides=("loss.concept_loss=kl",),
        tasks=("segmentation", "prompts"),
    ),
    Variant(
        folder=MASK,
        name="masks alone",
        overrides=("loss.concept=0", "loss.auxiliary=0"),
        tasks=("segmentation", "prompts"),
    ),
    Variant(
        folder="sam",
        name="masks alone, five tokens",
        overrides=(
            "loss.concept=0",
            "loss.auxiliary=0",
            "model.text.prompt=mask",
            "model.decoder.semantic=false",
        ),
        tasks=("segmentation", "prompts"),
    ),
)
"""The claim that concept prediction does not cost mask AP (TAP's tables 1 and 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRequest:
    """The command's options.

    Attributes:
        stores: sample-world stores to pre-train on; empty with `model`.
        out: folder; each variant has its run and its predictions in a folder of it.
        recipe: what all pre-trained variants start from.
        overrides: settings of all pre-trained variants; those of the model hold for captions, too.
        limit: held-out scenes; 0 for the usual number.
        captions: captioned store; empty leaves the caption variants out.
        caption_overrides: settings of all caption variants.
        model: a run or checkpoint that takes the place of the one pre-trained with concepts; the
            variants of other pre-trainings are left out.
        table: which ablation, one of `TABLES`.
    """

    stores: tuple[str, ...]
    out: Path
    recipe: str
    overrides: tuple[str, ...]
    limit: int
    captions: str = ""
    caption_overrides: tuple[str, ...] = ()
    model: str = ""
    table: str = "tasks"

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ConfigError(f"no ablation {self.table!r}; there are {', '.join(TABLES)}")
        if not self.stores and not self.model:
            raise ConfigError("give --store to pre-train on, or --model for captions alone")
        if self.model and not self.captions:
            raise ConfigError("--model is what captions are tuned on: give --captions, a store")
        if self.model and self.table not in ("tasks", "text"):
            raise ConfigError(f"ablation {self.table} pre-trains: give --store instead of --model")
        if self.table == "text" and not self.captions:
            raise ConfigError("ablation text tunes captions: give --captions, a store")


def run_ablation(
    request: AblationRequest,
    engine: DataEngine,
    say: Callable[[str], None],
) -> list[Score]:
    """Train what is not trained yet, evaluate it; one row for each variant and protocol.

    Args:
        request: the command's options.
        engine: what evaluation takes from the data engine.
        say: called with a line now and then.
    """
    scores: list[Score] = []
    for variant in variants(request):
        folder = request.out / variant.folder
        config = tuning(request, variant) if variant.start else pretraining(request, variant)
        say(f"{variant.name}: training in {folder / 'run'}")
        try:
            train(open_run(config, folder / "run"))
        finally:
            distributed.stop()
        if not variant.tasks:
            continue
        evaluation = EvalRequest(
            data=DataChoice(name=SAMPLE, references="region", limit=request.limit),
            out=str(folder / "eval"),
            device=config.train.device,
            precision="fp32",
            chunk=64,
            crop_fill="keep",
            model=str(folder / "run"),
            tasks=variant.tasks,
            name=variant.name,
        )
        scores += run_evaluation(evaluation, engine, say)
    return scores


def variants(request: AblationRequest) -> list[Variant]:
    """What is trained, pre-trainings first."""
    found = TABLES[request.table](request)
    return [v for v in found if v.start] if request.model else found


def _tasks(request: AblationRequest) -> list[Variant]:
    if request.model:
        return [variant for variant in CAPTIONED if variant.start == CONCEPT]
    if request.captions:
        return [*PRETRAINED, *CAPTIONED]
    return [variant for variant in PRETRAINED if variant.folder != MASK]


def _masks(request: AblationRequest) -> list[Variant]:
    del request
    return list(MASKS)


def _scale(request: AblationRequest) -> list[Variant]:
    steps = with_overrides(recipe(request.recipe), request.overrides).train.steps
    return [
        Variant(
            folder=f"{share:g}-of-the-images-{count}-steps",
            name=f"{share:.0%} of the images, {count:,} steps",
            overrides=(f"stream.share={share:g}", f"train.steps={count}"),
            tasks=("segmentation", "classification"),
        )
        for share, count in ((0.5, max(1, steps // 2)), (0.5, steps), (1.0, steps))
    ]


def _text(request: AblationRequest) -> list[Variant]:
    # Of the papers' 12 blocks of 512: 6, 8 and 12, and 6 of 768; in these proportions.
    text = with_overrides(recipe(CAPTION_RECIPE), request.caption_overrides).model.text
    sizes = [(max(1, text.depth * part // 12), text.embed_dim) for part in (6, 8, 12)]
    sizes.append((sizes[0][0], text.embed_dim * 3 // 2))
    tuned = [
        Variant(
            folder=f"text-{depth}-{width}",
            name=f"{depth} blocks, {width} wide",
            overrides=(f"model.text.depth={depth}", f"model.text.embed_dim={width}"),
            tasks=("captions",),
            start=CONCEPT,
        )
        for depth, width in dict.fromkeys(sizes)
    ]
    return [replace(PRETRAINED[0], tasks=()), *tuned]


TABLES: Mapping[str, Callable[[AblationRequest], list[Variant]]] = {
    "tasks": _tasks,
    "masks": _masks,
    "scale": _scale,
    "text": _text,
}
"""By name: the variants of a request."""


def pretraining(request: AblationRequest, variant: Variant) -> TrainConfig:
    """Settings of a pre-trained variant."""
    base = recipe(request.recipe)
    base = replace(base, stream=replace(base.stream, stores=request.stores))
    return with_overrides(base, (*request.overrides, *variant.overrides))


def tuning(request: AblationRequest, variant: Variant) -> TrainConfig:
    """Settings of a caption variant; all share one tokenizer of the captioned store."""
    base = recipe(CAPTION_RECIPE)
    tokenizer = request.out / BpeTokenizer.file_name
    if not tokenizer.is_file():
        request.out.mkdir(parents=True, exist_ok=True)
        learn_tokenizer([request.captions], base.model.text.vocab_size)[0].save(tokenizer)
    weights = request.model or str(request.out / variant.start / "run")
    # The text decoder of a model that already speaks would favour the token it learned.
    init = replace(base.init, weights=weights, tokenizer=str(tokenizer), text=False)
    base = replace(base, init=init, stream=replace(base.stream, stores=(request.captions,)))
    of_model = [setting for setting in request.overrides if setting.startswith("model.")]
    return with_overrides(base, (*of_model, *request.caption_overrides, *variant.overrides))
