"""A training step on made-up batches: speed, MFU, memory, and what each choice changes."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.flops import step_gflop
from tap_engine.model import attention_backends as backends
from tap_engine.model.config import PRESETS
from tap_engine.model.tap import TapModel
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.config import TrainConfig
from tap_engine.train.data.examples import Batch
from tap_engine.train.objective import Objective
from tap_engine.train.opening import freeze
from tap_engine.train.optim import make_optimizer
from tap_engine.train.recipes import recipe
from tap_engine.train.terms import count

CONCEPTS = 2560
RECIPES = {"1": "stage1", "2": "stage2", "captions": "caption"}


def config_of(bench: Bench, size: str, stage: str) -> TrainConfig:
    """The recipe of a model and stage; in a dry run on the tiny model."""
    config = recipe(f"vit_{size}_{RECIPES[stage]}")
    config = replace(config, train=replace(config.train, recompute=False))
    if not bench.dry:
        return config
    tiny = PRESETS["tiny"]
    model = replace(
        tiny, image_size=64, decoder=replace(tiny.decoder, sem_embed_dim=16), text=tiny.text
    )
    prompts = replace(config.prompts, per_image=2)
    return replace(config, model=model, prompts=prompts)


def made_up_batch(bench: Bench, config: TrainConfig, images: int) -> Batch:
    """Images of noise with rectangles as regions, on the bench's device."""
    g = torch.Generator().manual_seed(bench.seed)
    regions, size, side = config.prompts.per_image, config.model.image_size, config.model.mask_size
    corners = torch.rand(images, regions, 2, 2, generator=g).sort(2).values
    low, high = corners.unbind(2)
    high = (low + 0.05).maximum(high)
    place = (torch.arange(side) + 0.5) / side
    inside = [(place >= low[..., i, None]) & (place <= high[..., i, None]) for i in (0, 1)]
    masks = (inside[1].unsqueeze(-1) & inside[0].unsqueeze(-2)).to(torch.uint8) * 255
    yes = torch.ones(images, regions, dtype=torch.bool)
    words = torch.randint(3, config.model.text.vocab_size, (images, regions, 40), generator=g)
    if config.model.text.max_seq_len < 41:
        words = words[..., : config.model.text.max_seq_len - 1]
    learns_words = config.loss.caption > 0
    embeds = torch.randn(images, regions, config.model.decoder.sem_embed_dim, generator=g).half()
    batch = Batch(
        images=torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=g),
        content_hw=torch.tensor([[size, size]] * images),
        masks=masks,
        has_mask=yes,
        boxes_xyxy=torch.cat([low, high], -1) * size,
        keys=torch.arange(images * regions).view(images, regions),
        seeds=torch.randint(1 << 40, (images, regions), generator=g),
        valid=yes,
        has_concepts=yes,
        embeddings=embeds,
        concept_ids=None,
        concept_probs=None,
        words=words if learns_words else None,
        image_ids=list(range(images)),
        problems=[],
    )
    return batch.to(torch.device(bench.device))


