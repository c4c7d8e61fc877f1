"""Learns a tokenizer from the captions of stores."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow.compute as pc

from tap_engine.model.text_tokenizer import BpeTokenizer, train_bpe
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.tables import REGIONS, table_uri
from tap_engine.train.data.lance_table import open_table


def learn_tokenizer(
    stores: Sequence[str],
    size: int,
    split: str = "train",
    storage_options: Mapping[str, str] | None = None,
) -> tuple[BpeTokenizer, int]:
    """Byte-pair encoding of the captions, and how many there were.

    Args:
        stores: captioned stores; read once, a batch in memory.
        size: ids wanted; fewer come out where the captions have no more pairs to merge.
        split: regions whose `split` column names another are left out; empty takes all.
        storage_options: options of the object store, as Lance takes them.

    Raises:
        StoreError: no caption there.
        ConfigError: `size` leaves no room for merges.
    """
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        for store in stores:
            for text in _captions(store, split, storage_options):
                count += 1
                yield text

    found = train_bpe(texts(), size)
    if not count:
        raise StoreError(f"{', '.join(stores)}: no captions in split {split!r}")
    return found, count


def _captions(store: str, split: str, options: Mapping[str, str] | None) -> Iterator[str]:
    table = open_table(table_uri(store, REGIONS), options)
    by_split = bool(split) and "split" in table.schema.names
    columns = ["caption", "split"] if by_split else ["caption"]
    for batch in table.to_batches(columns=columns):
        if by_split:
            batch = batch.filter(pc.fill_null(pc.equal(batch["split"], split), True))
        yield from (text for text in batch["caption"].to_pylist() if text)
