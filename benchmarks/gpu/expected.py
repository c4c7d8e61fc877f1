"""What is expected of a GPU, in one place: the report and docs/gpu.md are written from it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Expectation:
    """A bound on a figure, and why we believe it.

    Attributes:
        figure: name of the figure.
        least: it should be at least this.
        unit: unit of both.
        why: the reckoning behind it; none of it was measured.
    """

    figure: str
    least: float
    unit: str
    why: str


EXPECTED = (
    Expectation(
        "teacher: best share of the ceiling",
        0.80,
        "",
        "99 % of the teacher's 2,264 GFLOP per crop are large matrix products; attention is 1 %. "
        "What is lost lies between them: norms and GELU, which torch.compile fuses",
    ),
    Expectation(
        "teacher: compiled against eager",
        1.10,
        "times",
        "norms, GELU and residuals are memory traffic of about a tenth of eager's time",
    ),
    Expectation(
        "teacher: CUDA graph against eager",
        1.00,
        "times",
        "a batch of 256 takes seconds, so starting kernels costs nothing worth saving",
    ),
    Expectation(
        "teacher: fp8 against bf16, compiled",
        1.30,
        "times",
        "fp8 products are up to twice as fast; scaling the activations takes some of it back",
    ),
    Expectation("teacher: cosine of fp8 to bf16, worst", 0.999, "", "the bound for using it"),
    Expectation("teacher: cosine of auto's type to float32, worst", 0.999, "", "as above"),
    Expectation(
        "engine: GPU busy share",
        0.99,
        "",
        "one core makes thousands of crops per second, the teacher takes some hundred",
    ),
    Expectation(
        "training tap-l stage 1: best MFU",
        0.50,
        "",
        "85 % of the work is the encoder's products; the decoder's attention is bound by memory",
    ),
    Expectation(
        "training tap-l stage 1: compiled against eager",
        1.15,
        "times",
        "norms, GELU, drop path and residuals of 24 blocks fuse",
    ),
    Expectation(
        "training tap-l stage 1: recompute against none",
        0.75,
        "times",
        "a forward pass more is a third more work",
    ),
    Expectation(
        "decoding: prompts/s",
        5000,
        "prompts/s",
        "2.9 GFLOP per prompt, 15 TFLOP/s in all: memory for 4,096 image cells per prompt decides",
    ),
    Expectation(
        "decoding: captions/s",
        1000,
        "captions/s",
        "38 steps for a batch of 256: the limit is the time to start kernels, about 40 per step "
        "and block, which a CUDA graph removes",
    ),
)

SHOULD_BE_ZERO = (
    "teacher: embeddings not finite, fp16",
    "teacher: embeddings not finite, bf16",
    "tests: failed",
)
"""Figures whose only good value is 0."""


def expected_against_measured(figures: Mapping[str, Mapping[str, object]]) -> str:
    """The table as Markdown; what was not measured says so."""
    lines = ["| figure | expected | measured | why |", "|---|---|---|---|"]
    for e in EXPECTED:
        found = figures.get(e.figure)
        if found is None:
            measured = "not measured"
        else:
            value = float(str(found["value"]))
            measured = f"{value:,.4g} {e.unit}".strip() + (
                "" if value >= e.least else ", **missed**"
            )
        bound = f"at least {e.least:,.4g} {e.unit}".strip()
        lines.append(f"| {e.figure} | {bound} | {measured} | {e.why} |")
    for name in SHOULD_BE_ZERO:
        found = figures.get(name)
        measured = "not measured" if found is None else f"{float(str(found['value'])):,.0f}"
        late = "" if measured in ("not measured", "0") else ", **missed**"
        lines.append(f"| {name} | 0 | {measured}{late} | any other number is a fault |")
    return "\n".join(lines)
