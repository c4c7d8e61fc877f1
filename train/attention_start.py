"""The attention kernels of a run, chosen when it starts and written into its log."""

import torch

from tap_engine.model import attention_backends as backends
from tap_engine.model.attention import attention
from tap_engine.model.attention_backends import Shape
from tap_engine.model.config import IMAGE_STRIDE, TapConfig
from tap_engine.train import distributed
from tap_engine.train.config import TrainConfig

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PROMPT_TOKENS, _WORDS = 11, 40


def start_attention(config: TrainConfig, device: torch.device) -> str:
    """Switches this process to the kernels that `train.attention` names.

    With "auto" the main process measures and the others follow it.

    Returns:
        A line for the log: what was chosen, and for "auto" the milliseconds of each.

    Raises:
        ConfigError: they cannot be used on this device.
    """
    found = distributed.from_main(lambda: _measure(config, device))
    chosen = next(iter(found), config.train.attention)
    backends.use(chosen, device)
    if not found:
        return f"attention: {chosen}"
    times = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in found.items())
    return f"attention: {chosen}, the fastest of {times}"


def _measure(config: TrainConfig, device: torch.device) -> dict[str, float]:
    if config.train.attention != "auto":
        return {}
    dtype = _TYPES.get(config.train.precision, torch.float32)
    shapes = attention_shapes(config.model, config.prompts.per_image)
    return backends.fastest(attention, shapes, device, dtype)


def attention_shapes(model: TapConfig, prompts: int) -> list[Shape]:
    """The attentions of a training step that have no mask, for one image.

    They are tokens at the image, the image at tokens, and the text decoder.
    """
    cells = (model.image_size // IMAGE_STRIDE) ** 2
    decoder, text = model.decoder, model.text
    width = int(model.embed_dim * decoder.attn_ratio) // decoder.num_heads
    heads, channels = text.num_heads, text.embed_dim // text.num_heads
    return [
        Shape(1, prompts * _PROMPT_TOKENS, cells, decoder.num_heads, width),
        Shape(prompts, _PROMPT_TOKENS, cells, decoder.num_heads, width),
        Shape(prompts, cells, _PROMPT_TOKENS, decoder.num_heads, width),
        Shape(prompts, _WORDS, _WORDS, heads, channels, causal=True),
    ]
