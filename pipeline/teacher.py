"""The CLIP teacher, through open_clip: crops -> unit embeddings, texts -> unit embeddings.

Whatever the model says of itself is used: input size, mean, std, logit scale. Weights are hashed
as loaded, so that a store knows what made it and every worker proves that it has the same.
"""

import hashlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor

from tap_engine.model.device import dtype_of, resolve_device
from tap_engine.schemas.errors import ConfigError
from tap_engine.schemas.precision import check_precision
from tap_engine.schemas.shipped import SAMPLE, sample_teacher
from tap_engine.schemas.store_settings import TeacherInfo

NO_WEIGHTS = "none"
LOCAL_FOLDER = "local-dir:"
"""How open_clip marks a model name that is a folder."""

BPE_FILE = "bpe.txt.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """Settings of the model that embeds the crops.

    Attributes:
        name: an open_clip model name, a folder with open_clip_config.json and weights, an
            `hf-hub:` name, or "sample" for the small teacher shipped with this package.
        pretrained: a tag of that model, a weight file, or "none" for random weights; None where
            the name brings its own weights.
        seed: seed of the random weights with pretrained="none".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "auto" (on CUDA bf16 for weights that were stored in bf16, else fp16; elsewhere
            fp32), "fp32", "fp16" or "bf16".
        batch_size: crops a forward pass; 0 means 256 on CUDA, 64 elsewhere.
        compile: run the image tower through torch.compile (slow first batch).
        download: allow open_clip to fetch weights that are not on this machine.
    """

    name: str = "EVA02-E-14-plus"
    pretrained: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 0
    compile: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision, "teacher.precision")
        if self.batch_size < 0:
            raise ConfigError(f"teacher batch size must not be negative, got {self.batch_size}")


DEFAULT_PRETRAINED = {"EVA02-E-14-plus": "laion2b_s9b_b144k"}
"""Tags that go without saying; the paper's teacher (TAP paper, section 3.1)."""


