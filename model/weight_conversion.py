"""The work of `tap-train convert-weights`: recognises a file and converts it."""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tap_engine.model import checkpoint, concepts, official_weights
from tap_engine.model.concepts import ConceptTable
from tap_engine.schemas.errors import CheckpointError


def convert(source: Path, target: Path) -> Iterator[str]:
    """Converts a weight or concept file; yields the lines of a report.

    Args:
        source: an official .pkl (model or concepts), or a .safetensors checkpoint to write back.
        target: a folder or .safetensors file; a .pkl for the way back.

    Raises:
        CheckpointError: unsafe, damaged, of another model, or a pair of formats we do not convert.
    """
    if not source.exists():
        raise CheckpointError(f"no file {str(source)!r}")
    back = target.suffix in (".pkl", ".pth")
    if source.is_dir() or source.suffix == ".safetensors":
        if not back:
            raise CheckpointError(
                f"{source} is a checkpoint of this project already; name a .pkl to write it back"
            )
        yield from _write_back(checkpoint.checkpoint_file(source), target)
    elif back:
        raise CheckpointError(f"from {source.name} to {target.name}: name a folder to convert to")
    else:
        content = official_weights.read_official(source)
        if isinstance(content, ConceptTable):
            yield from _keep_concepts(content, source, target)
        else:
            yield from _keep_model(content, source, target)


def _keep_model(weights: dict[str, Tensor], source: Path, target: Path) -> Iterator[str]:
    name, config = official_weights.match_preset(weights, str(source))
    digest, release = official_weights.released_as(source)
    card = checkpoint.ModelCard(
        config=config,
        tokenizer=official_weights.RELEASED_TOKENIZER if release else None,
        about={"converted_from": source.name, "md5": digest, "preset": name},
    )
    written = checkpoint.save_model(target, weights, card)
    count = sum(value.numel() for value in weights.values())
    yield f"{source.name}: {name}, {len(weights)} tensors, {count:,} values, names and shapes agree"
    yield f"MD5 {digest}: " + (
        f"the released {release}" if release else "not one of the released files"
    )
    yield f"wrote {written}"
    yield (
        f"next: tap-train convert-weights CONCEPTS.pkl {written.parent}; put the released "
        f"tokenizer.model into {written.parent}; tap predict IMAGE --model {written.parent}"
    )


def _keep_concepts(table: ConceptTable, source: Path, target: Path) -> Iterator[str]:
    path = target if target.suffix == ".safetensors" else target / concepts.CONCEPTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    width = table.text_embeddings.shape[1]
    yield (
        f"{source.name}: {len(table.names):,} concepts of width {width}, logit scale "
        f"{table.logit_scale:.4g}, vocabulary {table.fingerprint}"
    )
    yield f"wrote {path}"


def _write_back(source: Path, target: Path) -> Iterator[str]:
    if source.name == concepts.CONCEPTS_FILE:
        official_weights.write_official_concepts(target, ConceptTable.load(source))
    else:
        checkpoint.read_card(source)  # refuses what is no checkpoint
        official_weights.write_official(target, load_file(source))
    yield f"wrote {target}: a pickle for the official code; ours is read without running anything"
