"""The same network written plainly, over the same parameters: what the benchmarks compare with.

Eager float32, attention as two matrix products and a softmax, a copy of the image embedding for
every prompt, transposed convolutions as such. It is also an independent reading of docs/model.md:
the benchmark stops if its numbers differ from the model's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_engine.model.image_encoder import VitEncoder
from tap_engine.model.prompt_encoder import Label
from tap_engine.model.tap import TapModel
from tap_engine.model.text_decoder import rotary, rotate


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """[B, N, C], [B, M, C] -> [B, N, C]; bias broadcasts to [B, heads, N, M]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def encode(model: TapModel, images: Tensor) -> Tensor:
    """[B, 3, S, S] uint8 RGB -> [B, D, S/16, S/16]."""
    encoder = model.image_encoder
    assert isinstance(encoder, VitEncoder)
    x = encoder.patch_embed.proj(model.normalise(images)).flatten(2).transpose(1, 2)
    x = x + encoder.pos_embed.weight
    batch, cells, dim = x.shape
    side, w = round(cells**0.5), encoder.window_size
    n = side // w

    def to_windows(x: Tensor) -> Tensor:
        x = x.reshape(batch, n, w, n, w, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, w * w, dim)

    def to_image(x: Tensor) -> Tensor:
        x = x.reshape(batch, n, n, w, w, dim).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, dim, side, side)

    x = to_windows(x)
    quarter = len(encoder.blocks) // 4
    for index, block in enumerate(encoder.blocks):
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        table = attn.rel_pos_embed
        bias = table.weight[:, table.index.flatten()].reshape(1, attn.num_heads, w * w, w * w)
        x = x + attn.proj(attend(q, k, v, attn.num_heads, bias))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        if (index + 1) % quarter == 0:
            if index + 1 == len(encoder.blocks):
                x = encoder.norm(x)
            image = encoder.cross_conv[index // quarter](to_image(x))
            x = to_windows(image.flatten(2).transpose(1, 2).reshape(batch, side, side, dim))
    return encoder.neck(image)


def decode(
    model: TapModel, image: Tensor, points: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, D, h, w], prompts [B, P, K, ...] -> mask logits, IoU, semantic embeddings [B, P, ...]."""
    decoder, count = model.image_decoder, points.shape[1]
    learned = (decoder.sem_tokens.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
    prompts = model.prompt_encoder(points, labels).flatten(0, 1)
    tokens = torch.cat([torch.cat(learned).expand(len(prompts), -1, -1), prompts], dim=1)
    size = image.shape[-2:]
    pos = model.prompt_encoder.grid_code(size).flatten(0, 1)
    key = image.flatten(2).transpose(1, 2).repeat_interleave(count, dim=0)
    query = tokens
    padding = (labels == Label.PADDING).flatten(0, 1)
    boxed = (labels[..., :1] == Label.BOX_TOP_LEFT).flatten(0, 1)
    unseen = F.pad(padding & ((padding.cumsum(-1) > 1) | boxed), (9, 0))
    hidden = torch.zeros(unseen.shape).to(image).masked_fill(unseen, -torch.inf)[:, None, None]

    def look(attn: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = hidden if k.shape[1] == tokens.shape[1] else None
        q, k, v = attn.q_proj(q), attn.k_proj(k), attn.v_proj(v)
        return attn.proj(attend(q, k, v, attn.num_heads, bias))

    for index, block in enumerate(decoder.transformer.blocks):
        if index == 0:
            query = block.norm1(look(block.self_attn, query, query, query))
        else:
            q = query + tokens
            query = block.norm1(query + look(block.self_attn, q, q, query))
        to_image = look(block.cross_attn_token_to_image, query + tokens, key + pos, key)
        query = block.norm2(query + to_image)
        query = block.norm3(query + block.mlp(query))
        to_token = look(block.cross_attn_image_to_token, key + pos, query + tokens, query)
        key = block.norm4(key + to_token)
    final = decoder.transformer.final_attn_token_to_image
    tokens = decoder.transformer.norm(query + look(final, query + tokens, key + pos, key))
    up1, norm, _, up2, _ = decoder.output_conv
    x = key.transpose(1, 2).reshape(len(key), -1, *size)
    x = F.conv_transpose2d(x, up1.weight, up1.bias, stride=2)
    x = F.gelu(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    x = F.gelu(F.conv_transpose2d(x, up2.weight, up2.bias, stride=2))
    kernels = torch.stack([m(tokens[:, 5 + i]) for i, m in enumerate(decoder.mask_pred)], dim=1)
    masks = torch.einsum("pmc,pchw->pmhw", kernels, x)
    iou, embeds = decoder.iou_pred(tokens[:, 4]), decoder.sem_pred(tokens[:, :4])
    return tuple(x.unflatten(0, (-1, count)) for x in (masks, iou, embeds))


def caption_logits(model: TapModel, sem_tokens: Tensor, ids: Tensor) -> Tensor:
    """[N, D] and [N, L] -> [N, L, V]."""
    text = model.text_decoder
    words = text.transformer.tok_embeddings(ids)
    x = torch.cat([text.encoder(sem_tokens).unsqueeze(1), words], dim=1)
    heads, length = text.config.num_heads, x.shape[1]
    turns = rotary(0, length, x.shape[-1] // heads, x.device)
    future = torch.full((length, length), -torch.inf, device=x.device).triu(1)
    for block in text.transformer.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        q, k = (rotate(y.unflatten(-1, (heads, -1)), turns).flatten(2) for y in (q, k))
        x = x + block.attn.proj(attend(q, k, v, heads, future))
        x = x + block.mlp(block.norm2(x))
    return text.transformer.text_proj(text.transformer.norm(x)[:, 1:])
