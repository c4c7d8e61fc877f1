"""AdamW: its settings, and which parameters decay and at which rate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tap_engine.schemas.errors import ConfigError

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The papers' optimiser (TAP paper, section 4.1).

    Attributes:
        rate: peak learning rate at `rate_batch` images per step.
        rate_batch: the batch the rate is meant for.
        scaling: "linear" multiplies the rate by batch / `rate_batch`; "none" leaves it.
        betas: AdamW's two.
        eps: AdamW's.
        weight_decay: decay of the groups that decay.
        decay_rule: "v1.1" decays everything but the normalisations' parameters (the released v1.1
            weights); "v1.0" decays only tensors of two or more dimensions.
        final_share: last rate over peak rate; the papers decay to 1 %.
        milestones: shares of the run after which the rate falls to a tenth, instead of the cosine;
            Open-Vocabulary SAM's second stage has them after 8 and 11 of 12 epochs.
        warmup_steps: steps of linear rise. The papers give none for pre-training; ours.
        warmup_from: rate before the first step over peak rate.
        clip_norm: gradient norm above which gradients are scaled down; 0 never. The papers give
            none; ours.
        rate_factors: rate multipliers by prefix of the parameter's name in the model
            ("image_encoder"); the longest prefix that fits wins, a factor of 0 freezes.
        ema_decay: keep an exponential moving average of the weights with this decay; 0 keeps none.
    """

    rate: float = 1e-3
    rate_batch: int = 256
    scaling: str = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_rule: str = "v1.1"
    final_share: float = 0.01
    milestones: tuple[float, ...] = ()
    warmup_steps: int = 1000
    warmup_from: float = 0.0
    clip_norm: float = 1.0
    rate_factors: Mapping[str, float] = field(default_factory=lambda: {"text_decoder": 0.0})
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.decay_rule not in ("v1.0", "v1.1"):
            raise ConfigError(f"optim.decay_rule must be v1.0 or v1.1, got {self.decay_rule!r}")
        if self.scaling not in ("linear", "none"):
            raise ConfigError(f"optim.scaling must be linear or none, got {self.scaling!r}")
        if self.rate <= 0 or self.rate_batch < 1 or self.warmup_steps < 0:
            raise ConfigError(
                "optim.rate and rate_batch must be positive and warmup_steps not negative, got "
                f"{self.rate}, {self.rate_batch}, {self.warmup_steps}"
            )
        if self.clip_norm < 0 or self.weight_decay < 0:
            raise ConfigError(
                "optim.clip_norm (0 never clips) and weight_decay must not be negative, got "
                f"{self.clip_norm}, {self.weight_decay}"
            )
        if not 0 <= self.ema_decay < 1 or not 0 <= self.final_share <= 1:
            raise ConfigError("optim.ema_decay must be in [0, 1) and final_share in [0, 1]")

    def peak_rate(self, batch_images: int) -> float:
        """The peak rate at this global batch; the linear rule of Goyal et al. (2017)."""
        return self.rate * (batch_images / self.rate_batch if self.scaling == "linear" else 1.0)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """AdamW groups by weight decay and rate factor; parameters that do not train are left out.

    Each group has `params`, `names`, `weight_decay` and `rate_factor`. Names begin below "model.".

    Source of the two rules: the released TAP code (`engine/utils.py`) and its v1.1 notes.
    """
    normalisation = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if isinstance(module, _NORMS) or type(module).__name__.endswith("LayerNorm")
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        factor = rate_factor(name, config.rate_factors)
        if not parameter.requires_grad or factor == 0:
            continue
        by_shape = config.decay_rule == "v1.0"
        decays = parameter.ndim >= 2 if by_shape else name not in normalisation
        decay = config.weight_decay if decays else 0.0
        group = groups.setdefault(
            (decay, factor),
            {"params": [], "names": [], "weight_decay": decay, "rate_factor": factor},
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def rate_factor(name: str, factors: Mapping[str, float]) -> float:
    """The factor of the longest prefix that fits a parameter's name; 1 where none does."""
    name = name.removeprefix("model.")
    fitting = [prefix for prefix in factors if name.startswith(prefix)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; fused where the device has it."""
    groups = parameter_groups(model, config)
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen")
    device = next(iter(groups[0]["params"])).device  # type: ignore[call-overload]
    return torch.optim.AdamW(
        groups, lr=config.rate, betas=config.betas, eps=config.eps, fused=device.type != "mps"
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


@torch.no_grad()
def update_ema(
    average: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], decay: float
) -> None:
    """Moves each tensor of an average towards the weights' by 1 - decay; integers are copied."""
    for kept, now in zip(average, weights, strict=True):
        if kept.is_floating_point():
            kept.lerp_(now.to(kept.dtype), 1 - decay)
        else:
            kept.copy_(now)
