"""How good captions are on images the model has not seen.

Where there are references: CIDEr and its like, a box per question, all phrases of the same box its
references. Where the sample world's truth table says what a region is: does the caption name it,
and its colour, in exactly these words? Captions of the sample world are "a small red apple left of
a banana": what is said of the region itself stands before the first relation.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tap_engine.model.picture import PAIR_PX, Mark, Prompt, draw_marks, region_mark
from tap_engine.model.predictor import Tap
from tap_engine.schemas.truth import OBJECT, STUFF, Thing, Truth
from tap_engine.train.data.store_reader import StoredImage, StoreReader
from tap_engine.train.evaluation.scoring_captions import PLAIN, score_captions
from tap_engine.train.held_out_data import boxes_xyxy_of, pixels_of, things_of

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
        images: how many images they are from.
    """

    captions: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    things: list[Thing | None] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    images: int = 0

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
        return out | self.scores()

    def scores(self) -> dict[str, float]:
        """CIDEr and others over the questions with references, on plainly lower-cased words."""
        asked = [i for i, texts in enumerate(self.references) if texts]
        if not asked:
            return {}
        found = score_captions(
            {i: self.references[i] for i in asked},
            {i: self.captions[i] for i in asked},
            java=False,
        )
        return {f"caption_{name}": found.metrics[name] for name in _SCORES}

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
        for name in _SCORES:
            if f"caption_{name}" in found:
                value = 100 * found[f"caption_{name}"]
                asked = sum(bool(texts) for texts in self.references)
                lines.append(f"{'caption ' + name + f' ({PLAIN})':44}{value:>9.1f}{asked:>9,}")
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
    tap: Tap, reader: StoreReader, *, images: int, split: str = "", truth: Truth | None = None
) -> CaptionFigures:
    """Writes captions for the boxes of a store's first images.

    Args:
        tap: the model, with a tokenizer.
        reader: the store, of `open_measured`.
        images: how many images at most.
        split: images of another split are left out; see `StreamConfig.split`.
        truth: what regions are. Without references, only objects and surfaces are asked about.
    """
    figures = CaptionFigures()
    for stored in reader.first(images, split):
        questions = _questions(stored, truth)
        figures.images += 1
        if not questions:
            continue
        tap.set_image(pixels_of(stored))
        named = tap.concepts is not None
        boxes = boxes_xyxy_of(stored)[[question.row for question in questions]]
        for question, region in zip(questions, tap.predict(boxes=boxes, top_k=1), strict=True):
            figures.captions.append(region.caption or "")
            figures.references.append(question.references)
            figures.things.append(question.thing)
            if named:
                figures.named.append(region.concepts[0].name)
    return figures


@dataclass(slots=True)
class _Question:
    row: int
    references: list[str]
    thing: Thing | None


def _questions(stored: StoredImage, truth: Truth | None) -> list[_Question]:
    # Regions with the same box are one question.
    things = things_of(truth, stored) if truth is not None else [None] * len(stored.regions)
    has = "caption" in stored.regions.column_names
    texts = stored.regions["caption"].to_pylist() if has else [None] * len(things)
    boxes = stored.regions["bbox_xywh"].to_pylist()
    found: dict[tuple[float, ...], _Question] = {}
    for row, (box, text, thing) in enumerate(zip(boxes, texts, things, strict=True)):
        if text is None and (thing is None or thing.kind not in (OBJECT, STUFF)):
            continue
        question = found.setdefault(tuple(box), _Question(row, [], thing))
        question.references += [text] if text else []
    return list(found.values())


def noun_of(thing: Thing) -> str:
    """The concept as people say it: "octopus (animal)" -> "octopus"."""
    return thing.concept.partition(" (")[0]


def names_it(caption: str, thing: Thing, tints: frozenset[str]) -> bool:
    """Whether what the caption says of the region is its noun, after article, size and colour."""
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


def draw_captions(tap: Tap, stored: StoredImage, most: int = 6) -> tuple[Image.Image, Image.Image]:
    """Draws one image twice.

    Args:
        tap: the model.
        stored: an image with captions.
        most: number of regions shown, the first.

    Returns:
        The boxes with their phrases, and what the model predicts from the boxes.
    """
    rgb = pixels_of(stored)
    questions = [q for q in _questions(stored, None) if q.references][:most]
    boxes = boxes_xyxy_of(stored)[[question.row for question in questions]]
    nothing = np.zeros(rgb.shape[:2], np.bool_)
    true = [
        Mark(mask=nothing, name=phrase, text=phrase, prompt=Prompt(box_xyxy=box))
        for phrase, box in zip((q.references[0] for q in questions), boxes.tolist(), strict=True)
    ]
    tap.set_image(rgb)
    found = tap.predict(boxes=boxes) if len(boxes) else []
    predicted = [
        region_mark(region, Prompt(box_xyxy=box), number=number)
        for number, (region, box) in enumerate(zip(found, boxes.tolist(), strict=True))
    ]
    return draw_marks(rgb, true, side_px=PAIR_PX), draw_marks(rgb, predicted, side_px=PAIR_PX)
