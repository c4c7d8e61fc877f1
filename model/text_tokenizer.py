"""Tokenizers of captions: a SentencePiece file, or byte pairs learned from captions.

The released TAP weights go with LLaMA's SentencePiece file, which the user has to bring; models
trained here use their own BPE (32k ids by default). Ids mean nothing without the tokenizer, so a
checkpoint carries the fingerprint of the file it was trained with.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tap_engine.schemas.errors import CheckpointError, ConfigError

IGNORE = -100
"""Target of positions that no loss looks at; torch's own default for `ignore_index`."""

_SPECIAL = ("<pad>", "<s>", "</s>")


class TextTokenizer(ABC):
    """Interface of a tokenizer, as the caption decoder needs it.

    Attributes:
        bos_id: starts every caption.
        eos_id: ends it.
        pad_id: fills up shorter rows; never a target.
        vocab_size: ids are below this.
        fingerprint: first 16 hex digits of the file's SHA-256.
        file_name: name under which it lies beside a checkpoint.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    file_name: str

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[bytes]]:
        # Loader processes get the file's bytes; the libraries' own pickles drop settings.
        return type(self), (self._content,)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; what follows the first EOS, and special ids, are left out."""

    def save(self, path: Path) -> Path:
        """Writes the file, or `file_name` in a folder, byte for byte as it was read; its path."""
        path = path / self.file_name if path.is_dir() else path
        path.write_bytes(self._content)
        return path

    def _words(self, ids: Sequence[int]) -> Iterator[int]:
        for index in ids:
            if index == self.eos_id:
                return
            if index not in (self.bos_id, self.pad_id):
                yield int(index)


class BpeTokenizer(TextTokenizer):
    """Byte-level BPE: any text comes back as it was, but for spaces at its ends.

    Ids 0, 1, 2 are padding, BOS and EOS.
    """

    file_name = "tokenizer.json"

    def __init__(self, content: bytes) -> None:
        from tokenizers import Tokenizer

        super().__init__(content)
        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"not a tokenizers file: {error}") from error
        # "</s>" inside a caption is text, not an end.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab()
        if missing := [token for token in _SPECIAL if token not in vocabulary]:
            raise CheckpointError(f"the tokenizer lacks the special tokens {missing}")
        self.pad_id, self.bos_id, self.eos_id = (vocabulary[token] for token in _SPECIAL)
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """See `TextTokenizer.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.decode`."""
        return str(self._tokenizer.decode(list(self._words(ids)))).strip()


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece model; where it has no padding id, the last id pads, as officially."""

    file_name = "tokenizer.model"

    def __init__(self, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        super().__init__(content)
        try:
            self._processor = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise CheckpointError(f"not a SentencePiece model: {error}") from error
        self.vocab_size = self._processor.vocab_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise CheckpointError("the SentencePiece model defines no BOS or no EOS id")
        pad_id = self._processor.pad_id()
        self.pad_id = pad_id if pad_id >= 0 else self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """See `TextTokenizer.encode`."""
        return list(self._processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.decode`."""
        return str(self._processor.decode(list(self._words(ids)))).strip()


FILE_NAMES = (SentencePieceTokenizer.file_name, BpeTokenizer.file_name)
"""Under one of these a tokenizer lies beside a checkpoint."""


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """A tokenizer by its file, or the one in a checkpoint's folder.

    Args:
        path: a `.model` file (SentencePiece), a `.json` file (BPE), or a folder with
            `tokenizer.model` or `tokenizer.json`.

    Raises:
        CheckpointError: no such file, or of neither kind.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if len(found) != 1:
            raise CheckpointError(
                f"{path}: expected one of tokenizer.model and tokenizer.json, found {len(found)}"
            )
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"no tokenizer file {str(path)!r}")
    for kind in (SentencePieceTokenizer, BpeTokenizer):
        if path.suffix == Path(kind.file_name).suffix:
            try:
                return kind(path.read_bytes())
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(
        f"{path}: expected a .model (SentencePiece) or .json (BPE) file, found {path.suffix!r}"
    )


def train_bpe(captions: Iterable[str], vocab_size: int = 32000) -> BpeTokenizer:
    """Byte-pair encoding learned from captions; the same captions give the same file.

    Args:
        captions: texts; read once, so a generator over a table will do.
        vocab_size: ids wanted, with the 256 bytes and three special ones; fewer come out when the
            captions have no more pairs to merge.

    Raises:
        ConfigError: `vocab_size` leaves no room for merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet) + len(_SPECIAL):
        raise ConfigError(
            f"vocab_size {vocab_size} must exceed the {len(alphabet) + len(_SPECIAL)} ids of bytes "
            "and special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return BpeTokenizer(tokenizer.to_str().encode())


def caption_words(tokenizer: TextTokenizer, captions: Sequence[str], max_seq_len: int) -> Tensor:
    """Captions for teacher forcing: position t of a row is given, position t + 1 is to be said.

    Args:
        tokenizer: which ids.
        captions: N texts; long ones are cut so that EOS still fits.
        max_seq_len: positions of the decoder (`TextConfig.max_seq_len`), of which the semantic
            token takes one.

    Returns:
        [N, L] int64: BOS, words, EOS, then IGNORE. L is what the longest caption needs, at most
        `max_seq_len`.
    """
    rows = [tokenizer.encode(text)[: max_seq_len - 2] for text in captions]
    words = torch.full((len(rows), 2 + max((len(row) for row in rows), default=0)), IGNORE)
    for index, row in enumerate(rows):
        words[index, : len(row) + 2] = torch.tensor([tokenizer.bos_id, *row, tokenizer.eos_id])
    return words