class Step:
    """A training step as the loop makes it, on one batch again and again."""

    def __init__(self, bench: Bench, config: TrainConfig, images: int) -> None:
        torch.manual_seed(bench.seed)
        width, device = config.model.decoder.sem_embed_dim, torch.device(bench.device)
        concepts = 12 if bench.dry else CONCEPTS
        names = tuple(f"concept {i}" for i in range(concepts))
        texts = torch.nn.functional.normalize(torch.randn(concepts, width), dim=-1)
        space = ConceptSpace(names, texts, texts, 100.0)
        self.bench, self.config = bench, config
        model = TapModel(config.model)
        self.objective = Objective(model, space, config.loss, config.prompts).to(device)
        model.set_activation_checkpointing(config.train.recompute)
        if config.train.channels_last:
            model.image_encoder.to(memory_format=torch.channels_last)
        freeze(self.objective, config.optim)
        self.objective.train()
        self.optimizer = make_optimizer(self.objective, config.optim)
        if config.train.compile:
            model.compile_parts(backend="eager" if bench.dry else "inductor")
        self.batch = made_up_batch(bench, config, images)
        self.totals = count([self.batch])
        fp16 = config.train.precision == "fp16" and bench.device == "cuda"
        self.scaler = torch.amp.GradScaler(bench.device, enabled=fp16)
        self.passes = 1

    def __call__(self) -> None:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = types.get(self.config.train.precision)
        for _ in range(self.passes):
            with torch.autocast(self.bench.device, dtype, enabled=dtype is not None):
                loss, _ = self.objective(self.batch, self.totals, 1)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def training(bench: Bench) -> None:
    """Stage 1 first and in every way, then stage 2 and captions, each for L and B."""
    best: dict[str, float] = {}

    def measure(name: str, size: str, stage: str, images: int = 1, **settings: Any) -> float:
        config = config_of(bench, size, stage)
        prompts = settings.pop("prompts", config.prompts.per_image)
        passes = settings.pop("passes", 1)
        config = replace(
            config,
            train=replace(config.train, **settings),
            prompts=replace(config.prompts, per_image=min(prompts, 2) if bench.dry else prompts),
        )
        images = 1 if bench.dry else images
        bench.reset_peak()
        step = Step(bench, config, images)
        step.passes = passes
        rate = images * passes / bench.seconds(step)
        label = f"training tap-{size} {'captions' if stage == 'captions' else f'stage {stage}'}"
        preset = "tiny" if bench.dry else f"tap-{size}"
        work = step_gflop(preset, stage, config.prompts.per_image) * 1e9
        mfu = rate * work / ceiling()
        note = f"MFU {mfu:.1%} of the measured ceiling, peak {bench.peak_gb():.1f} GB"
        bench.figure(f"{label}: {name}", rate, "images/s", note)
        best[label] = max(best.get(label, 0.0), mfu)
        bench.figure(f"{label}: best MFU", best[label], "")
        return rate

    found: dict[str, float] = {}

    def ceiling() -> float:
        if "bf16" not in found:
            found["bf16"] = bench.ceiling(torch.bfloat16)
        return found["bf16"]

    def against(name: str, changed: float, plain: float) -> None:
        bench.figure(f"training tap-l stage 1: {name}", changed / plain, "times")

    def main() -> None:
        found["plain"] = measure("eager bf16, 1 image", "l", "1")
        compiled = measure("compiled bf16, 1 image", "l", "1", compile=True)
        against("compiled against eager", compiled, found["plain"])

    def plain() -> float:
        if "plain" not in found:
            found["plain"] = measure("eager bf16, 1 image", "l", "1")
        return found["plain"]

    def recompute() -> None:
        rate = measure("eager bf16, recomputed", "l", "1", recompute=True)
        against("recompute against none", rate, plain())

    def kernels() -> None:
        for backend in backends.BACKENDS:
            reason = backends.missing(backend, torch.device(bench.device))
            if reason is not None:
                bench.result["skipped"][f"attention {backend}"] = reason
                continue
            with backends.using(backend, torch.device(bench.device)):
                measure(f"eager bf16, attention {backend}", "l", "1")

    def torch_kernels() -> None:
        bench.need_cuda("a choice among torch's kernels")
        from torch.nn.attention import SDPBackend, sdpa_kernel

        math = SDPBackend.MATH  # what a kernel cannot take must go somewhere
        for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            with sdpa_kernel([kernel, math]):
                measure(f"eager bf16, {kernel.name.lower()} alone", "l", "1", recompute=True)

    def memory() -> None:
        if bench.dry:
            counts: tuple[int, ...] = (1, 2)
        else:
            counts = (8, 16, 32, 64)
        for prompts in counts:
            measure(f"{prompts} prompts", "l", "1", prompts=prompts)
            bench.figure(f"training tap-l: peak memory, {prompts} prompts", bench.peak_gb(), "GB")

    def other_stages() -> None:
        for size, stage in (("b", "1"), ("l", "2"), ("l", "captions"), ("b", "2")):
            measure("compiled bf16, 1 image", size, stage, compile=True)
        measure("compiled bf16, 1 image", "b", "captions", compile=True)

    def larger() -> None:
        for images in (2, 4):
            measure(f"compiled bf16, {images} images", "l", "1", images, compile=True)

    bench.part("tap-l stage 1", main)
    bench.part("several images", larger)
    bench.part("recompute", recompute)
    bench.part("attention kernels", kernels)
    bench.part("other stages", other_stages)
    bench.part("memory against prompts", memory)
    bench.part("fp16", lambda: void(measure("eager fp16, 1 image", "l", "1", precision="fp16")))
    bench.part("accumulation", lambda: void(measure("4 passes a step", "l", "1", passes=4)))
    bench.part("torch's kernels", torch_kernels)
    bench.part("channels last", lambda: void(measure("NHWC", "l", "1", channels_last=True)))


def void(_: float) -> None:
    """A part has no result but its figures."""
