"""Using the model: prompts and captions per second, and everything in a photograph."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench, Skip
from tap_engine.model.config import PRESETS
from tap_engine.model.predictor import Tap
from tap_engine.model.tap import TapModel


def decoding(bench: Bench) -> None:
    """TAP-L in bf16 with random weights; a caption is as long as the model allows."""
    config = PRESETS["tiny"] if bench.dry else PRESETS["tap-l"]
    if bench.dry:
        config = replace(config, image_size=64)
    torch.manual_seed(bench.seed)
    model = TapModel(config).to(bench.device).eval().requires_grad_(False)
    size, dim = config.image_size, config.embed_dim
    many = 4 if bench.dry else 256
    half = torch.autocast(bench.device, torch.bfloat16)
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, device=bench.device)

    def encoder() -> None:
        with torch.inference_mode(), half:
            spent = bench.seconds(lambda: model.encode_image(image))
        bench.figure("decoding: images encoded", 1 / spent, "images/s")

    def prompts() -> None:
        points = torch.rand(1, many, 2, 2, device=bench.device) * size
        labels = torch.tensor([2, 3], device=bench.device).expand(1, many, 2)
        with torch.inference_mode(), half:
            embedding = model.encode_image(image)
            plain = many / bench.seconds(lambda: model.decode(embedding, points, labels))
            decode: Any = torch.compile(model.decode, backend="eager" if bench.dry else "inductor")
            fast = many / bench.seconds(lambda: decode(embedding, points, labels))
            alone = many / bench.seconds(
                lambda: model.decode(embedding, points, labels, masks=False)
            )
        bench.figure("decoding: prompts/s, eager", plain, "prompts/s", f"{many} at a time")
        bench.figure("decoding: prompts/s, compiled", fast, "prompts/s")
        bench.figure("decoding: prompts/s, without masks", alone, "prompts/s")
        bench.figure("decoding: prompts/s", max(plain, fast), "prompts/s")

    def captions() -> None:
        # No id ends a caption, so every one is of full length.
        best, never = 0.0, config.text.vocab_size
        for rows in (2,) if bench.dry else (64, 256, 1024):
            tokens = torch.randn(rows, dim, device=bench.device)
            with torch.inference_mode(), half:
                spent = bench.seconds(
                    lambda t=tokens: model.text_decoder.generate(t, bos_id=1, eos_id=never)
                )
            bench.figure(f"decoding: captions/s, {rows} at a time", rows / spent, "captions/s")
            best = max(best, rows / spent)
        bench.figure("decoding: captions/s", best, "captions/s")

    def everything() -> None:
        if not hasattr(Tap, "everything"):
            raise Skip("Tap.everything does not exist in this version")
        from tap_engine.model.everything import EverythingConfig

        tap = Tap(model, precision="fp32" if bench.dry else "bf16")
        photo = np.random.default_rng(bench.seed).integers(0, 255, (size, size, 3), np.uint8)
        # SAM's generator decodes 64 points at a time. With random weights its filters keep few
        # masks, so that decoding is what is timed.
        for at_once in (2, 4) if bench.dry else (64, 256, 1024):
            side = 2 if bench.dry else 32
            config = EverythingConfig(points_per_side=side, points_per_batch=at_once)
            spent = bench.seconds(lambda c=config: tap.everything(photo, c), 3)
            name = f"decoding: everything in a photo, {at_once} points at a time"
            bench.figure(name, spent, "s", f"{side}^2 points")

    bench.part("encoder", encoder)
    bench.part("prompts", prompts)
    bench.part("captions", captions)
    bench.part("everything", everything)
