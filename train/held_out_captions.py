"""Measures captions on images the model has not seen.

Where there are references: CIDEr and its like, one question per box, with all phrases of the same
box as its references, counted as `tap-train eval --references box` counts them. Where the sample
world's truth table says what a region is: does the caption name it, and its colour, in exactly
these words? Captions of the sample world are "a small red apple left of a banana": what is said of
the region itself stands before the first relation.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tap_engine.schemas.truth import OBJECT, STUFF, Thing, Truth
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.evaluation.evaluation import Question
from tap_engine.train.evaluation.region_model import TapRegions, Wanted
from tap_engine.train.evaluation.scoring_captions import (
    CAPTION_EVAL_HINT,
    CaptionScores,
    can_score_captions,
    score_captions,
)
from tap_engine.train.held_out_data import pixels_of, things_of

_RELATION = re.compile(r"\b(left|right|above|below|on|in)\b")
_BEFORE_COLOUR = frozenset(("a", "an", "small", "large"))

_SCORES = ("CIDEr", "BLEU@4", "ROUGE-L")


@dataclass(slots=True)
class CaptionFigures:
    """Captions beside what they should say.

    Attributes:
        captions: what the model wrote, a question each.
        references: phrases of the same region; empty without any.
        things: what the region is; None where that is not known.
        named: the model's top concept; empty without a concept table.
        images: the number of images they are from.
    """

    captions: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    things: list[Thing | None] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    images: int = 0
    _scores: CaptionScores | None = field(default=None, init=False, repr=False)

    def summary(self) -> dict[str, float]:
        """Shares in [0, 1] by "caption_noun/object" and so on, and scores as the papers count."""
        out: dict[str, float] = {}
        known = [(i, thing) for i, thing in enumerate(self.things) if thing is not None]
        for kind in (OBJECT, STUFF):
            of_kind = [(i, thing) for i, thing in known if thing.kind == kind]
            if not of_kind:
                continue
            nouns = [noun_of(thing) for _, thing in of_kind]
            said = [names_it(self.captions[i], thing, self._tints) for i, thing in of_kind]
            out[f"caption_noun/{kind}"] = float(np.mean(said))
            if self.named:
                top = [self.named[i] == thing.concept for i, thing in of_kind]
                out[f"caption_noun_top1/{kind}"] = float(np.mean(top))
            out[f"caption_noun_most_frequent/{kind}"] = _largest_share(nouns)
        tinted = [(i, thing) for i, thing in known if thing.kind == OBJECT and thing.tint]
        if tinted:
            said = [colour_said(self.captions[i]) == thing.tint for i, thing in tinted]
            out["caption_colour/object"] = float(np.mean(said))
            tints = [str(thing.tint) for _, thing in tinted]
            out["caption_colour_most_frequent/object"] = _largest_share(tints)
        if self.scores is not None:
            out |= {f"caption_{name}": self.scores.metrics[name] for name in _SCORES}
        return out

    @property
    def scores(self) -> CaptionScores | None:
        """CIDEr and others over the questions with references; None where they cannot be counted.

        Counted once. Without METEOR, whose Java process takes 2 GB beside a training run.
        """
        asked = [i for i, texts in enumerate(self.references) if texts]
        if self._scores is None and asked and can_score_captions():
            references: dict[int | str, list[str]] = {i: self.references[i] for i in asked}
            said: dict[int | str, str] = {i: self.captions[i] for i in asked}
            self._scores = score_captions(references, said, meteor=False)
        return self._scores

    def table(self) -> str:
        """The summary as text."""
        found, lines = self.summary(), []
        counts = Counter(thing.kind for thing in self.things if thing is not None)
        tinted = sum(bool(t and t.tint and t.kind == OBJECT) for t in self.things)
        for name, text in CAPTION_QUESTIONS.items():
            for kind in (OBJECT, STUFF):
                key = f"{name}/{kind}"
                if key in found:
                    number = tinted if "colour" in name else counts[kind]
                    lines.append(f"{text + ', ' + kind:44}{found[key]:>9.3f}{number:>9,}")
        asked = sum(bool(texts) for texts in self.references)
        if self.scores is not None:
            for name in _SCORES:
                row = f"caption {name} ({self.scores.text_processing})"
                lines.append(f"{row:44}{100 * self.scores.metrics[name]:>9.1f}{asked:>9,}")
        elif asked:
            lines.append(f"no CIDEr: {CAPTION_EVAL_HINT}")
        title = f"captions, box prompts ({self.images} images)"
        return "\n".join([f"{title:44}{'':>9}{'regions':>9}", *lines])

    @property
    def _tints(self) -> frozenset[str]:
        return frozenset(thing.tint for thing in self.things if thing is not None and thing.tint)


CAPTION_QUESTIONS: Mapping[str, str] = {
    "caption_noun": "caption has the exact noun",
    "caption_noun_top1": "  the model's top concept is it",
    "caption_noun_most_frequent": "  always the most frequent",
    "caption_colour": "caption has the exact colour",
    "caption_colour_most_frequent": "  always the most frequent",
}
"""Questions in the order of the report; baselines are indented below what they belong to."""


def measure_captions(
    model: TapRegions,
    reader: StoreReader,
    *,
    images: int,
    split: str = "",
    truth: Truth | None = None,
) -> CaptionFigures:
    """Writes captions for the boxes of a store's first images.

    Args:
        model: asked as the evaluation asks it; with a tokenizer, and class names where it has any.
        reader: the store, of `open_measured`.
        images: the number of images, at most.
        split: images of another split are left out; see `StreamConfig.split`.
        truth: what regions are. Without references, only objects and surfaces are asked about.
    """
    figures = CaptionFigures()
    for stored in reader.first(images, split):
        questions = questions_of(stored, truth)
        figures.images += 1
        if not questions:
            continue
        model.set_image(pixels_of(stored))
        rows = stored.regions.take([question.row for question in questions])
        asked = Question(stored.image_id, stored.size_hw, rows, model)
        parts = list(asked.boxed(Wanted(caption=True, embedding=model.names_classes)))
        figures.captions += [text for part in parts for text in part.captions]
        figures.references += [question.references for question in questions]
        figures.things += [question.thing for question in questions]
        if model.names_classes:
            best = model.probabilities([part.embeddings for part in parts]).argmax(axis=1)
            figures.named += [model.class_names[place] for place in best]
    return figures


@dataclass(slots=True)
class CaptionQuestion:
    """A box: its first row of the image's regions, all phrases of the same box, what it is."""

    row: int
    references: list[str]
    thing: Thing | None


