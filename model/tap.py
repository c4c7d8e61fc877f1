"""The TAP model: its parts put together, and the normalisation of pixels.

    images --encode_image--> embedding --decode(points, labels)--> masks, IoU, semantic tokens
                                               semantic token --caption_logits--> words

Parameter names are the official ones: `image_encoder`, `prompt_encoder`, `image_decoder`,
`text_decoder`, and the buffers `pixel_mean` and `pixel_rsig`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.config import TapConfig, VitConfig
from tap_engine.model.convnet_encoder import ConvnetEncoder
from tap_engine.model.image_decoder import ImageDecoder, RegionOutput
from tap_engine.model.image_encoder import VitEncoder
from tap_engine.model.prompt_encoder import Label, PromptEncoder, attended
from tap_engine.model.text_decoder import TextDecoder


class TapModel(nn.Module):
    """Segments, recognises and describes prompted regions.

    Args:
        config: sizes; see `config.PRESETS`.
    """

    pixel_mean: Tensor
    pixel_rsig: Tensor

    def __init__(self, config: TapConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean))
        self.register_buffer("pixel_rsig", 1 / torch.tensor(config.pixel_std))
        sizes = {"image_size": config.image_size, "out_dim": config.embed_dim}
        self.image_encoder: VitEncoder | ConvnetEncoder
        if isinstance(config.encoder, VitConfig):
            self.image_encoder = VitEncoder(config.encoder, **sizes)
        else:
            detail = config.decoder.detail
            self.image_encoder = ConvnetEncoder(config.encoder, detail=detail, **sizes)
        self.prompt_encoder = PromptEncoder(
            config.embed_dim, config.image_size, config.fourier_scale
        )
        self.image_decoder = ImageDecoder(config.embed_dim, config.decoder)
        self.text_decoder = TextDecoder(config.text, config.embed_dim)
        if isinstance(self.image_encoder, ConvnetEncoder):
            # Prompts and image cells speak of places in the same code from the first step on.
            with torch.no_grad():
                code = self.prompt_encoder.grid_code((config.grid_size, config.grid_size))
                self.image_encoder.pos_embed.weight.copy_(code.flatten(0, 1))

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """Colour of the canvas around an image; see `TapConfig.fill_rgb`."""
        return self.config.fill_rgb

    def normalise(self, images_rgb: Tensor) -> Tensor:
        """RGB pixels -> what the encoder was trained on: BGR, zero mean, unit deviation.

        Args:
            images_rgb: [B, 3, S, S], 0..255, uint8 or float.

        Returns:
            [B, 3, S, S] float32, channels reversed.
        """
        bgr = images_rgb.flip(1).float()
        return (bgr - self.pixel_mean.view(3, 1, 1)) * self.pixel_rsig.view(3, 1, 1)

    def encode_image(self, images_rgb: Tensor) -> Tensor:
        """Image embeddings, once per image.

        Args:
            images_rgb: [B, 3, S, S] RGB pixels 0..255, uint8 or float, S = `config.image_size`;
                smaller images lie top-left in a canvas (see `image_input.fit_image`).

        Returns:
            [B, D, S/16, S/16]; with `decoder.detail` 3 * D further channels of finer features.

        Raises:
            ValueError: another shape.
        """
        size = self.config.image_size
        if images_rgb.ndim != 4 or images_rgb.shape[1:] != (3, size, size):
            raise ValueError(
                f"images must be [B, 3, {size}, {size}] RGB, got {list(images_rgb.shape)}"
            )
        return self.image_encoder(self.normalise(images_rgb))

    def decode(
        self, image_embeddings: Tensor, points: Tensor, labels: Tensor, *, masks: bool = True
    ) -> RegionOutput:
        """Four candidates for every prompt.

        Args:
            image_embeddings: [B, D, h, w] of `encode_image`.
            points: [B, P, K, 2] (x, y) px in the model's square input; a box is its two corners.
            labels: [B, P, K] int64, of `prompt_encoder.Label`. Loose points end in a PADDING, as
                the released model always saw them; prompts with fewer points are filled up with
                further PADDING, which changes nothing (`prompt_encoder.attended`).
            masks: False leaves `mask_logits` empty; they are a third of the decoder's work and
                most of its memory, and captions alone need none.

        Raises:
            ValueError: shapes do not agree.
        """
        if points.shape != (*labels.shape, 2) or labels.ndim != 3:
            raise ValueError(
                f"points must be [B, P, K, 2] and labels [B, P, K], got {list(points.shape)} and "
                f"{list(labels.shape)}"
            )
        if labels.shape[1] == 0 or labels.shape[2] == 0:
            raise ValueError(f"no prompts, or prompts without points: labels {list(labels.shape)}")
        if len(points) != len(image_embeddings):
            raise ValueError(f"prompts of {len(points)} images, {len(image_embeddings)} embeddings")
        grid_hw = (image_embeddings.shape[-2], image_embeddings.shape[-1])
        prompts = self.prompt_encoder(points, labels)
        grid_code = self.prompt_encoder.grid_code(grid_hw)
        counted = attended(labels)
        # Without surplus no mask is needed, which makes attention cheaper. A box or a single point
        # fills two tokens; beyond that only a CPU is asked: a GPU answers after its queue. Nor
        # while compiling: it would break the graph.
        asked = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        full = labels.shape[2] <= 2 or (asked and bool(counted.all()))
        seen = None if full else counted
        return self.image_decoder(image_embeddings, grid_code, prompts, seen, masks=masks)

    def caption_tokens(self, regions: RegionOutput) -> Tensor:
        """Tokens that prompt the text decoder: semantic or mask tokens, by `config.text.prompt`.

        Args:
            regions: all candidates, or the chosen ones.

        Returns:
            [B, P, 4, D], or [B, P, D] of chosen ones.
        """
        semantic = self.config.text.prompt == "semantic"
        return regions.sem_tokens if semantic else regions.mask_tokens

    def caption_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced word logits; see `TextDecoder.forward`.

        Args:
            tokens: [N, D], of `caption_tokens`.
            ids: [N, L] int64, BOS first.

        Returns:
            [N, L, V]: position t predicts the id after `ids[:, t]`.
        """
        return self.text_decoder(tokens, ids)

    def full_size_logits(
        self, mask_logits: Tensor, content_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Tensor:
        """Mask logits at the size of the image they belong to.

        Args:
            mask_logits: [P, S/4, S/4] of one image.
            content_hw: part of the canvas that is image, px (`FittedImage.content_hw`).
            image_hw: size of the image, px.

        Returns:
            [P, H, W]; above 0 is inside.
        """
        size = self.config.image_size
        canvas = _resize(mask_logits.unsqueeze(1), (size, size))
        return _resize(canvas[..., : content_hw[0], : content_hw[1]], image_hw).squeeze(1)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Whether blocks and mask head compute their activations again in the backward pass."""
        self.image_encoder.activation_checkpointing = enabled
        self.image_decoder.activation_checkpointing = enabled

    def compile_parts(self, **options: Any) -> None:
        """Compiles blocks and mask head in place; names of parameters stay the same.

        By parts, because two dozen equal blocks then compile once, and the number of prompts may
        change without compiling the encoder again.

        Args:
            options: the options of `torch.compile`.
        """
        parts = [
            *self.image_encoder.blocks,
            *self.image_decoder.transformer.blocks,
            self.image_decoder.output_conv,
            *self.text_decoder.transformer.blocks,
        ]
        for part in parts:
            part.compile(**options)

    def sync_batch_norm(self) -> "TapModel":
        """The same model with batch statistics over all ranks, if there are several with a GPU.

        Returns:
            self; layers are replaced, names of parameters stay the same.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        on_gpu = self.pixel_mean.is_cuda
        if distributed and torch.distributed.get_world_size() > 1 and on_gpu:
            nn.SyncBatchNorm.convert_sync_batchnorm(self)
        return self


def _resize(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size_hw, mode="bilinear", align_corners=False)


def route(iou_pred: Tensor, labels: Tensor) -> Tensor:
    """Chooses which of the four candidates to believe.

    A prompt that starts with a box takes the first; loose points take the one of highest predicted
    IoU among the others (TAP-v2 paper, section 3.3).

    Args:
        iou_pred: [B, P, 4].
        labels: [B, P, K].

    Returns:
        [B, P] int64.
    """
    loose = iou_pred[..., 1:].argmax(-1) + 1
    return torch.where(labels[..., 0] == Label.BOX_TOP_LEFT, 0, loose)
