"""Forward, and forward with backward, of each part of TAP against a plain version, in one run.

    python -m benchmarks.model --preset tap-b --prompts 64            # on a CPU
    python -m benchmarks.model --preset tap-b --device cuda           # with the GPU's variants

On a GPU it adds bf16, compiled and (where installed) flash-attn variants, and states model FLOPs
against a matrix-product ceiling measured in the same run. The plain version is eager float32; for
"leaving out padding" it is ours with nothing left out.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain_tap
from tap_engine.model import attention_backends as backends
from tap_engine.model.config import PRESETS
from tap_engine.model.tap import TapModel

CAPTION_IDS = 39


@dataclass(frozen=True)
class Case:
    """One part of the model, as ours and plainly, on the same inputs."""

    part: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]


def cases(model: TapModel, prompts: int, device: str) -> Iterator[Case]:
    size, dim = model.config.image_size, model.config.embed_dim
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    points = torch.rand(1, prompts, 2, 2, generator=generator) * size
    embedding = torch.randn(1, dim, size // 16, size // 16, generator=generator)
    sem_tokens = torch.randn(prompts, dim, generator=generator)
    ids = torch.randint(
        0, model.config.text.vocab_size, (prompts, CAPTION_IDS), generator=generator
    )
    images, points, embedding, sem_tokens, ids = (
        x.to(device) for x in (images, points, embedding, sem_tokens, ids)
    )
    labels = torch.tensor([2, 3], device=device).expand(1, prompts, 2)
    yield Case(
        "image encoder",
        lambda: model.encode_image(images),
        lambda: plain_tap.encode(model, images),
    )
    yield Case(
        f"image decoder, {prompts} prompts",
        lambda: model.decode(embedding, points, labels).mask_logits,
        lambda: plain_tap.decode(model, embedding, points, labels)[0],
    )
    more = torch.rand(1, prompts, 10, 2, device=device) * size
    kinds = labels.repeat(1, 1, 5)
    kinds[..., 2:] = 1
    kinds[:, ::2, 4:] = 4  # half of the prompts are shorter
    yield Case(
        f"image decoder, {prompts} prompts of 10 points",
        lambda: model.decode(embedding, more, kinds).mask_logits,
        lambda: plain_tap.decode(model, embedding, more, kinds)[0],
    )
    code = model.prompt_encoder.grid_code((size // 16, size // 16))
    tokens = model.prompt_encoder(more, kinds).detach()
    every = torch.ones_like(kinds, dtype=torch.bool)
    yield Case(
        f"leaving out padding, {prompts} prompts",
        lambda: model.image_decoder(embedding, code, tokens, every).mask_logits,
        lambda: model.image_decoder(embedding, code, tokens).mask_logits,
    )
    yield Case(
        f"text decoder, {prompts} captions",
        lambda: model.caption_logits(sem_tokens, ids),
        lambda: plain_tap.caption_logits(model, sem_tokens, ids),
    )


@dataclass(frozen=True)
class Variant:
    """How ours is run."""

    name: str
    dtype: torch.dtype = torch.float32
    backend: str = "sdpa"
    compiled: bool = False


def variants(device: str) -> list[Variant]:
    if device == "cpu":
        return [Variant("ours, float32")]
    found = [
        Variant("ours, float32"),
        Variant("ours, bf16", torch.bfloat16),
        Variant("ours, bf16, compiled", torch.bfloat16, compiled=True),
    ]
    for backend in backends.BACKENDS[1:]:
        if backends.missing(backend, torch.device(device)) is None:
            found.append(Variant(f"ours, bf16, {backend}", torch.bfloat16, backend))
    return found


def seconds(step: Callable[[], object], repeats: int, device: str) -> float:
    """Median time of a run, after two for caches and compilers (on a CPU, one if there are more).

    Wall time on a GPU; on a CPU the process's own time over its threads, which other jobs on the
    machine disturb less.
    """
    times = []
    warm_up = 2 if device == "cuda" else min(repeats - 1, 1)
    for _ in range(repeats + warm_up):
        start = _now(device)
        step()
        times.append(_now(device) - start)
    return statistics.median(times[-repeats:]) / (
        1 if device == "cuda" else torch.get_num_threads()
    )


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def backward_step(forward: Callable[[], Tensor], model: TapModel) -> Callable[[], None]:
    def step() -> None:
        forward().float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best large square matrix product of this device."""
    best = 0.0
    for side in (4096, 8192) if device == "cuda" else (2048,):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * side**3 / seconds(lambda a=a, b=b: a @ b, 5, device))
    return best


