"""BLEU, METEOR, ROUGE-L and CIDEr of captions, as pycocoevalcap computes them.

PTB tokenisation and METEOR need Java. Without it BLEU, ROUGE-L and CIDEr still come, on plainly
lower-cased words, and the scores say so: the two kinds of text processing are never compared.
SPICE is left out, its scorer downloads a gigabyte when it is constructed.
"""

import contextlib
import importlib.util
import os
import shutil
import string
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tap_engine.schemas.errors import ConfigError, SchemaError, SourceError

PTB = "ptb"
PLAIN = "lower-cased words"

JAVA_HINT = (
    "no Java: without it there is no METEOR and no PTB tokenisation, and BLEU, ROUGE-L and CIDEr "
    "are of lower-cased words (Debian: apt-get install default-jre-headless)"
)

CAPTION_EVAL_HINT = 'caption metrics need pycocoevalcap: pip install "tap-engine[caption-eval]"'

Texts = Mapping[int | str, Sequence[str]]
Tokens = Mapping[int | str, list[str]]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Corpus scores.

    Attributes:
        metrics: BLEU@1..4, METEOR (only with Java), ROUGE-L, CIDEr; as the papers' scripts give
            them (CIDEr 1.507 is printed as 150.7).
        text_processing: `PTB` or `PLAIN`.
        notes: what a reader must know, such as what is missing and why.
    """

    metrics: dict[str, float]
    text_processing: str
    notes: tuple[str, ...] = ()


def score_captions(
    references: Texts,
    captions: Mapping[int | str, str],
    *,
    java: bool | None = None,
    meteor: bool = True,
) -> CaptionScores:
    """Score one caption for each region.

    Args:
        references: region -> its reference texts, one or more; CIDEr's document frequencies come
            from all of them.
        captions: region -> what the model said; exactly the regions of `references`.
        java: use Java; by default where `java` is on PATH.
        meteor: count METEOR where there is Java; it takes 2 GB of memory.

    Raises:
        SchemaError: a region lacks its caption or its references, or a caption no region asked for.
        ConfigError: pycocoevalcap is not installed.
        SourceError: Java failed at the start; METEOR alone missing is a note.
    """
    if not can_score_captions():
        raise ConfigError(CAPTION_EVAL_HINT)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    _require_same_regions(references, captions)
    java = shutil.which("java") is not None if java is None else java
    keys = list(references)
    candidate_lines = [captions[key] for key in keys]
    reference_lines = [text for key in keys for text in references[key]]
    lines = candidate_lines + reference_lines
    tokenised = _ptb_tokens(lines) if java else [_plain_tokens(line) for line in lines]
    candidates = {key: [text] for key, text in zip(keys, tokenised, strict=False)}
    rest = iter(tokenised[len(keys) :])
    truths = {key: [next(rest) for _ in references[key]] for key in keys}

    bleu, _ = Bleu(4).compute_score(truths, candidates, verbose=0)
    metrics = {f"BLEU@{n}": float(score) for n, score in enumerate(bleu, start=1)}
    notes = [] if java else [JAVA_HINT]
    if java and meteor:
        try:
            metrics["METEOR"] = _meteor(truths, candidates)
        except SourceError as error:
            notes.append(f"no METEOR: {error}")
    metrics["ROUGE-L"] = float(Rouge().compute_score(truths, candidates)[0])
    metrics["CIDEr"] = float(Cider().compute_score(truths, candidates)[0])
    return CaptionScores(
        metrics=metrics,
        text_processing=PTB if java else PLAIN,
        notes=tuple(notes),
    )


def _require_same_regions(references: Texts, captions: Mapping[int | str, str]) -> None:
    if not references:
        raise SchemaError("ground truth has no captions; is it the file of another task?")
    if missing := references.keys() - captions.keys():
        raise SchemaError(
            f"{len(missing):,} of {len(references):,} regions have no caption, such as "
            f"{min(missing, key=str)!r}; every region of the truth needs exactly one"
        )
    if extra := captions.keys() - references.keys():
        raise SchemaError(
            f"{len(extra):,} captions are of regions that the truth does not have, such as "
            f"{min(extra, key=str)!r}; is it the truth of another split?"
        )
    if empty := [key for key, texts in references.items() if not texts]:
        raise SchemaError(f"region {empty[0]!r} of the truth has no reference text")


def can_score_captions() -> bool:
    """Whether pycocoevalcap is installed."""
    return importlib.util.find_spec("pycocoevalcap") is not None


def _ptb_tokens(lines: Sequence[str]) -> list[str]:
    """Penn Treebank tokens, lower-cased, punctuation dropped: pycocoevalcap's own jar and list.

    Its wrapper writes a file beside the jar, which fails in a read-only installation, and shifts
    all later captions by one where a text holds a Unicode line separator.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as ptb

    jar = Path(ptb.__file__).with_name(ptb.STANFORD_CORENLP_3_4_1_JAR)
    options = ["-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    options += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(_one_line(line) + "\n" for line in lines)
    with _english_java():
        done = subprocess.run(["java", *options], input=text.encode(), capture_output=True)
    found = done.stdout.decode(errors="replace").split("\n")[: len(lines)]
    if done.returncode or len(found) < len(lines):
        said = done.stderr.decode(errors="replace")[-400:]
        raise SourceError(f"the PTB tokeniser stopped with {done.returncode}: {said}")
    dropped = frozenset(ptb.PUNCTUATIONS)
    return [" ".join(w for w in line.split(" ") if w and w not in dropped) for line in found]


@contextlib.contextmanager
def _english_java() -> Iterator[None]:
    """Java that is started in here writes 0.5 and not 0,5, whatever the machine's language is."""
    name, before = "JAVA_TOOL_OPTIONS", os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ[name] = f"{before or ''} -Duser.language=en -Duser.country=US".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _one_line(text: str) -> str:
    """Every line break that Python or Java knows becomes a space: lines in are lines out."""
    return " ".join(text.splitlines())


def _plain_tokens(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _meteor(truths: Tokens, candidates: Tokens) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    with _english_java():
        scorer = Meteor()
    try:
        return float(scorer.compute_score(truths, candidates)[0])
    except (OSError, ValueError) as error:
        if scorer.lock.locked():  # it keeps its lock when it fails, and then waits for it to end
            scorer.lock.release()
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()
        raise SourceError(
            f"METEOR's Java process stopped ({error}); it asks for 2 GB of memory, are they free?"
        ) from error
