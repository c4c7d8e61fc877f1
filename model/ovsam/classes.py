"""Class names -> text prototypes -> scores of regions.

A class has one prototype for each of its synonyms, the mean over 14 templates; a region scores the
best of them. Prototypes come from the text tower of the same CLIP; a table of them lies beside a
checkpoint as `classes.safetensors`, so a model names things without a text tower.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_engine.model.tensor_file import open_tensors, write_tensors
from tap_engine.schemas.errors import CheckpointError, ConfigError

CLASSES_FILE = "classes.safetensors"

TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""The 14 templates of open-vocabulary detection (ViLD; Gu et al., 2022) that the method uses. Some
have no full stop, some begin with a capital: so do the published ones."""

NEITHER, BASE, NOVEL = 0, 1, 2
"""Which split a class is in: `ClassTable.kinds`."""

_METADATA = "tap.classes"

TextEncoder = Callable[[Sequence[str]], Tensor]
"""N texts -> [N, E] of CLIP's text tower, of any length."""


def synonyms(name: str) -> tuple[str, ...]:
    """The names of a class that its data set's name lists.

    Split at ",", "/" and "_or_" outside brackets, "_" is a blank, lower case: "laptop_computer" is
    one name, "sofa/couch" are two, LVIS's "tape_(sticky_cloth_or_paper)" stays one.
    """
    pieces, depth, start, at = [], 0, 0, 0
    while at < len(name):
        depth += {"(": 1, ")": -1}.get(name[at], 0)
        cut = next((s for s in (",", "/", "_or_") if name.startswith(s, at)), "")
        if cut and depth <= 0:
            pieces.append(name[start:at])
            at = start = at + len(cut)
        else:
            at += 1
    pieces.append(name[start:])
    found = [re.sub(r"\s+", " ", piece.replace("_", " ")).strip().lower() for piece in pieces]
    return tuple(dict.fromkeys(piece for piece in found if piece))


@dataclass(frozen=True, slots=True, eq=False)
class ClassTable:
    """Classes that a model can name.

    Attributes:
        names: of C classes, unique, as they are shown.
        prototypes: [C, P, E] unit text embeddings; a class of fewer synonyms repeats its first.
        kinds: [C] int64: BASE, NOVEL or NEITHER. All are NOVEL where nobody says, so that frozen
            CLIP has the most weight.
        aliases: other names -> place: how the data sets of a union write these classes.
    """

    names: tuple[str, ...]
    prototypes: Tensor
    kinds: Tensor
    aliases: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            double = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"class names must be unique, {double!r} is there more than once")
        if self.prototypes.ndim != 3 or len(self.prototypes) != len(self.names):
            raise ConfigError(
                f"{len(self.names)} classes need prototypes [{len(self.names)}, P, E], got "
                f"{list(self.prototypes.shape)}"
            )
        if tuple(self.kinds.shape) != (len(self.names),):
            raise ConfigError(
                f"{len(self.names)} classes need as many kinds, got {list(self.kinds.shape)}"
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of names and order."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    @property
    def ids(self) -> dict[str, int]:
        """Every name and alias -> place."""
        return {**self.aliases, **{name: index for index, name in enumerate(self.names)}}

    def subset(self, names: Iterable[str]) -> "ClassTable":
        """Only these classes, in this order.

        Raises:
            ConfigError: a name is not here.
        """
        ids = {name: index for index, name in enumerate(self.names)}
        wanted = tuple(names)
        if missing := [name for name in wanted if name not in ids]:
            raise ConfigError(
                f"{len(missing)} of {len(wanted)} classes have no text prototype here, first "
                f"{missing[0]!r}; make a table of them with CLIP's text tower"
            )
        rows = torch.tensor([ids[name] for name in wanted], dtype=torch.int64)
        places = {old: new for new, old in enumerate(rows.tolist())}
        aliases = {name: places[old] for name, old in self.aliases.items() if old in places}
        return ClassTable(wanted, self.prototypes[rows], self.kinds[rows], aliases)

    def with_kinds(self, base: Iterable[str] = (), novel: Iterable[str] = ()) -> "ClassTable":
        """The same classes with a split; those in neither list can never be the answer.

        Raises:
            ConfigError: a name is in both lists, or not here.
        """
        ids = {name: index for index, name in enumerate(self.names)}
        kinds = torch.full((len(self.names),), NEITHER)
        base, novel = set(base), set(novel)
        if both := base & novel:
            raise ConfigError(f"{min(both)!r} is in the base and in the novel classes")
        if unknown := (base | novel) - ids.keys():
            raise ConfigError(f"no class {min(unknown)!r} among the {len(self.names)} of the table")
        for group, kind in ((base, BASE), (novel, NOVEL)):
            for name in group:
                kinds[ids[name]] = kind
        return replace(self, kinds=kinds)

    def save(self, path: str | Path) -> None:
        """Writes the file."""
        tensors = {"prototypes": self.prototypes, "kinds": self.kinds}
        write_tensors(
            Path(path),
            tensors,
            {_METADATA: json.dumps({"names": self.names, "aliases": self.aliases})},
        )

    @classmethod
    def load(cls, path: str | Path) -> "ClassTable":
        """Inverse of `save`.

        Raises:
            CheckpointError: missing, or no such file.
        """
        with open_tensors(Path(path)) as file:
            try:
                content = json.loads((file.metadata() or {})[_METADATA])
                names, aliases = content["names"], content.get("aliases", {})
                parts = file.get_tensor("prototypes"), file.get_tensor("kinds")
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{path}: expected text prototypes with class names, found {error!r}"
                ) from error
        return cls(tuple(names), parts[0].float(), parts[1], aliases)


