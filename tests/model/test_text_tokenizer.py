import io

import pytest
import sentencepiece

from tap_engine.model.text_tokenizer import (
    IGNORE,
    BpeTokenizer,
    caption_words,
    load_tokenizer,
    train_bpe,
)
from tap_engine.schemas.errors import CheckpointError, ConfigError

CAPTIONS = [
    f"a {size} {colour} {thing} left of a {other}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for thing in ("apple", "dog", "house")
    for other in ("tree", "wall")
]


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe(CAPTIONS, 400)


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("text", ["a red apple", "Größe 12 🍎\tend", "", "a  b", "<s> </s>"])
def test_any_text_comes_back(bpe, text) -> None:
    assert bpe.decode(bpe.encode(text)) == text


def test_frequent_words_become_one_id(bpe) -> None:
    assert len(bpe.encode("a small green house left of a wall")) == 8
    assert max(bpe.encode("a small green house")) < bpe.vocab_size <= 400
    assert (bpe.pad_id, bpe.bos_id, bpe.eos_id) == (0, 1, 2)


def test_training_is_repeatable_and_reads_a_stream(bpe) -> None:
    assert train_bpe((caption for caption in CAPTIONS), 400).fingerprint == bpe.fingerprint
    assert train_bpe(CAPTIONS, 300).fingerprint != bpe.fingerprint
    with pytest.raises(ConfigError, match="must exceed the 259"):
        train_bpe(CAPTIONS, 200)


def test_file_and_fingerprint_survive(bpe, tmp_path) -> None:
    bpe.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == bpe.fingerprint
    assert again.encode(CAPTIONS[3]) == bpe.encode(CAPTIONS[3])


def test_text_ends_at_the_first_eos(bpe) -> None:
    ids = [bpe.bos_id, *bpe.encode("a red apple"), bpe.eos_id, *bpe.encode("dog"), bpe.pad_id]
    assert bpe.decode(ids) == "a red apple"


def test_sentencepiece_files(sentencepiece_file, tmp_path) -> None:
    tokenizer = load_tokenizer(sentencepiece_file)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == tokenizer.vocab_size - 1 == 59  # no padding id of its own
    assert tokenizer.decode([1, *tokenizer.encode("a red apple"), 2, 5]) == "a red apple"
    assert load_tokenizer(tokenizer.save(tmp_path)).fingerprint == tokenizer.fingerprint


def test_teacher_forcing_rows(bpe) -> None:
    words = caption_words(bpe, ["a dog", "a small red apple"], max_seq_len=40)
    first, second = bpe.encode("a dog"), bpe.encode("a small red apple")
    assert words.tolist() == [[1, *first, 2, IGNORE, IGNORE], [1, *second, 2]]


def test_long_captions_are_cut_so_that_eos_fits(bpe) -> None:
    words = caption_words(bpe, ["a small red apple left of a tree"], max_seq_len=6)
    assert words.shape == (1, 6)
    assert words[0, 0] == bpe.bos_id and words[0, -1] == bpe.eos_id
    assert caption_words(bpe, [], max_seq_len=6).shape == (0, 2)


def test_bad_files_are_named(tmp_path, bpe, sentencepiece_file) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer file"):
        load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="found 0"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizers file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="found 2"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a \.model"):
        load_tokenizer(__file__)
