"""The network: batches do not matter, what is frozen stays, a checkpoint says what it needs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tap_engine.model.chat.batch import ChatBatch, collate, collate_packed, pack
from tap_engine.model.chat.chat_model import ChatModel
from tap_engine.model.chat.checkpoint import load_chat, read_chat_card, save_chat
from tap_engine.model.chat.config import ChatConfig
from tap_engine.model.chat.language_model import add_lora, base_fingerprint, load_language_model
from tap_engine.model.chat.template import render
from tap_engine.model.chat.tokens import TokenRow
from tap_engine.schemas.conversations import Conversation, Turn
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tests.model.chat.tiny_lm import write_tiny_lm
from tests.model.small import small_model


def conversation(question: str, answer: str, image: str | None = "a.jpg") -> Conversation:
    return Conversation(turns=(Turn("user", question), Turn("assistant", answer)), image=image)


CONVERSATIONS = [
    conversation("What is on the left?", "a red hat"),
    conversation("Yes or no?", "no", image=None),
    conversation("How many hats are there, in words, if you please?", "two"),
]


def rows_of(tokens, visual: int, *, to_answer: bool = False) -> list[TokenRow]:
    rendered = (render(one, "chatml", to_answer=to_answer) for one in CONVERSATIONS)
    return [tokens.encode(one, visual) for one in rendered]


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)


def with_features(batch: ChatBatch, features: torch.Tensor | None) -> ChatBatch:
    return replace(batch, features=features)


def test_a_padded_batch_equals_single_sequences(chat) -> None:
    model, tokens = chat
    rows, features = rows_of(tokens, model.visual_tokens), model.encode_images(images())
    own = [features[:1], None, features[1:]]
    logits, targets = model.target_logits(with_features(collate(rows), features))
    single = [
        model.target_logits(with_features(collate([row]), seen))
        for row, seen in zip(rows, own, strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat([one for one, _ in single]), atol=1e-5, rtol=0)
    assert torch.equal(targets, torch.cat([one for _, one in single]))
    other = model.target_logits(with_features(collate(rows), features.flip(0)))[0]
    assert (other - logits).abs().max() > 0.1, "which image it is must matter"


def test_packed_questions_equal_single_ones(chat) -> None:
    model, tokens = chat
    features = model.encode_images(images())[:1]
    prefix = TokenRow()
    prefix.add(
        tokens._letters.encode("USER: ").ids, [False] * len(tokens._letters.encode("USER: "))
    )
    prefix.add([0] * model.visual_tokens, [False] * model.visual_tokens, visual=True)
    questions = []
    for asked, answer in (("left?", "red hat"), ("how many hats?", "two"), ("hat?", "yes")):
        row = TokenRow()
        ids = tokens._letters.encode(asked).ids
        row.add(ids, [False] * len(ids))
        ids = [*tokens._letters.encode(f" {answer}").ids, tokens.eos_id]
        row.add(ids, [True] * len(ids))
        questions.append(row)
    packed = collate_packed([pack(prefix, questions), pack(prefix, questions[1:2])])
    logits, targets = model.target_logits(with_features(packed, features.repeat(2, 1, 1, 1)))
    single = []
    for question in [*questions, questions[1]]:
        alone = collate_packed([pack(prefix, [question])])
        single.append(model.target_logits(with_features(alone, features))[0])
        plain = TokenRow(
            prefix.ids + question.ids,
            prefix.targets + question.targets,
            prefix.visual + question.visual,
        )
        usual = model.target_logits(with_features(collate([plain]), features))[0]
        torch.testing.assert_close(single[-1], usual, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, torch.cat(single), atol=1e-5, rtol=0)
    assert len(targets) == len(logits)


def test_generation_with_a_cache_equals_the_full_forward_pass(chat) -> None:
    """Sequences of different lengths in one batch, each against its own growing forward pass."""
    model, tokens = chat
    rows = rows_of(tokens, model.visual_tokens, to_answer=True)
    features = model.encode_images(images())
    batch = with_features(collate(rows), features)
    steps = torch.stack(list(model.generate(batch, end_id=-1, max_new_tokens=8)), 1)
    own = [features[:1], None, features[1:]]
    for row, seen, said in zip(rows, own, steps, strict=True):
        grown = TokenRow(list(row.ids), list(row.targets), list(row.visual))
        for token in said.tolist():
            probe = TokenRow([*grown.ids, 0], [*[-100] * len(grown), 0], [*grown.visual, False])
            logits, _ = model.target_logits(with_features(collate([probe]), seen))
            assert int(logits.argmax(-1)) == token
            grown.add([token], [False])


def test_generation_stops_at_the_end_token(chat) -> None:
    model, tokens = chat
    batch = collate(rows_of(tokens, model.visual_tokens, to_answer=True))
    batch = with_features(batch, model.encode_images(images()))
    free = torch.stack(list(model.generate(batch, end_id=-1, max_new_tokens=6)), 1)
    end = int(free[0, 2])
    steps = torch.stack(list(model.generate(batch, end_id=end, max_new_tokens=6)), 1)
    first = (free[0] == end).nonzero()[0, 0]
    assert (steps[0, first:] == end).all()


def trained_step(model: ChatModel, tokens, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    rows, losses = rows_of(tokens, model.visual_tokens), []
    model.train()
    for _ in range(steps):
        features = model.encode_images(images())
        loss = F.cross_entropy(*model.target_logits(with_features(collate(rows), features)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def test_training_changes_adapters_projector_and_tail_and_nothing_else(tiny_lm: Path) -> None:
    torch.manual_seed(0)
    language_model, tokens = load_language_model(str(tiny_lm))
    tap = small_model()
    config = ChatConfig(language_model=str(tiny_lm), template="chatml", lora_rank=4, tail_blocks=1)
    model = ChatModel(tap, language_model, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = {name: value.clone() for name, value in tap.state_dict().items()}
    losses = trained_step(model, tokens, 20)
    assert losses[-1] < 0.5 * losses[0]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert changed == trained
    places = {name.split(".lora_")[0].split(".")[-1] for name in trained if ".lora_" in name}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    tail = {name.split(".", 1)[1] for name in trained if name.startswith("encoder.")}
    assert {name.split(".")[0] for name in tail} == {"blocks", "norm", "cross_conv", "neck"}
    assert {name.split(".")[1] for name in tail if name.startswith("blocks")} == {"3"}
    assert {name.split(".")[1] for name in tail if name.startswith("cross")} == {"3"}
    for name, value in tap.state_dict().items():
        assert torch.equal(value, own[name]), "regions are segmented as before"


def test_without_a_tail_the_encoder_is_shared_and_frozen(tiny_lm: Path) -> None:
    language_model, _ = load_language_model(str(tiny_lm))
    tap = small_model()
    model = ChatModel(tap, language_model, ChatConfig(lora_rank=4, tail_blocks=0))
    assert model.encoder is tap.image_encoder
    assert not any(value.requires_grad for value in model.encoder.parameters())
    with pytest.raises(ConfigError, match="tail_blocks is 5, the image encoder has 4 blocks"):
        ChatModel(tap, language_model, ChatConfig(lora_rank=4, tail_blocks=5))


def test_the_last_block_is_the_neck_s_input(tiny_lm: Path) -> None:
    language_model, _ = load_language_model(str(tiny_lm))
    config = ChatConfig(
        lora_rank=4, tail_blocks=1, projector=replace(ChatConfig().projector, source="last_block")
    )
    tap = small_model()
    model = ChatModel(tap, language_model, config)
    features = model.encode_images(images())
    assert features.shape == (2, 24, 4, 4)
    torch.testing.assert_close(model.encoder.neck(features), tap.encode_image(images()))


@pytest.mark.parametrize(
    ("rank", "count"), [(16, 23_592_960), (64, 94_371_840), (128, 188_743_680)]
)
def test_adapters_of_phi_2_have_the_paper_s_size(rank: int, count: int) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    with torch.device("meta"):
        phi = PhiForCausalLM(
            PhiConfig(
                vocab_size=51200,
                hidden_size=2560,
                intermediate_size=10240,
                num_hidden_layers=32,
                num_attention_heads=32,
            )
        )
        assert sum(value.numel() for value in phi.parameters()) == 2_779_683_840
        model = add_lora(phi, rank)
    trained = [value.numel() for value in model.parameters() if value.requires_grad]
    assert sum(trained) == count


def test_a_checkpoint_is_small_and_refuses_another_language_model(
    chat, tiny_lm: Path, tmp_path: Path
) -> None:
    model, tokens = chat
    path = save_chat(
        tmp_path / "chat", model, tokens=tokens.fingerprint, tap="tap", dtype=torch.float32
    )
    card = read_chat_card(tmp_path / "chat")
    assert (card.config, card.tokens) == (model.config, tokens.fingerprint)
    assert card.base == base_fingerprint(load_language_model(str(tiny_lm))[0])
    assert (
        path.stat().st_size
        < 1.05 * 4 * sum(value.numel() for value in model.parameters() if value.requires_grad)
        + 20_000
    )
    fresh = ChatModel(small_model(), load_language_model(str(tiny_lm))[0], model.config)
    load_chat(tmp_path / "chat", fresh)
    rows = rows_of(tokens, model.visual_tokens)
    batch = with_features(collate(rows), model.encode_images(images()))
    again = with_features(collate(rows), fresh.encode_images(images()))
    assert torch.equal(model.target_logits(batch)[0], fresh.target_logits(again)[0])
    other_lm = write_tiny_lm(tmp_path / "other", seed=1)
    other = ChatModel(small_model(), load_language_model(str(other_lm))[0], model.config)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_chat(tmp_path / "chat", other)


def test_merged_adapters_say_the_same(chat) -> None:
    model, tokens = chat
    batch = collate(rows_of(tokens, model.visual_tokens))
    batch = with_features(batch, model.encode_images(images()).detach())
    with torch.inference_mode():
        before = model.target_logits(batch)[0]
        model.language_model = model.language_model.merge_and_unload()
        torch.testing.assert_close(model.target_logits(batch)[0], before, atol=1e-4, rtol=0)


def test_a_missing_language_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_language_model(str(tmp_path / "nowhere"))