def make_classes(
    names: Sequence[str],
    encode: TextEncoder,
    *,
    texts: Sequence[Sequence[str]] | None = None,
    templates: Sequence[str] = TEMPLATES,
    batch: int = 64,
) -> ClassTable:
    """The table of some class names; all of them novel until `with_kinds`.

    Args:
        names: as they are shown; unique.
        encode: the text tower.
        texts: the synonyms of each class; by default those that its name lists.
        templates: sentences with one {}.
        batch: synonyms encoded at a time.
    """
    lists = [tuple(t) for t in texts] if texts is not None else [synonyms(name) for name in names]
    if empty := [name for name, found in zip(names, lists, strict=True) if not found]:
        raise ConfigError(f"class {empty[0]!r} has no word in it")
    flat = list(dict.fromkeys(text for found in lists for text in found))
    rows = []
    for start in range(0, len(flat), batch):
        part = flat[start : start + batch]
        vectors = encode([t.format(text) for text in part for t in templates]).float()
        vectors = F.normalize(vectors, dim=-1).unflatten(0, (len(part), len(templates)))
        rows.append(F.normalize(vectors.mean(1), dim=-1))
    known, ids = torch.cat(rows), {text: i for i, text in enumerate(flat)}
    most = max(len(found) for found in lists)
    places = [[ids[t] for t in (*found, *found[:1] * (most - len(found)))] for found in lists]
    kinds = torch.full((len(lists),), NOVEL)
    return ClassTable(tuple(names), known[torch.tensor(places)], kinds)


def class_logits(
    embeddings: Tensor, prototypes: Tensor, log_scale: float, *, chunk: int = 0
) -> Tensor:
    """[K, C + 1]: a factor times the best cosine of each class, then the background's 0.

    Args:
        embeddings: [K, E], of any length.
        prototypes: [C, P, E], unit.
        log_scale: logarithm of the factor.
        chunk: classes at a time; 0 takes all. Beside the result this needs 4 K P chunk bytes.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    step = chunk or max(len(prototypes), 1)
    best = [
        (unit @ part.flatten(0, 1).T).unflatten(1, part.shape[:2]).amax(-1)
        for part in prototypes.split(step)
    ]
    scores = torch.cat([*best, unit.new_zeros(len(unit), 1)], dim=1)
    return scores * torch.tensor(log_scale).exp().item()