def questions_of(stored: StoredImage, truth: Truth | None) -> list[CaptionQuestion]:
    """Questions about an image: regions with the same box are one question.

    Args:
        stored: the image.
        truth: what regions are, or None.
    """
    things = things_of(truth, stored) if truth is not None else [None] * len(stored.regions)
    has = "caption" in stored.regions.column_names
    texts = stored.regions["caption"].to_pylist() if has else [None] * len(things)
    boxes = stored.regions["bbox_xywh"].to_pylist()
    found: dict[tuple[float, ...], CaptionQuestion] = {}
    for row, (box, text, thing) in enumerate(zip(boxes, texts, things, strict=True)):
        if text is None and (thing is None or thing.kind not in (OBJECT, STUFF)):
            continue
        question = found.setdefault(tuple(box), CaptionQuestion(row, [], thing))
        question.references += [text] if text else []
    return list(found.values())


def noun_of(thing: Thing) -> str:
    """The concept as people say it: "octopus (animal)" -> "octopus"."""
    return thing.concept.partition(" (")[0]


def names_it(caption: str, thing: Thing, tints: frozenset[str]) -> bool:
    """True if the caption's noun, after article, size and colour, is the region's."""
    words = _own_words(caption)
    noun = noun_of(thing).split()
    before = words[: len(words) - len(noun)]
    return words[len(before) :] == noun and set(before) <= _BEFORE_COLOUR | tints


def colour_said(caption: str) -> str | None:
    """The word in the colour's place, "red" of "a small red apple"; None where only a noun is."""
    words = _own_words(caption)
    while words and words[0] in _BEFORE_COLOUR:
        words = words[1:]
    return words[0] if len(words) > 1 else None


def _own_words(caption: str) -> list[str]:
    return _RELATION.split(caption.lower(), maxsplit=1)[0].split()


def _largest_share(words: Sequence[str]) -> float:
    return max(Counter(words).values()) / len(words)