class Teacher:
    """A loaded teacher on one device."""

    def __init__(self, config: TeacherConfig) -> None:
        """Load the model; seconds to minutes.

        Raises:
            ConfigError: no such model, tag or file, or weights that would have to be downloaded
                without permission.
        """
        self.device = resolve_device(config.device, "teacher.device")
        self.batch_size = config.batch_size or (256 if self.device.type == "cuda" else 64)
        model_name, pretrained = resolve(config)
        model = _load(model_name, pretrained, config)
        self.dtype = teacher_dtype(config.precision, self.device, model)
        preprocess = open_clip.get_model_preprocess_cfg(model)
        size = preprocess["size"]
        self._model = model.eval().requires_grad_(False)
        self.info = TeacherInfo(
            name=config.name if "/" not in config.name else Path(config.name).name,
            pretrained=_public_name(pretrained),
            weights_sha256=_hash_weights(model),
            precision=str(self.dtype).removeprefix("torch."),
            embed_dim=_embed_dim(model, size),
            image_px=int(size if isinstance(size, int) else size[0]),
            mean_rgb=tuple(preprocess["mean"]),
            std_rgb=tuple(preprocess["std"]),
            logit_scale=float(model.logit_scale.detach().float().exp()),
            random_weights=pretrained == NO_WEIGHTS,
        )
        self._model = self._model.to(device=self.device, dtype=self.dtype)
        # Folded so that normalisation is one fused multiply-add on uint8 pixels.
        std = torch.tensor(self.info.std_rgb, device=self.device)
        mean = torch.tensor(self.info.mean_rgb, device=self.device)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1)
        self._shift = (-mean / std).view(1, 3, 1, 1)
        self._encode = torch.compile(model.encode_image) if config.compile else model.encode_image
        self._tokenizer_name = model_name

    @torch.inference_mode()
    def encode_crops(self, crops: npt.NDArray[np.uint8]) -> Tensor:
        """Unit embeddings of crops.

        Args:
            crops: [N, S, S, 3] RGB uint8, S = info.image_px; any N, split into batches here.

        Returns:
            [N, D] float32 on the teacher's device, L2-normalised; not finite where the model's
            output was not, which the caller must check.
        """
        parts = []
        for start in range(0, len(crops), self.batch_size):
            batch = torch.from_numpy(crops[start : start + self.batch_size])
            pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            normalised = torch.addcmul(self._shift, pixels.float(), self._scale)
            parts.append(self._encode(normalised.to(self.dtype)).float())
        if not parts:
            return torch.empty((0, self.info.embed_dim), device=self.device)
        return F.normalize(torch.cat(parts), dim=-1)

    def tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """[N, L] int64: what the text tower sees of N texts, cut to its context."""
        found = open_tokenizer(self._tokenizer_name)(list(texts))
        return np.asarray(found, np.int64)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D] float32, on the CPU, of N texts.

        Causal text towers see only as much of their context as the longest text of a batch needs,
        and texts of like length go together: three words cost a tenth of a context of 77.
        """
        if not len(texts):
            return torch.empty((0, self.info.embed_dim))
        tokens = torch.from_numpy(self.tokens(texts))
        ends = text_ends(self._model, tokens)
        order = torch.arange(len(tokens)) if ends is None else ends.argsort(stable=True)
        out = torch.empty((len(tokens), self.info.embed_dim))
        for start in range(0, len(order), 256):
            places = order[start : start + 256]
            batch = tokens[places].to(self.device)
            if ends is None:
                found = self._model.encode_text(batch)
            else:
                found = encode_short(self._model, batch, int(ends[places].max()) + 1)
            out[places] = found.float().cpu()
        return F.normalize(out, dim=-1)


def text_ends(model: Any, tokens: Tensor) -> Tensor | None:
    """[N] the position whose output a causal text tower takes for the whole text.

    What stands behind it cannot change it. None for towers of which that is not known: no mask or
    one that is not causal, another pooling, a class token at the end, or a foreign text model.

    Args:
        model: an open_clip model.
        tokens: [N, L] int64.
    """
    tower = _text_tower(model)
    mask = getattr(tower, "attn_mask", None)
    places = getattr(tower, "positional_embedding", None)
    if mask is None or places is None or getattr(tower, "cls_emb", None) is not None:
        return None
    causal = torch.full_like(mask, float("-inf")).triu(1)
    if mask.shape != (len(places), len(places)) or not torch.equal(mask, causal):
        return None
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if pooling == "argmax":
        return tokens.argmax(dim=-1)
    if pooling == "eos":
        eos_id: int = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
        is_end: Tensor = tokens.eq(eos_id)
        return is_end.int().argmax(dim=-1)
    return None


def encode_short(model: Any, tokens: Tensor, length: int) -> Tensor:
    """[N, D] what `model.encode_text` gives, of the first `length` tokens.

    Positions and mask are cut for this call only: open_clip's plain CLIP expects its whole context.
    """
    tower = _text_tower(model)
    prefix = "model." if tower is model else "model.text."
    cut = {
        f"{prefix}positional_embedding": tower.positional_embedding[:length],
        f"{prefix}attn_mask": tower.attn_mask[:length, :length],
    }
    found: Tensor = torch.func.functional_call(_TextSide(model), cut, (tokens[:, :length],))
    return found


def _text_tower(model: Any) -> Any:
    """Where positions and mask are: the model itself, or its `text`."""
    return getattr(model, "text", model)


class _TextSide(torch.nn.Module):
    """`encode_text` as a forward pass, the only door of `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] -> [N, D]."""
        found: Tensor = self.model.encode_text(tokens)
        return found


def teacher_dtype(precision: str, device: torch.device, model: torch.nn.Module) -> torch.dtype:
    """The type to compute with; "auto" follows the type in which the weights were stored.

    Weights are loaded as float32, so what is looked at is whether bf16 holds all of them exactly:
    trained weights that were ever stored in a finer type do not fit. Numbers that a model gave
    after training in bf16 may be too large for fp16 (docs/decisions/0151).
    """
    if precision == "auto" and device.type == "cuda" and fits_bf16(model):
        return torch.bfloat16
    return dtype_of(precision, device, "teacher.precision")


def fits_bf16(model: torch.nn.Module) -> bool:
    """True if bf16 holds every weight matrix of a model without rounding."""
    matrices = (p.detach() for p in model.parameters() if p.ndim > 1)
    return all(torch.equal(matrix, matrix.bfloat16().to(matrix.dtype)) for matrix in matrices)


def open_tokenizer(model_name: str) -> Any:
    """open_clip's tokenizer of a model; a model folder may bring its own byte-pair file.

    open_clip cannot name a file beside its configuration, so a folder's bpe.txt.gz is passed on.
    """
    own = Path(model_name.removeprefix(LOCAL_FOLDER)) / BPE_FILE
    if model_name.startswith(LOCAL_FOLDER) and own.is_file():
        return open_clip.get_tokenizer(model_name, bpe_path=str(own))
    return open_clip.get_tokenizer(model_name)


def resolve(config: TeacherConfig) -> tuple[str, str]:
    """The name open_clip knows the model by, and where its weights come from.

    Raises:
        ConfigError: neither a known model nor a folder, or weights are not named.
    """
    if config.name == SAMPLE:
        return f"{LOCAL_FOLDER}{sample_teacher()}", config.pretrained or SAMPLE
    if config.name.startswith("hf-hub:"):
        return config.name, config.pretrained or config.name
    if Path(config.name).is_dir():
        return f"{LOCAL_FOLDER}{Path(config.name).absolute()}", config.pretrained or "local"
    if config.name not in open_clip.list_models():
        close = [n for n in open_clip.list_models() if config.name.lower()[:5] in n.lower()][:8]
        raise ConfigError(
            f"no teacher {config.name!r}: expected 'sample', a folder with open_clip_config.json, "
            f"'hf-hub:...' or an open_clip model name"
            + (f" such as {', '.join(close)}" if close else "")
        )
    pretrained = config.pretrained or DEFAULT_PRETRAINED.get(config.name)
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if pretrained is None:
        raise ConfigError(
            f"teacher {config.name!r} needs --pretrained: a weight file, 'none', or one of "
            f"{', '.join(tags) or '(no published tags)'}"
        )
    if pretrained not in (NO_WEIGHTS, *tags) and not Path(pretrained).is_file():
        raise ConfigError(
            f"teacher {config.name!r} has no pretrained {pretrained!r}: expected an existing "
            f"file, 'none', or one of {', '.join(tags) or '(no published tags)'}"
        )
    return config.name, pretrained


def pending_download(config: TeacherConfig) -> str | None:
    """Description of the download that would be needed; None if the weights are here."""
    model_name, pretrained = resolve(config)
    if pretrained == NO_WEIGHTS or model_name.startswith(LOCAL_FOLDER):
        return None
    if model_name.startswith("hf-hub:"):
        repository, url = model_name.removeprefix("hf-hub:"), ""
    elif Path(pretrained).is_file():
        return None
    else:
        source = open_clip.get_pretrained_cfg(model_name, pretrained)
        repository, url = source.get("hf_hub", "").strip("/"), source.get("url", "")
    if repository:
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
            return None
        place = f"the Hugging Face hub repository {repository}"
    else:
        if (Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]).is_file():
            return None
        place = url
    return (
        f"weights of {config.name} ({pretrained}), about {_weight_size(model_name)}, from {place}"
    )


def _weight_size(model_name: str) -> str:
    if model_name.startswith("hf-hub:"):
        return "unknown size"
    with _quiet(), torch.device("meta"):
        model = open_clip.create_model(model_name, pretrained=None, device="meta")
    return f"{sum(p.numel() for p in model.parameters()) * 4 / 1e9:.1f} GB in float32"


def _load(model_name: str, pretrained: str, config: TeacherConfig) -> Any:
    if (pending := pending_download(config)) and not config.download:
        raise ConfigError(
            f"this teacher needs {pending}; add --download to fetch it, or name a local file "
            "with --pretrained"
        )
    if pretrained == NO_WEIGHTS:
        torch.manual_seed(config.seed)
    bundled = model_name.startswith((LOCAL_FOLDER, "hf-hub:"))
    try:
        with _quiet():
            return open_clip.create_model(
                model_name,
                pretrained=None if bundled or pretrained == NO_WEIGHTS else pretrained,
                load_weights=pretrained != NO_WEIGHTS,
                require_pretrained=pretrained != NO_WEIGHTS,
                pretrained_text=False,
                precision="fp32",
                device="cpu",
            )
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise ConfigError(
            f"teacher {config.name!r} ({pretrained}) did not load: {error}"
        ) from error
    except pickle.UnpicklingError as error:
        # torch's own words invite to load it without weights_only, which runs what is in it.
        raise ConfigError(
            f"teacher {config.name!r}: {pretrained} is no weight file; a Git LFS pointer of some "
            "hundred bytes and a download that was cut off look so"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns on the root logger of what the caller has already said in words."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def _public_name(pretrained: str) -> str:
    """A weight file by its name only: provenance holds no machine paths."""
    return Path(pretrained).name if Path(pretrained).is_file() else pretrained


def _embed_dim(model: Any, size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        return int(model.encode_image(torch.zeros(1, 3, height, width)).shape[-1])


def _hash_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
    return digest.hexdigest()
