"""Settings of a build, with their defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tap_engine.pipeline.concepts import SOURCE_TEMPLATES, TARGET_TEMPLATES, parse_top_k
from tap_engine.pipeline.sources.records import Source
from tap_engine.pipeline.teacher import TeacherConfig
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.store_settings import (
    CropConfig,
    CropOrder,
    Fill,
    Fit,
    StoreSettings,
    TeacherInfo,
)
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, Vocabulary, load_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class CropOptions:
    """Crop settings that a user chooses; size and mean colour come from the teacher.

    Attributes:
        fill, fit, margin, order: see CropConfig.
    """

    fill: Fill = "mean"
    fit: Fit = "pad"
    margin: float = 0.0
    order: CropOrder = "composite"

    def for_teacher(self, info: TeacherInfo) -> CropConfig:
        """The whole crop rule."""
        return CropConfig(
            size_px=info.image_px,
            mean_rgb=info.mean_rgb,
            fill=self.fill,
            fit=self.fit,
            margin=self.margin,
            order=self.order,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings that spread the work; 0 chooses from the cluster's resources (see layout.py).

    Attributes:
        actors: workers, each with one loaded teacher.
        crop_cpus: CPUs, and as many threads, of each worker for reading, decoding and cropping.
        teacher_gpus: GPUs of each worker; fractions share one; None takes one where there are any.
        unit_images: images per unit; a killed worker loses at most its unit's work.
        commit_s: seconds between commits; a killed driver loses at most that much.
        retries: number of new tries of a unit whose worker died, before it counts as failed.
    """

    actors: int = 0
    crop_cpus: int = 0
    teacher_gpus: float | None = None
    unit_images: int = 0
    commit_s: float = 60.0
    retries: int = 20

    def __post_init__(self) -> None:
        for name in ("actors", "crop_cpus", "unit_images", "commit_s", "retries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if self.teacher_gpus is not None and self.teacher_gpus < 0:
            raise ConfigError(f"teacher_gpus must not be negative, got {self.teacher_gpus!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """One build of a store: SemanticSA-1B, or captioned images.

    Attributes:
        out: path or URI of the store; recipes leave it empty.
        teacher: which model, and how it runs; None writes regions without embeddings and an
            empty `concepts` table.
        crop: the rule by which regions become crops.
        vocabulary: a shipped name, a file, or the names themselves.
        source_templates, target_templates: prompts of the concept weights.
        concepts: "top:K", "full" or "none": what `regions` keeps of each distribution.
        limit: build at most this many images in all; 0 for everything.
        max_reject_share: if a larger share of images or regions is left out, the build says so with
            its exit code; the store is complete all the same.
        take_over: enter although another driver's lease has not run out.
        storage_options: options of Lance's object stores, beside the environment's.
        workers: the settings that spread the work.
    """

    out: str = ""
    teacher: TeacherConfig | None = field(default_factory=TeacherConfig)
    crop: CropOptions = field(default_factory=CropOptions)
    vocabulary: str | Vocabulary = DEFAULT_VOCABULARY
    source_templates: tuple[str, ...] = SOURCE_TEMPLATES
    target_templates: tuple[str, ...] = TARGET_TEMPLATES
    concepts: str = "top:64"
    limit: int = 0
    max_reject_share: float = 0.01
    take_over: bool = False
    storage_options: Mapping[str, str] = field(default_factory=dict)
    workers: WorkerConfig = field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"limit must not be negative, got {self.limit!r}")
        if not 0 <= self.max_reject_share <= 1:
            raise ConfigError(f"max_reject_share must be in 0..1, got {self.max_reject_share!r}")


def build_settings(config: BuildConfig, source: Source, info: TeacherInfo | None) -> StoreSettings:
    """Settings that decide the values in the rows.

    Args:
        config: the settings of the build.
        source: the source of the rows.
        info: what the loaded teacher says of itself; None without a teacher.
    """
    settings = StoreSettings(
        captioned=source.captioned, labelled=source.labelled, source=source.settings()
    )
    if info is None:
        return settings
    vocabulary = load_vocabulary(config.vocabulary)
    return replace(
        settings,
        teacher=info,
        crop=config.crop.for_teacher(info),
        vocabulary=vocabulary.describe(),
        source_templates=config.source_templates,
        target_templates=config.target_templates,
        top_k=parse_top_k(config.concepts, len(vocabulary)),
    )
