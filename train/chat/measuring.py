"""What a chat model knows of held-out conversations, by what costs little: no text is generated.

Greedy decoding gives an answer exactly if each of its tokens, the end token included, is the most
probable one, so one forward pass tells whether it would. Figures are by type of question, where the
conversations' ids end with one ("12/3/colour"), beside the most frequent answer of that type, and
with the images of other conversations.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.train.chat.stream import ChatSequences, ChatStream

OWN, OTHER = "own image", "another's image"


@dataclass(slots=True)
class ChatMeasure:
    """Figures of one model.

    Attributes:
        loss: mean loss of a learned token, by which image was shown.
        right: share of answers that are exact, by image and type; "all" is all of them.
        majority: share of the most frequent answer, by type.
        answers: how many there are, by type.
    """

    loss: dict[str, float] = field(default_factory=dict)
    right: dict[str, dict[str, float]] = field(default_factory=dict)
    majority: dict[str, float] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """A table for people."""
        for shown, loss in self.loss.items():
            yield f"loss of a token, {shown}: {loss:.3f}"
        yield f"{'exact answers':<16}{'of':>6}{'majority':>10}" + "".join(
            f"{shown:>18}" for shown in self.right
        )
        for kind in sorted(self.answers, key=lambda name: (name == "all", name)):
            row = "".join(f"{self.right[shown][kind]:>18.3f}" for shown in self.right)
            yield f"{kind:<16}{self.answers[kind]:>6,}{self.majority[kind]:>10.3f}{row}"


@torch.inference_mode()
def measure_chat(
    model: ChatModel, stream: ChatStream, *, at_once: int = 4, limit: int = 0
) -> ChatMeasure:
    """Measure a model on the conversations of a stream.

    Args:
        model: on its device.
        stream: held-out conversations, in the table's order.
        at_once: conversations of a forward pass.
        limit: the first so many; 0 for all.
    """
    model.eval()
    rows = range(min(limit or stream.rows, stream.rows))
    truth: defaultdict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    found = ChatMeasure()
    for shown in (OWN, OTHER):
        hits: defaultdict[str, list[bool]] = defaultdict(list)
        total, tokens = 0.0, 0
        for start in range(0, len(rows), at_once):
            numbers = rows[start : start + at_once]
            sequences = stream.sequences(np.array(numbers, np.int64))
            if shown == OTHER:
                # The images of conversations half a table away, so that no scene is its own.
                far = [(n + max(len(rows) // 2, 1)) % len(rows) for n in numbers]
                sequences.images = _images_like(stream, sequences, far)
            batch = sequences.batch
            if sequences.images is not None:
                batch.features = model.encode_images(sequences.images.to(_device(model)))
            logits, targets = model.target_logits(batch.to(_device(model)))
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            tokens += len(targets)
            good = (logits.argmax(-1) == targets).tolist()
            place = 0
            for number, row in zip(numbers, batch.targets, strict=True):
                kind = stream.kind_of(number)
                for answer in _answers(row.tolist(), stream.tokens.eos_id):
                    right = all(good[place : place + len(answer)])
                    place += len(answer)
                    for name in {kind, "all"}:
                        hits[name].append(right)
                        if shown == OWN:
                            truth[name][answer] += 1
        found.loss[shown] = total / tokens if tokens else math.nan
        found.right[shown] = {name: sum(h) / len(h) for name, h in hits.items()}
    for name, counts in truth.items():
        found.answers[name] = counts.total()
        found.majority[name] = counts.most_common(1)[0][1] / counts.total()
    kinds = [name for name in truth if name != "all"]
    # Whoever knows each type's most frequent answer, and the type, gets this much of all.
    best = sum(truth[kind].most_common(1)[0][1] for kind in kinds)
    found.majority["all"] = best / max(found.answers.get("all", 0), 1)
    return found


def _answers(targets: list[int], end: int) -> Iterator[tuple[int, ...]]:
    """Each answer's tokens with its end token."""
    answer: list[int] = []
    for target in targets[1:]:
        if target >= 0:
            answer.append(target)
            if target == end:
                yield tuple(answer)
                answer = []


def _images_like(stream: ChatStream, own: ChatSequences, rows: list[int]) -> Any:
    """As many images as the sequences have, of other rows."""
    if own.images is None:
        return None
    others = stream.images(np.array(rows, np.int64))
    pool = [] if others is None else list(others.split(1))
    wanted = len(own.images)
    pool += [own.images[n : n + 1] for n in range(len(pool), wanted)]
    return torch.cat(pool)[:wanted]


def _device(model: ChatModel) -> torch.device:
    return next(model.projector.parameters()).device
