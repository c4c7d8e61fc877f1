"""What Open-Vocabulary SAM and the ways it is compared with cost: GFLOP, counted and not timed.

    python -m benchmarks.ovsam [--backbone RN50x16]

Counted by torch's FlopCounterMode on the published shapes (1024 px; no weights are needed), two
FLOP a multiply-add, as the paper's GFLOP are one: halve these to compare. Image crop is SAM-H with
its decoder, then the whole CLIP on one crop for each prompt; feature crop is SAM-H with its decoder
and the CLIP pyramid of the picture. Text towers are left out: prototypes are made once.
"""

import argparse

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tap_engine.model.ovsam.backbone import named_backbone
from tap_engine.model.ovsam.config import OvsamConfig
from tap_engine.model.ovsam.model import OvsamModel
from tap_engine.model.ovsam.sam_encoder import SamImageEncoder


def giga(run) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e9


def count(name: str) -> dict[str, float]:
    with torch.device("meta"):
        model = OvsamModel(OvsamConfig(backbone=named_backbone(name))).eval()
        sam = SamImageEncoder().eval()
        image, crop = torch.empty(1, 3, 1024, 1024), model.config.backbone.pool_grid * 32
        levels = [
            torch.empty(1, width, 1024 // stride, 1024 // stride)
            for width, stride in zip(model.config.backbone.widths, (4, 8, 16, 32), strict=True)
        ]
        embedding = torch.empty(1, 256, 64, 64)
        points, labels = torch.empty(1, 1, 2, 2), torch.empty(1, 1, 2, dtype=torch.int64)
        grid = torch.empty(1, model.config.backbone.widths[3], 12, 12)
        region: nn.Module = model.region_embedding.project
        parts = {
            "SAM-H encoder": giga(lambda: sam(image)),
            "CLIP pyramid, 1024 px": giga(lambda: model.backbone.tower(image)),
            "whole CLIP, one crop": giga(
                lambda: model.backbone.tower.attnpool(
                    model.backbone.tower(torch.empty(1, 3, crop, crop))[3]
                )
            ),
            "SAM2CLIP": giga(lambda: model.adapter(tuple(levels))),
            "feature pyramid": giga(lambda: model.pyramid(tuple(levels))),
            "decoder, one prompt": giga(lambda: model.decode(embedding, points, labels)),
            "region of the head": giga(lambda: region(torch.empty(1, 256, 12, 12))),
            "region of frozen CLIP": giga(lambda: model.backbone.tower.attnpool(grid)),
        }
    return parts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="RN50x16")
    name = parser.parse_args().backbone
    parts = count(name)
    print(f"{name}, 1024 px\n\n| part | GFLOP |\n|---|---|")
    for part, value in parts.items():
        print(f"| {part} | {value:,.2f} |")
    whole = {
        "image crop": ("SAM-H encoder", "decoder, one prompt", "whole CLIP, one crop"),
        "feature crop": (
            "SAM-H encoder",
            "decoder, one prompt",
            "CLIP pyramid, 1024 px",
            "region of frozen CLIP",
        ),
        "Open-Vocabulary SAM": (
            "CLIP pyramid, 1024 px",
            "SAM2CLIP",
            "feature pyramid",
            "decoder, one prompt",
            "region of the head",
            "region of frozen CLIP",
        ),
    }
    print("\n| one picture, one prompt | GFLOP | multiply-adds, G |\n|---|---|---|")
    for method, names in whole.items():
        total = sum(parts[name] for name in names)
        print(f"| {method} | {total:,.0f} | {total / 2:,.0f} |")


if __name__ == "__main__":
    main()
