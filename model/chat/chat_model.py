"""The network of TAPv2-Chat: TAP's image encoder, the projector, a language model with adapters.

The encoder is a copy of TAP's own, so that regions are segmented and named as before, whatever the
chat trains of it. It is always in evaluation mode: its batch norms keep their statistics.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tap_engine.model.chat.batch import ChatBatch
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import add_lora, base_of
from tap_engine.model.chat.projector import MERGE, ImageProjector
from tap_engine.model.image_encoder import CROSS_CONVS, VitEncoder
from tap_engine.model.tap import TapModel
from tap_engine.schemas.errors import ConfigError


class ChatModel(nn.Module):
    """Image features and words in, words out.

    Args:
        tap: the model whose encoder looks at images; it is not changed.
        language_model: of `load_language_model`; gets adapters.
        config: sizes and switches.

    Raises:
        ConfigError: the encoder has no such source or tail.
    """

    def __init__(self, tap: TapModel, language_model: nn.Module, config: ChatConfig) -> None:
        super().__init__()
        self.config = config
        self.normalise = tap.normalise
        self.encoder = copy.deepcopy(tap.image_encoder) if config.tail_blocks else tap.image_encoder
        self.encoder.requires_grad_(False)
        for module in _tail(self.encoder, config):
            module.requires_grad_(True)
        self.embed_dim = tap.config.embed_dim
        channels = self.embed_dim
        if config.projector.source == "last_block":
            if not isinstance(self.encoder, VitEncoder):
                raise ConfigError('projector.source "last_block" needs a ViT encoder; take "neck"')
            channels = self.encoder.pos_embed.embedding_dim
        self.visual_tokens = (tap.config.grid_size // MERGE) ** 2
        width = base_of(language_model).config.hidden_size
        self.projector = ImageProjector(config.projector, channels, width)
        self.language_model = add_lora(language_model, config.lora_rank, config.lora_alpha)
        self.eval()

    def train(self, mode: bool = True) -> "ChatModel":
        """Training mode for projector and language model; the encoder stays as it is used."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode_images(self, images_rgb: Tensor) -> Tensor:
        """Features that the projector takes.

        Args:
            images_rgb: [M, 3, S, S] RGB pixels 0..255, fitted as for TAP.

        Returns:
            [M, C, S/16, S/16].
        """
        pixels = self.normalise(images_rgb)
        if self.config.projector.source == "last_block":
            return self.encoder.last_block(pixels)  # type: ignore[operator]
        return self.encoder(pixels)[:, : self.embed_dim]

    def embed(self, batch: ChatBatch) -> Tensor:
        """[N, L, width] what the language model reads: word vectors and visual tokens."""
        words = base_of(self.language_model).get_input_embeddings()(batch.ids)
        if batch.features is None:
            return words
        visual = self.projector(batch.features.to(next(self.projector.parameters()).dtype))
        return words.masked_scatter(batch.visual.unsqueeze(-1), visual.to(words.dtype))

    def target_logits(self, batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Predictions of the learned tokens; the head looks at no other place.

        Returns:
            [T, V] float32 logits and [T] ids, of all learned tokens of the batch in order.
        """
        base = base_of(self.language_model)
        words = self.embed(batch)
        mask = None
        if batch.see is not None:
            hidden_ones = torch.finfo(words.dtype).min
            mask = torch.zeros(batch.see.shape, dtype=words.dtype, device=words.device)
            mask = mask.masked_fill(~batch.see, hidden_ones).unsqueeze(1)
        states = base.base_model(
            inputs_embeds=words, attention_mask=mask, position_ids=batch.places, use_cache=False
        )[0]
        following = batch.targets[:, 1:]
        at = following >= 0
        return base.get_output_embeddings()(states[:, :-1][at]).float(), following[at]

    @torch.inference_mode()
    def generate(self, batch: ChatBatch, end_id: int, max_new_tokens: int) -> Iterator[Tensor]:
        """Greedy continuation of each sequence, one token after the other.

        Args:
            batch: sequences that end where an answer begins; `targets` are not looked at. Shorter
                sequences are moved to the right, so that all end together.
            end_id: the end token; a sequence that has ended goes on with it.
            max_new_tokens: at most.

        Yields:
            [N] int64, the next token of each.
        """
        words = self.embed(batch)
        lengths = batch.lengths
        kept = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
        shift = words.shape[1] - lengths
        words = torch.stack([w.roll(int(s), 0) for w, s in zip(words, shift, strict=True)])
        kept = torch.stack([k.roll(int(s), 0) for k, s in zip(kept, shift, strict=True)])
        mask, cache = kept.long(), None
        ended = torch.zeros(len(words), dtype=torch.bool, device=words.device)
        for _ in range(max_new_tokens):
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -words.shape[1] :]
            out = self.language_model(
                inputs_embeds=words,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            token = out.logits[:, -1].argmax(-1).masked_fill(ended, end_id)
            yield token
            ended |= token == end_id
            if ended.all():
                return
            cache = out.past_key_values
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            words = base_of(self.language_model).get_input_embeddings()(token[:, None])


def _tail(encoder: nn.Module, config: ChatConfig) -> list[nn.Module]:
    """What of the encoder trains: its last blocks and all that comes behind them."""
    if not config.tail_blocks:
        return []
    blocks = encoder.blocks
    assert isinstance(blocks, nn.ModuleList)
    if config.tail_blocks > len(blocks):
        raise ConfigError(
            f"tail_blocks is {config.tail_blocks}, the image encoder has {len(blocks)} blocks"
        )
    tail = [*blocks[-config.tail_blocks :], encoder.norm]
    if isinstance(encoder, VitEncoder):
        # A convolution follows each quarter of the blocks; those behind a tail block belong to it.
        first = (len(blocks) - config.tail_blocks) // (len(blocks) // CROSS_CONVS)
        tail += encoder.cross_conv[first:]
        if config.projector.source == "neck":
            tail.append(encoder.neck)
    return [module for module in tail if isinstance(module, nn.Module)]
