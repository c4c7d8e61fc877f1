"""The list of things in the sample world: drawings and their concept names.

The list is a readable file (sample/concepts.tsv, a drawing per line); what the font could draw but
the list leaves out stands with its reason in sample/left_out.tsv. Nothing here draws.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tap_engine.schemas.errors import ConfigError, SchemaError
from tap_engine.schemas.vocabulary import DEFAULT_VOCABULARY, load_vocabulary

SAMPLE_DATA = Path(__file__).parent
"""Package data of the sample world: lists, artwork, rendered scenes, teacher."""

SURFACES = ("sky", "grass", "sand", "water", "wall", "snow", "wood", "brick", "road", "stone")
"""Concepts that are painted as surfaces; all are names of merged-2560."""

STUFF_GROUP = "stuff"

LEFT_OUT_REASONS = ("no-name", "unclear", "lookalike", "person", "symbol", "scene", "stuff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One drawing of one concept.

    Attributes:
        concept: its name in merged-2560.
        glyph: the character of the font that draws it.
        alias: the character's Unicode name; differs from the concept where the list says so.
        group: animal, food, vehicle, ...; reports break down by it.
        airborne: placed in the sky where a scene has one, else on the ground.
        article: "a", "an", or "" for names that take none; captions use it.
    """

    concept: str
    glyph: str
    alias: str
    group: str
    airborne: bool
    article: str


@cache
def drawings() -> tuple[Drawing, ...]:
    """Every drawing, in the order of the list, which is also the order of the sprite sheet.

    Raises:
        SchemaError: a line is malformed, names no concept, or repeats a glyph.
    """
    path = SAMPLE_DATA / "concepts.tsv"
    names = load_vocabulary(DEFAULT_VOCABULARY).ids
    found: dict[str, Drawing] = {}
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 6 or fields[4] not in ("ground", "air"):
            raise SchemaError(f"{path.name} line {number}: expected six fields, found {fields!r}")
        concept, glyph, alias, group, place, article = fields
        if concept not in names:
            raise SchemaError(f"{path.name} line {number}: {concept!r} is no concept of the list")
        if glyph in found:
            raise SchemaError(f"{path.name} line {number}: glyph {glyph} stands there twice")
        found[glyph] = Drawing(
            concept=concept,
            glyph=glyph,
            alias=alias,
            group=group,
            airborne=place == "air",
            article="" if article == "-" else article,
        )
    return tuple(found.values())


@cache
def concept_groups() -> dict[str, str]:
    """Group by concept, objects in the order of the list, then the stuff."""
    groups = {drawing.concept: drawing.group for drawing in drawings()}
    return groups | {name: STUFF_GROUP for name in SURFACES}


def select(groups: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Concepts of some groups (of all by default), each with the indices of its drawings.

    Raises:
        ConfigError: an unknown group.
    """
    known = sorted({drawing.group for drawing in drawings()})
    if unknown := sorted(set(groups) - set(known)):
        raise ConfigError(f"unknown concept group {unknown[0]!r}; known: {', '.join(known)}")
    chosen: dict[str, tuple[int, ...]] = {}
    for index, drawing in enumerate(drawings()):
        if not groups or drawing.group in groups:
            chosen[drawing.concept] = (*chosen.get(drawing.concept, ()), index)
    return chosen


def left_out() -> dict[str, tuple[str, str]]:
    """(Unicode name, reason) by glyph, for every drawing of the font that is not used."""
    path = SAMPLE_DATA / "left_out.tsv"
    rows = [line.split("\t") for _, line in _lines(path)]
    return {glyph: (name, reason) for glyph, name, reason in rows}


def plain_name(concept: str) -> str:
    """A concept as people say it: "octopus (animal)" -> "octopus"."""
    return concept.partition(" (")[0]


def _lines(path: Path) -> list[tuple[int, str]]:
    text = path.read_text("utf-8").splitlines()
    return [(n, line) for n, line in enumerate(text, 1) if line and not line.startswith("#")]
