"""Answers brought to one form, as VQA-v2's and TextVQA's own scripts do it.

Both differ in small things that decide scores, and both have slips that are part of the rule: a
full stop behind a digit goes, and at most 32 full stops go in one text.
"""

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d", re.ASCII)
_FULL_STOP = re.compile(r"\.(?!\d)", re.ASCII)
_MOST_FULL_STOPS = 32

_NUMBERS = MappingProxyType(
    {"none": "0"}
    | {
        word: str(number)
        for number, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        )
    }
)
_ARTICLES = frozenset(("a", "an", "the"))

_PAIRS = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's
howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll
maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've
mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've
she'dve=she'd've shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've
shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd
someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's
somethingd=something'd somethingd've=something'd've something'dve=something'd've
somethingll=something'll thats=that's thered=there'd thered've=there'd've there'dve=there'd've
therere=there're theres=there's theyd=they'd theyd've=they'd've they'dve=they'd've
theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's
whatve=what've whens=when's whered=where'd wheres=where's whereve=where've whod=who'd
whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're
whys=why's wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've
wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've
youll=you'll youre=you're youve=you've
"""
_CONTRACTIONS = MappingProxyType(dict(pair.split("=") for pair in _PAIRS.split()))
"""Forms without their apostrophe and the forms that the scripts put in their place. Texts are in
lower case by then, so the table's entries for "Im" and the like can never be met and are left out;
one entry goes the other way round in the original."""


def vqa_form(text: str) -> str:
    """VQA-v2's form of an answer: marks, then full stops, then numbers, articles, contractions.

    Source: VQAEval.processPunctuation and processDigitArticle of the VQA evaluation code.
    """
    return _words(_punctuation(text))


def m4c_form(text: str) -> str:
    """TextVQA's form of an answer: lower case and commas first, then as VQA-v2.

    Source: EvalAIAnswerProcessor of MMF's M4C evaluator.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def one_line(text: str) -> str:
    """Line ends and tabs become blanks, outer blanks go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def soft_accuracy(said: str, answers: Sequence[Any], texts: Sequence[str]) -> float:
    """Agreement with ten people: the mean over leaving each out of min(matches / 3, 1).

    Args:
        said: the prediction, in the form of the answers.
        answers: what tells people apart; who equals another is left out together with them.
        texts: what each of them answered.
    """
    scores = []
    for one in answers:
        matches = sum(
            text == said for other, text in zip(answers, texts, strict=True) if other != one
        )
        scores.append(min(1.0, matches / 3))
    return sum(scores) / len(scores)


def _punctuation(text: str) -> str:
    # Both questions are asked of the text as it came, whatever has been changed since.
    number = _DIGITS_WITH_COMMA.search(text) is not None
    out = text
    for mark in _MARKS:
        if f"{mark} " in text or f" {mark}" in text or number:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return _FULL_STOP.sub("", out, _MOST_FULL_STOPS)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
