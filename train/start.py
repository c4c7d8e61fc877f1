"""Starting point of a run: weights, tokenizer of captions, concept names."""

import dataclasses
from pathlib import Path

from safetensors.torch import load_file

from tap_engine.model.checkpoint import ModelCard, read_card
from tap_engine.model.concepts import CONCEPTS_FILE, ConceptTable
from tap_engine.model.convnet_encoder import ConvnetEncoder
from tap_engine.model.encoder_start import initialise_encoder, start_from
from tap_engine.model.image_encoder import VitEncoder
from tap_engine.model.tap import TapModel
from tap_engine.model.text_tokenizer import FILE_NAMES as TOKENIZER_FILES
from tap_engine.model.text_tokenizer import TextTokenizer, load_tokenizer
from tap_engine.schemas.errors import CheckpointError, ConfigError
from tap_engine.schemas.shipped import SAMPLE, sample_teacher_weights
from tap_engine.train.checkpoint import model_folder
from tap_engine.train.concepts import ConceptSpace
from tap_engine.train.config import TrainConfig


def check_start(config: TrainConfig) -> None:
    """Refuses a new run of a recipe that goes on from weights, if none are given.

    Raises:
        ConfigError: names the settings that give some.
    """
    init = config.init
    given = init.weights or init.random or (init.needs == "mae" and init.mae)
    if not init.needs or given:
        return
    what = {
        "weights": (
            "goes on from trained weights: --set init.weights=RUN (a run or checkpoint folder)"
        ),
        "mae": (
            "starts its image encoder from a MAE checkpoint: --set init.mae=FILE, or --set "
            "init.weights=RUN for all weights"
        ),
    }[init.needs]
    raise ConfigError(
        f"recipe {config.recipe} {what}; if a start at random is meant, --set init.random=true"
    )


def trunk_file(name: str) -> Path:
    """The file that `init.trunk` names; "sample" is the shipped teacher if no file has that name.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    if name == SAMPLE and not path.is_file():
        return sample_teacher_weights()
    if not path.is_file():
        raise ConfigError(f"init.trunk: no file {name!r}; expected a .safetensors, or {SAMPLE}")
    return path


def initial_model(
    config: TrainConfig, tokenizer: TextTokenizer | None = None, *, resumed: bool = False
) -> tuple[TapModel, list[str]]:
    """The network with its starting weights, and what was loaded; seed torch first.

    Args:
        config: the settings of the run.
        tokenizer: the tokenizer of the run. A text decoder of `init.weights` that learned other
            ids, or has another shape or prompt, is not loaded: it starts at random.
        resumed: a checkpoint will set all weights, so none are read: what the run started from may
            be gone by now.

    Raises:
        ConfigError: a start that is for the other kind of image encoder.
        CheckpointError: weights of another model.
    """
    notes: list[str] = []
    model, init = TapModel(config.model), config.init
    if resumed:
        return model, notes
    encoder = model.image_encoder
    if init.mae:
        if not isinstance(encoder, VitEncoder):
            raise ConfigError("init.mae is for the ViT encoders (models tap-b, tap-l, ...)")
        notes.append(f"{init.mae}: {initialise_encoder(encoder, init.mae)}")
    if init.trunk:
        if not isinstance(encoder, ConvnetEncoder):
            raise ConfigError("init.trunk is for the convolutional encoder (model tiny)")
        tower = {
            name.removeprefix("visual."): value.float()
            for name, value in load_file(trunk_file(init.trunk)).items()
            if name.startswith("visual.")
        }
        encoder.load_trunk(tower)
        notes.append(f"{init.trunk}: trunk set")
    if init.weights:
        folder = model_folder(Path(init.weights))
        same = init.text and _same_text(read_card(folder), config, tokenizer)
        sizes = start_from(model, folder, text=same)
        notes.append(
            f"{init.weights}: all weights set"
            + (f", positions resized from {sizes[0]} px to {sizes[1]} px" if sizes else "")
            + ("" if same else " but the text decoder's, which starts at random")
        )
    return model, notes


def _same_text(card: ModelCard, config: TrainConfig, tokenizer: TextTokenizer | None) -> bool:
    theirs, ours = (dataclasses.replace(c.text, dropout=0.0) for c in (card.config, config.model))
    spoken = tokenizer is None or card.tokenizer in (None, tokenizer.fingerprint)
    return theirs == ours and spoken


def tokenizer_of(config: TrainConfig, checkpoint: Path | None) -> TextTokenizer | None:
    """The tokenizer of a run's captions; None where it learns none and starts from none.

    Args:
        config: the settings of the run.
        checkpoint: the folder that is gone on from, which has its own.

    Raises:
        ConfigError: captions are learned and there is no tokenizer, or more ids than the model has.
        CheckpointError: the checkpoint was trained with another one.
    """
    init, found = config.init, None
    before = [checkpoint] if checkpoint is not None else []
    if init.weights and checkpoint is None:
        before.append(model_folder(Path(init.weights)))
    for folder in before:
        if found is None and any((folder / name).is_file() for name in TOKENIZER_FILES):
            found = load_tokenizer(folder)
    if init.tokenizer and (found is None or Path(init.tokenizer).exists()):
        given = load_tokenizer(init.tokenizer)
        if checkpoint is not None and found and given.fingerprint != found.fingerprint:
            raise CheckpointError(
                f"{checkpoint} was trained with tokenizer {found.fingerprint}, init.tokenizer is "
                f"{given.fingerprint}; start a new run with another --out"
            )
        found = given
    if found is None and config.loss.caption > 0:
        raise ConfigError(
            "captions need a tokenizer: `tap-train tokenizer --store STORE --out tokenizer.json`, "
            "then --set init.tokenizer=tokenizer.json"
        )
    size = config.model.text.vocab_size
    if found is not None and found.vocab_size > size:
        raise ConfigError(
            f"the tokenizer has {found.vocab_size} ids, the text decoder only {size}; "
            f"--set model.text.vocab_size={found.vocab_size}"
        )
    return found


def concept_table_of(
    config: TrainConfig, space: ConceptSpace | None, checkpoint: Path | None = None
) -> ConceptTable | None:
    """The concept table that goes with the model: what it learns, or what it was started with."""
    if not config.model.decoder.semantic:
        return None
    learned = "embedding" in config.loss.columns or "concept_ids" in config.loss.columns
    if not learned and config.init.weights:
        started = model_folder(Path(config.init.weights)) if checkpoint is None else checkpoint
        file = started / CONCEPTS_FILE
        if file.is_file():
            return ConceptTable.load(file)
    return space.table if space is not None else None