def state_per_prompt(model: TapModel, recompute: bool) -> float:
    """Bytes kept for the backward pass of the image decoder, for each further prompt."""
    model.set_activation_checkpointing(recompute)
    sizes = []
    for prompts in (2, 4):  # one alone takes another path
        kept: dict[int, int] = {}

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        decoder = list(cases(model, prompts, "cpu"))[1]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = decoder.ours()
        sizes.append(sum(kept.values()))
        del out
    model.set_activation_checkpointing(False)
    return (sizes[1] - sizes[0]) / 2


def measure(model: TapModel, arguments: argparse.Namespace) -> None:
    device, repeats = arguments.device, arguments.repeats
    # Compiling is for good, so the compiled variants have a model of their own.
    models = {False: model}
    if any(variant.compiled for variant in variants(device)):
        models[True] = copy.deepcopy(model)
        models[True].compile_parts()
    ceilings = {
        dtype: matmul_ceiling(device, dtype)
        for dtype in {variant.dtype for variant in variants(device)}
    }
    for dtype, ceiling in ceilings.items():
        print(f"matrix-product ceiling, {dtype}: {ceiling / 1e12:.3f} TFLOP/s")
    print()
    print("| part | pass | version | s | times plain | GFLOP | of the ceiling |")
    print("|---|---|---|---|---|---|---|")
    for backward in (False, True):
        prompts = arguments.backward_prompts if backward else arguments.prompts
        by_model = {compiled: list(cases(m, prompts, device)) for compiled, m in models.items()}
        for index, case in enumerate(by_model[False]):
            if arguments.part and not case.part.startswith(arguments.part):
                continue
            ours = {compiled: found[index].ours for compiled, found in by_model.items()}
            measure_case(models, case, ours, backward, repeats, device, ceilings)


def measure_case(
    models: dict[bool, TapModel],
    case: Case,
    ours: dict[bool, Callable[[], Tensor]],
    backward: bool,
    repeats: int,
    device: str,
    ceilings: dict[torch.dtype, float],
) -> None:
    name = "forward + backward" if backward else "forward"
    with torch.set_grad_enabled(backward):
        if not backward:
            torch.testing.assert_close(case.ours(), case.plain(), atol=2e-2, rtol=1e-3)
        work = flops(case.ours) * (3 if backward else 1)
        plain = backward_step(case.plain, models[False]) if backward else case.plain
        base = seconds(plain, repeats, device)
        print(f"| {case.part} | {name} | plain float32 | {base:.4g} | 1.00 | | |", flush=True)
        for variant in variants(device):
            step = ours[variant.compiled]
            if backward:
                step = backward_step(step, models[variant.compiled])
            half = variant.dtype != torch.float32
            with (
                backends.using(variant.backend, torch.device(device)),
                torch.autocast(device, variant.dtype, enabled=half),
            ):
                spent = seconds(step, repeats, device)
            share = work / spent / ceilings[variant.dtype]
            print(
                f"| {case.part} | {name} | {variant.name} | {spent:.4g} | {base / spent:.2f} | "
                f"{work / 1e9:.1f} | {share:.1%} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--preset", default="tap-b", choices=sorted(PRESETS))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--backward-prompts", type=int, default=64, help="memory grows with it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--part", help="only parts whose name starts so")
    parser.add_argument("--memory", action="store_true", help="only state memory per prompt")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # float32 means float32 on a GPU too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = TapModel(PRESETS[arguments.preset]).eval()
    where = (
        torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"{platform.machine()} CPU, {arguments.threads} of {os.cpu_count()} threads"
    )
    print(f"{arguments.preset}, {model.config.image_size} px, {where}, torch {torch.__version__}")
    if arguments.memory:
        for recompute in (False, True):
            kept = state_per_prompt(model, recompute)
            how = "blocks recomputed" if recompute else "everything kept"
            print(f"state of the image decoder per prompt, float32, {how}: {kept / 2**20:.1f} MiB")
        return
    measure(model.to(arguments.device), arguments)


if __name__ == "__main__":
    main()
