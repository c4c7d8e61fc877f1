"""Made-up scenes in SA-1B's layout, and a tiny open_clip model: real files, real formats."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tap_engine.schemas import rle


def draw_scene(number: int, size_hw: tuple[int, int] = (120, 160), regions: int = 5):
    """(jpeg, annotations) of ellipses on noise; everything follows from `number`."""
    rng = np.random.default_rng(number)
    height, width = size_hw
    noise = rng.integers(0, 60, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    annotations = []
    for index in range(regions):
        left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        right = int(min(width - 1, left + rng.integers(8, 60)))
        bottom = int(min(height - 1, top + rng.integers(8, 60)))
        colour = tuple(int(v) for v in rng.integers(60, 255, 3))
        ImageDraw.Draw(image).ellipse((left, top, right, bottom), fill=colour)
        layer = Image.new("L", (width, height))
        ImageDraw.Draw(layer).ellipse((left, top, right, bottom), fill=1)
        annotations.append(annotation(1000 * number + index, np.asarray(layer)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), scene_json(number, size_hw, annotations)


def annotation(region_id: int, mask: np.ndarray) -> dict:
    counts = rle.encode(mask)
    left, top, width, height = rle.bbox_xywh(rle.runs(counts, mask.shape), mask.shape)
    return {
        "id": region_id,
        "segmentation": {"size": list(mask.shape), "counts": counts.decode()},
        "bbox": [left, top, max(width - 1, 0), max(height - 1, 0)],  # SA-1B's one-less
        "area": int(mask.astype(bool).sum()),
        "predicted_iou": 0.9,
        "stability_score": 0.95,
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        "point_coords": [[left, top]],
    }


def scene_json(number: int, size_hw: tuple[int, int], annotations: list[dict]) -> dict:
    image = {
        "image_id": number,
        "width": size_hw[1],
        "height": size_hw[0],
        "file_name": f"sa_{number}.jpg",
    }
    return {"image": image, "annotations": annotations}


def write_tar(path: Path, members: dict[str, bytes], prefix: str = "./") -> Path:
    """A tar of named bytes, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def scene_members(numbers, **kwargs) -> dict[str, bytes]:
    """`sa_N.jpg` and `sa_N.json` of some scenes."""
    members = {}
    for number in numbers:
        jpeg, annotations = draw_scene(number, **kwargs)
        members[f"sa_{number}.jpg"] = jpeg
        members[f"sa_{number}.json"] = json.dumps(annotations).encode()
    return members


def write_shard(path: Path, numbers, **kwargs) -> Path:
    """A tar of scenes."""
    return write_tar(path, scene_members(numbers, **kwargs))


TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25]},
}


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A folder open_clip loads as `local-dir:`: real architecture, random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**json.loads(json.dumps(TINY_CLIP["model_cfg"])))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder
