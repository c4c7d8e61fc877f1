"""What the adapter learns to look like: image features of SAM, of TAP, or of a dump of either."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lance
import numpy as np
import torch
from torch import Tensor, nn

from tap_engine.model.checkpoint import load_model
from tap_engine.model.ovsam.config import OvsamConfig
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.teacher_features import FEATURES, METADATA_KEY
from tap_engine.train.checkpoint import model_folder

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class FeatureTeacher(Protocol):
    """Pictures -> features."""

    def features(self, images: Tensor, content_hw: Tensor) -> Tensor:
        """[B, out, S / 16, S / 16] float32 of [B, 3, S, S] uint8 RGB, picture top left."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of its weights and preprocessing: two teachers that differ have different ones."""
        ...


class TapTeacher(nn.Module):
    """A TAP image encoder; the stand-in for SAM on the sample world."""

    def __init__(self, model: TapModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def open(cls, path: str) -> "TapTeacher":
        """Of a run, checkpoint folder or file, or "sample"."""
        return cls(load_model(model_folder(Path(path))))

    @torch.no_grad()
    def features(self, images: Tensor, content_hw: Tensor) -> Tensor:
        """See `FeatureTeacher`; TAP fills beside the picture with its own colour."""
        fill = torch.tensor(self.model.fill_rgb, dtype=images.dtype, device=images.device)
        places = torch.arange(images.shape[-1], device=images.device)
        content = content_hw.to(images.device)
        rows, columns = places < content[:, :1], places < content[:, 1:]
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        filled = torch.where(inside, images, fill.view(1, 3, 1, 1))
        return self.model.encode_image(filled).float()

    @property
    def fingerprint(self) -> str:
        """See `FeatureTeacher`."""
        return weights_fingerprint(self.model.image_encoder, "tap")


class SamTeacher(nn.Module):
    """SAM's image encoder through transformers, with weights that the user has."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        for name, values in (("mean", SAM_MEAN), ("std", SAM_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def open(cls, path: str) -> "SamTeacher":
        """Of a folder that SamModel.from_pretrained reads; nothing is downloaded.

        Raises:
            ConfigError: transformers is not installed, or the folder holds no SAM.
        """
        try:
            from transformers import SamModel
        except ImportError as error:
            raise ConfigError(
                "a SAM teacher needs transformers: pip install transformers"
            ) from error
        try:
            model = SamModel.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is no folder of transformers' SamModel: {error}") from error
        return cls(model)

    @torch.no_grad()
    def features(self, images: Tensor, content_hw: Tensor) -> Tensor:
        """See `FeatureTeacher`; zeros beside the picture, as SAM has it."""
        x = (images.float() - self.mean) / self.std
        places = torch.arange(images.shape[-1], device=images.device)
        content = content_hw.to(images.device)
        rows, columns = places < content[:, :1], places < content[:, 1:]
        x = x * (rows[:, None, :, None] & columns[:, None, None, :])
        return self.model.vision_encoder(x).last_hidden_state.float()

    @property
    def fingerprint(self) -> str:
        """See `FeatureTeacher`."""
        return weights_fingerprint(self.model.vision_encoder, "sam")


def open_teacher(path: str) -> TapTeacher | SamTeacher:
    """A teacher by path: transformers' SAM where there is a config.json, else TAP.

    Raises:
        ConfigError: none is named.
    """
    if not path:
        raise ConfigError("no teacher to distil: --set init.teacher=FOLDER, or sample")
    if (Path(path) / "config.json").is_file() and not (Path(path) / "checkpoints").is_dir():
        return SamTeacher.open(path)
    return TapTeacher.open(path)


def weights_fingerprint(module: nn.Module, preprocessing: str) -> str:
    """Sixteen hexadecimal digits of a preprocessing's name and all tensors of a module."""
    digest = hashlib.sha256(preprocessing.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest()[:16]


class StoredFeatures:
    """A dump of a teacher's features, one row a picture (schemas/teacher_features.py).

    Args:
        uri: the table.
        config: of the student, whose shape the features must have.

    Raises:
        StoreError: no dump, or one of another shape or input size.
    """

    def __init__(self, uri: str, config: OvsamConfig) -> None:
        try:
            self._table = lance.dataset(uri)
        except (ValueError, OSError) as error:
            raise StoreError(f"no dump of features at {uri}: {error}") from error
        metadata = (self._table.schema.metadata or {}).get(METADATA_KEY.encode())
        if metadata is None:
            raise StoreError(f"{uri} is no dump of features: it has no {METADATA_KEY!r} metadata")
        self.uri, self.provenance = uri, Provenance.from_json(metadata.decode())
        shape = [config.adapter.out, config.grid, config.grid]
        wanted: dict[str, Any] = {"image_px": config.image_size, "shape": shape}
        found = {name: self.provenance.settings.get(name) for name in wanted}
        if found != wanted:
            raise StoreError(f"{uri} has features of {found}, this model learns {wanted}")
        self.shape: tuple[int, ...] = tuple(shape)
        ids = self._table.to_table(columns=["image_id"])["image_id"].to_numpy()
        self._order = np.argsort(ids)
        self._ids = ids[self._order]

    @property
    def fingerprint(self) -> str:
        """Of the teacher that made it."""
        return str(self.provenance.settings["teacher"])

    def require_teacher(self, teacher: FeatureTeacher) -> None:
        """Refuses the dump of another teacher.

        Raises:
            StoreError: it is one.
        """
        if self.fingerprint != teacher.fingerprint:
            raise StoreError(
                f"{self.uri} was made by teacher {self.fingerprint}, init.teacher is "
                f"{teacher.fingerprint}: dump again, or name the right teacher"
            )

    def read(self, image_ids: Sequence[int]) -> Tensor:
        """[B, *shape] float32 features of pictures.

        Raises:
            StoreError: a picture is not in the dump.
        """
        wanted = np.asarray(image_ids)
        at = np.searchsorted(self._ids, wanted).clip(max=max(len(self._ids) - 1, 0))
        if not len(self._ids) or (missing := wanted[self._ids[at] != wanted]).size:
            first = wanted[0] if not len(self._ids) else missing[0]
            raise StoreError(f"{self.uri} has no features of image {first}: is the dump complete?")
        rows, back = np.unique(self._order[at], return_inverse=True)
        table = self._table.take(rows, columns=[FEATURES])
        blobs = table[FEATURES].combine_chunks().flatten().to_numpy()
        found = torch.from_numpy(blobs.reshape(len(rows), *self.shape)[back]).float()
        return found
