"""One vocabulary of several data sets' class names.

Two classes are one where their first synonym is the same word: "Sofa/couch" of one list and "sofa"
of another. A word is no identity (a crane is a bird and a machine), and none of the published
descriptions says how its 22,000 classes were counted, so each class keeps which names of which
lists it stands for, and the fingerprint says which union a model was trained with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tap_engine.model.ovsam.classes import synonyms


@dataclass(frozen=True, slots=True)
class UnionClass:
    """A class of the union.

    Attributes:
        name: the first synonym, which is the key.
        texts: all synonyms of all its members, each once.
        members: (data set, the name as it is written there), in the order of the lists.
    """

    name: str
    texts: tuple[str, ...]
    members: tuple[tuple[str, str], ...]


def union_classes(lists: Mapping[str, Sequence[str]]) -> list[UnionClass]:
    """The union, in the order in which classes first appear.

    Args:
        lists: data set -> class names as it writes them. Names without a word are left out.
    """
    texts: dict[str, dict[str, None]] = {}
    members: dict[str, list[tuple[str, str]]] = {}
    for data_set, names in lists.items():
        for name in names:
            words = synonyms(name)
            if not words:
                continue
            texts.setdefault(words[0], {}).update(dict.fromkeys(words))
            found = members.setdefault(words[0], [])
            if (data_set, name) not in found:
                found.append((data_set, name))
    return [UnionClass(key, tuple(texts[key]), tuple(members[key])) for key in texts]


def aliases_of(classes: Sequence[UnionClass]) -> dict[str, int]:
    """Every name as a data set writes it -> place of its class; what a store's labels are."""
    return {name: i for i, found in enumerate(classes) for _, name in found.members}
