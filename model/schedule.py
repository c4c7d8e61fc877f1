"""The learning rate at each step, for every training here: a linear rise, then cosine or steps."""

import math


def cosine_rate(
    step: int,
    *,
    peak: float,
    last: float,
    steps: int,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> float:
    """Rate of the update with 0-based index `step`.

    Args:
        step: 0 .. steps.
        peak: rate after the warm-up.
        last: rate at `steps`.
        steps: updates in all, warm-up included.
        warmup_steps: updates of linear rise; the last of them has the peak rate.
        warmup_from: start of the rise, as a share of `peak`.

    Source: the released TAP code's CosineLR (golden fixture 06); cosine to 1 % in the TAP paper,
    section 4.1.
    """
    if step < warmup_steps:
        risen = (step + 1) / warmup_steps
        return peak * (risen + (1 - risen) * warmup_from)
    share = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * share))


def stepped_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    milestones: tuple[float, ...],
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> float:
    """Rate of the update with 0-based index `step`: a tenth after each milestone.

    Args:
        step: 0 .. steps.
        peak: rate after the warm-up.
        steps: updates in all.
        milestones: shares of `steps`.
        warmup_steps: updates of linear rise; the last of them has the full rate.
        warmup_from: where the rise begins, over `peak`.
    """
    rate = peak * 0.1 ** sum(step >= round(share * steps) for share in milestones)
    risen = min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    return rate * (risen + (1 - risen) * warmup_from)
