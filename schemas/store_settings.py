"""Settings that decide the values in a store's rows, as typed dataclasses.

`to_json` is the one writer and `from_json` the one reader, for both halves of the system. The
stored text is that of earlier versions: settings that do not apply are not written. What a later
version wrote beside these is kept in `unknown` and written back: `reproject` loses nothing.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.vocabulary import VocabularyInfo

Fill = Literal["mean", "black", "keep"]
Fit = Literal["pad", "squash"]
CropOrder = Literal["composite", "resize"]
Resampling = Literal["bicubic", "bilinear"]

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInfo:
    """Facts of a loaded teacher that decide its embeddings.

    Attributes:
        name, pretrained: the configured model with defaults resolved; no machine path.
        weights_sha256: hash of all parameters and buffers, as float32 if they are floating.
        precision: type of the forward pass, by torch's name ("float16").
        embed_dim: D.
        image_px: side of the square input.
        mean_rgb, std_rgb: input normalisation, in 0..1.
        logit_scale: the learned one, exp already taken.
        random_weights: True when the numbers mean nothing.
    """

    name: str
    pretrained: str
    weights_sha256: str
    precision: str
    embed_dim: int
    image_px: int
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    logit_scale: float
    random_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CropConfig:
    """Rule by which a region becomes a crop.

    Attributes:
        mean_rgb: the teacher's mean colour in 0..1; 0 after its normalisation.
        size_px: side of the crop, px; the teacher's input size.
        fill: what replaces pixels outside the mask: `mean` colour, `black`, or `keep` them (a
            box crop). What lies beyond the image and the padding is filled too, with the mean
            colour under `keep`.
        fit: `pad` the box to a square, centred, or `squash` it into one.
        margin: context around the box on every side, as a share of that side.
        order: `composite` fills before resampling, so edges blend with the fill; `resize` fills
            after, where less than half of the resampled mask covers a pixel: a hard edge.
        resampling: antialiased, equal to Pillow's of the same name.
    """

    mean_rgb: tuple[float, float, float]
    size_px: int = 224
    fill: Fill = "mean"
    fit: Fit = "pad"
    margin: float = 0.0
    order: CropOrder = "composite"
    resampling: Resampling = "bicubic"

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if not 1 <= self.size_px <= 4096:
            raise ConfigError(f"crop.size_px must be in 1..4096, got {self.size_px!r}")
        if not 0 <= self.margin <= 10:
            raise ConfigError(f"crop.margin must be in 0..10, got {self.margin!r}")
        if len(self.mean_rgb) != 3 or not all(0 <= value <= 1 for value in self.mean_rgb):
            raise ConfigError(f"crop.mean_rgb must be three values in 0..1, got {self.mean_rgb!r}")
        for name, choices in (
            ("fill", get_args(Fill)),
            ("fit", get_args(Fit)),
            ("order", get_args(CropOrder)),
            ("resampling", get_args(Resampling)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"crop.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    @property
    def fill_rgb(self) -> npt.NDArray[np.uint8]:
        """[3] uint8, the colour of padding and of what is masked out."""
        scale = 0 if self.fill == "black" else 255
        return np.round(np.asarray(self.mean_rgb) * scale).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Settings that decide the values in a store's rows; stores with equal ones are alike.

    Attributes:
        teacher: which model embedded the regions; None for a store without embeddings.
        crop: the rule by which regions became crops; None without a teacher, as the next three.
        vocabulary: which concepts the store knows.
        source_templates: prompts of the concept weights of a student, with "{}" for the name.
        target_templates: prompts of the concept weights of the teacher.
        top_k: number of concepts that each region keeps; 0 for none.
        captioned: whether regions have captions and images a split.
        labelled: whether regions have labels.
        source: what the data set says of itself: nested JSON values, empty for SA-1B.
        unknown: what a later version stored beside these, nested as it stands there.
    """

    teacher: TeacherInfo | None = None
    crop: CropConfig | None = None
    vocabulary: VocabularyInfo | None = None
    source_templates: tuple[str, ...] = ()
    target_templates: tuple[str, ...] = ()
    top_k: int = 0
    captioned: bool = False
    labelled: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        """D, width of the embeddings; 0 without a teacher."""
        return self.teacher.embed_dim if self.teacher else 0

    def to_json(self) -> dict[str, Any]:
        """JSON values, as stored under `settings`."""
        content: dict[str, Any] = {"teacher": None, "top_k": self.top_k}
        if self.teacher:
            for name in ("teacher", "crop", "vocabulary"):
                part = getattr(self, name)
                content[name] = None if part is None else _plain(dataclasses.asdict(part))
            content["source_templates"] = list(self.source_templates)
            content["target_templates"] = list(self.target_templates)
        if self.captioned:
            content["captioned"] = True
        if self.labelled:
            content["labelled"] = True
        if self.source:
            content["source"] = dict(self.source)
        return _merged(content, self.unknown)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "StoreSettings":
        """Reads what `to_json` wrote; settings that are missing take their defaults.

        Raises:
            SchemaError: a known setting has another form, or a teacher lacks a field.
        """
        own = {item.name for item in dataclasses.fields(cls)} - {"unknown"}
        unknown = {name: value for name, value in content.items() if name not in own}
        try:
            parts: dict[str, Any] = {}
            for name, kind in (
                ("teacher", TeacherInfo),
                ("crop", CropConfig),
                ("vocabulary", VocabularyInfo),
            ):
                parts[name], rest = _part(kind, content.get(name))
                if rest:
                    unknown[name] = rest
            return cls(
                **parts,
                source_templates=tuple(content.get("source_templates", ())),
                target_templates=tuple(content.get("target_templates", ())),
                top_k=int(content.get("top_k", 0)),
                captioned=bool(content.get("captioned", False)),
                labelled=bool(content.get("labelled", False)),
                source=dict(content.get("source", {})),
                unknown=unknown,
            )
        except (TypeError, ValueError, AttributeError, ConfigError) as error:
            raise SchemaError(f"the settings of this store cannot be read: {error}") from error

    @classmethod
    def of(cls, provenance: Provenance) -> "StoreSettings":
        """The settings of a stored provenance.

        Raises:
            SchemaError: as for `from_json`.
        """
        return cls.from_json(provenance.settings)

    def provenance(self, made: Mapping[str, Any] | None = None) -> Provenance:
        """Provenance for the tables' metadata.

        Args:
            made: versions and time; nothing where it is for a comparison only.
        """
        return Provenance(self.to_json(), made or {})


def _part(kind: type[Part], content: Any) -> tuple[Part | None, dict[str, Any]]:
    """(a nested part or None, what of it this version does not know)."""
    if content is None:
        return None, {}
    if not isinstance(content, Mapping):
        raise TypeError(f"expected the fields of {kind.__name__}, found {content!r:.80}")
    names = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name in names
    }
    return kind(**known), {name: value for name, value in content.items() if name not in names}


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in content.items()
    }


def _merged(ours: Mapping[str, Any], unknown: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**ours}
    for name, value in unknown.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged
