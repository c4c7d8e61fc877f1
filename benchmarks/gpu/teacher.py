"""The teacher: EVA02-E-14-plus's image tower with random weights, 2,264 GFLOP per crop."""

import importlib.util
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench, Skip
from benchmarks.model import flops

NAME = "EVA02-E-14-plus"
TINY = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}


def tower(bench: Bench, dtype: torch.dtype) -> nn.Module:
    """The image tower, made on the device: on a CPU, five billion parameters take minutes."""
    with torch.device("meta"):
        model = _describe(bench.dry)
    model = model.to(dtype).to_empty(device=bench.device)
    generator = torch.Generator(bench.device).manual_seed(bench.seed)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.02, generator=generator)
        else:
            nn.init.constant_(p, float("norm" in name and name.endswith("weight")))
    for buffer in model.buffers():
        buffer.zero_()
    return model.eval().requires_grad_(False)


def _describe(dry: bool) -> nn.Module:
    import open_clip

    if not dry:
        return open_clip.create_model(NAME, pretrained=None, device="meta").visual
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=32, vision_cfg=TINY, text_cfg=text).visual


def pixels(bench: Bench, count: int, dtype: torch.dtype) -> Tensor:
    """Made-up crops, normalised."""
    side = 32 if bench.dry else 224
    generator = torch.Generator(bench.device).manual_seed(bench.seed)
    shape = (count, 3, side, side)
    return torch.randn(shape, generator=generator, device=bench.device).to(dtype)


def throughput(bench: Bench) -> None:
    """Crops per second and share of the measured ceiling, of each way to run it."""
    batch = 2 if bench.dry else 256
    half = torch.bfloat16
    with torch.device("meta"):
        model = _describe(bench.dry)
        work = flops(lambda: model(torch.empty(1, 3, *[32 if bench.dry else 224] * 2)))
    bench.figure("teacher: work per crop", work / 1e9, "GFLOP")
    ceilings: dict[torch.dtype, float] = {}
    best = {"share": 0.0}

    def ceiling(dtype: torch.dtype) -> float:
        if dtype not in ceilings:
            ceilings[dtype] = bench.ceiling(dtype)
            name = f"matrix-product ceiling, {str(dtype).removeprefix('torch.')}"
            bench.figure(name, ceilings[dtype] / 1e12, "TFLOP/s")
        return ceilings[dtype]

    def run(name: str, encode: Any, x: Tensor) -> float:
        with torch.inference_mode():
            spent = bench.seconds(lambda: encode(x), 3)
        share = work * len(x) / spent / ceiling(x.dtype)
        note = f"{share:.1%} of the ceiling, peak {bench.peak_gb():.1f} GB"
        bench.figure(f"teacher: {name}", len(x) / spent, "crops/s", note)
        best["share"] = max(best["share"], share)
        bench.figure("teacher: best share of the ceiling", best["share"], "")
        return len(x) / spent

    def eager(dtype: torch.dtype, name: str) -> None:
        run(f"eager {name}", tower(bench, dtype), pixels(bench, batch, dtype))

    def batches() -> None:
        model = tower(bench, half)
        for size in (1, 2) if bench.dry else (32, 64, 128, 512):
            run(f"eager bf16, batch {size}", model, pixels(bench, size, half))

    def compiled() -> None:
        model, x = tower(bench, half), pixels(bench, batch, half)
        plain = run("eager bf16, beside compiled", model, x)
        # The dry run has no time for a compiler; what it runs is traced all the same.
        fast = torch.compile(model, backend="eager" if bench.dry else "inductor")
        gain = run("compiled bf16", fast, x) / plain
        bench.figure("teacher: compiled against eager", gain, "times")

    def graph() -> None:
        bench.need_cuda("a CUDA graph")
        model, x = tower(bench, half), pixels(bench, batch, half)
        plain = run("eager bf16, beside the graph", model, x)
        with torch.inference_mode():
            model(x)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                model(x)
        gain = run("CUDA graph bf16", lambda _: captured.replay(), x) / plain
        bench.figure("teacher: CUDA graph against eager", gain, "times")

    def fed() -> None:
        feed(bench, tower(bench, half), batch)

    bench.part("eager bf16", lambda: eager(half, "bf16"))
    bench.part("compiled bf16", compiled)
    bench.part("eager fp16", lambda: eager(torch.float16, "fp16"))
    bench.part("crops made by the engine's code", fed)
    bench.part("batch sizes", batches)
    bench.part("CUDA graph", graph)


def crops(bench: Bench, count: int, side: int) -> np.ndarray:
    """[count, side, side, 3] uint8: the engine's crops of photograph-like images."""
    from benchmarks.crops import SIZE_HW, make_jpeg, make_masks
    from tap_engine.pipeline.crop import crop_regions, decode_image
    from tap_engine.schemas import rle
    from tap_engine.schemas.store_settings import CropConfig

    if bench.dry:
        return np.random.default_rng(bench.seed).integers(0, 255, (count, side, side, 3), np.uint8)
    rng = np.random.default_rng(bench.seed)
    config = CropConfig(size_px=side, mean_rgb=(0.48, 0.46, 0.41))
    parts = []
    while sum(map(len, parts)) < count:
        image = decode_image(make_jpeg(rng))
        runs = [rle.runs(counts, SIZE_HW) for counts in make_masks(rng)]
        boxes = np.array([rle.bbox_xywh(r, SIZE_HW) for r in runs], np.int64)
        out = np.empty((len(runs), side, side, 3), np.uint8)
        parts.append(np.array(crop_regions(image, runs, boxes, config, out)))
    return np.concatenate(parts)[:count]


def feed(bench: Bench, model: nn.Module, batch: int) -> None:
    """The teacher's speed while threads make its crops, and the share of time it is at work."""
    from PIL import Image

    from tap_engine.pipeline.crop import crop_regions, decode_image
    from tap_engine.schemas import rle
    from tap_engine.schemas.store_settings import CropConfig

    side = 32 if bench.dry else 224
    config = CropConfig(size_px=side, mean_rgb=(0.48, 0.46, 0.41))
    if bench.dry:
        buffer, size_hw = io.BytesIO(), (40, 50)
        Image.new("RGB", size_hw[::-1], (9, 99, 200)).save(buffer, "JPEG")
        jpeg, masks = buffer.getvalue(), [rle.encode(np.ones(size_hw, np.uint8))] * batch
    else:
        from benchmarks.crops import SIZE_HW, make_jpeg, make_masks

        rng, size_hw = np.random.default_rng(bench.seed), SIZE_HW
        jpeg, masks = make_jpeg(rng), make_masks(rng) * 3
    masks = masks[:batch]

    def make(_: int) -> Tensor:
        image = decode_image(jpeg)
        runs = [rle.runs(counts, size_hw) for counts in masks]
        boxes = np.array([rle.bbox_xywh(r, size_hw) for r in runs], np.int64)
        out = np.empty((len(runs), side, side, 3), np.uint8)
        return torch.from_numpy(np.array(crop_regions(image, runs, boxes, config, out)))

    rounds = 2 if bench.dry else 8
    busy = 0.0
    with ThreadPoolExecutor(max((os.cpu_count() or 2) - 1, 1)) as pool, torch.inference_mode():
        coming = pool.map(make, range(rounds + 1))
        first = next(coming)
        dtype = next(model.parameters()).dtype
        model(first.to(bench.device).permute(0, 3, 1, 2).to(dtype) / 255)
        start = bench.wait()
        for made in coming:
            begun = bench.wait()
            model(made.to(bench.device).permute(0, 3, 1, 2).to(dtype) / 255)
            busy += bench.wait() - begun
        spent = bench.wait() - start
    bench.figure("teacher: fed by crop threads", rounds * len(first) / spent, "crops/s")
    bench.figure("teacher: busy share when fed", busy / spent, "", f"{os.cpu_count()} cores")


def precision(bench: Bench) -> None:
    """Embeddings in fp16 and bf16 against float32: cosine, and numbers that are not finite.

    Weights are random unless TAP_TEACHER_WEIGHTS names a checkpoint of the model; only trained
    weights can show whether fp16 overflows.
    """
    count = 4 if bench.dry else 1000
    images = crops(bench, count, 32 if bench.dry else 224)
    weights = os.environ.get("TAP_TEACHER_WEIGHTS", "")
    kept: dict[str, Tensor] = {}

    def embed(name: str, dtype: torch.dtype) -> Tensor:
        model = _loaded(bench, weights).to(dtype)
        parts = []
        with torch.inference_mode():
            for start in range(0, count, 64):
                x = torch.from_numpy(images[start : start + 64]).to(bench.device)
                x = (x.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)
                parts.append(model(x).float())
        found = torch.cat(parts)
        bad = int((~found.isfinite()).any(-1).sum())
        what = "the given weights" if weights else "random weights"
        bench.figure(f"teacher: embeddings not finite, {name}", bad, "crops", what)
        return F.normalize(found.nan_to_num(), dim=-1)

    def compare() -> None:
        kept["fp32"] = embed("fp32", torch.float32)
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            cosine = (embed(name, dtype) * kept["fp32"]).sum(-1)
            note = f"mean {cosine.mean():.6f}"
            bench.figure(f"teacher: cosine of {name} to fp32, worst", float(cosine.min()), "", note)
        auto = bench.result["figures"]["teacher: cosine of bf16 to fp32, worst"]["value"]
        bench.figure("teacher: cosine of auto's type to float32, worst", auto, "", "bf16")

    bench.part("fp16 and bf16 against float32", compare)


def _loaded(bench: Bench, weights: str) -> nn.Module:
    if not weights:
        return tower(bench, torch.float32)
    import open_clip

    model = open_clip.create_model(NAME, pretrained=weights, precision="fp32", device="cpu")
    return model.visual.eval().to(bench.device)


def fp8(bench: Bench) -> None:
    """Linears in fp8 by torchao, compiled; without a compiler they are slower than bf16."""

    def run() -> None:
        if importlib.util.find_spec("torchao") is None:
            raise Skip("torchao is not installed: pip install torchao")
        bench.need_cuda("fp8")
        if torch.cuda.get_device_capability() < (8, 9):
            raise Skip("fp8 needs compute capability 8.9")
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )

        x = torch.from_numpy(crops(bench, 1024, 224)).to(bench.device).permute(0, 3, 1, 2)
        x = (x.float() / 127.5 - 1).bfloat16()

        def all_of(encode: Any) -> Tensor:
            return torch.cat([encode(part).float() for part in x.split(256)])

        model = tower(bench, torch.bfloat16)
        plain = torch.compile(model)
        with torch.inference_mode():
            before, took = all_of(plain), bench.seconds(lambda: plain(x[:256]), 3)
            torch._dynamo.reset()
            quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
            fast = torch.compile(model)
            after, takes = all_of(fast), bench.seconds(lambda: fast(x[:256]), 3)
        bench.figure("teacher: fp8, compiled", 256 / takes, "crops/s")
        bench.figure("teacher: fp8 against bf16, compiled", took / takes, "times")
        worst = float(F.cosine_similarity(before, after).min())
        bench.figure("teacher: cosine of fp8 to bf16, worst", worst, "", f"{len(x)} crops")

    bench.part("fp8 linears", run)
