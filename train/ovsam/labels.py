"""Which class each region of the stores is, by the region's key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.truth import OBJECT, Truth
from tap_engine.train.data.store_reader import StoreReader

LABEL = "label"
"""Column of `regions`: the name of the class, null where nobody says."""

Keys = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RegionLabels:
    """A look-up in two sorted arrays: eight bytes a key and class, 16 MB for a million regions.

    Attributes:
        keys: [N] int64, sorted.
        ids: [N] int64, class ids.
    """

    keys: Keys
    ids: Keys

    @classmethod
    def of(cls, names: Mapping[int, str], ids: Mapping[str, int]) -> "RegionLabels":
        """From the class name of each region; names without an id are left out."""
        known = sorted((key, ids[name]) for key, name in names.items() if name in ids)
        pairs = np.array(known, np.int64).reshape(-1, 2)
        return cls(pairs[:, 0].copy(), pairs[:, 1].copy())

    def __len__(self) -> int:
        return len(self.keys)

    def look_up(self, keys: Tensor) -> Tensor:
        """Class ids of region keys, of the keys' shape; -1 where there is none."""
        if not len(self.keys):
            return torch.full_like(keys, -1)
        wanted = keys.cpu().numpy()
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        found = np.where(self.keys[at] == wanted, self.ids[at], -1)
        return torch.from_numpy(found).to(keys.device)


def labels_of_stores(
    readers: Sequence[StoreReader], ids: Mapping[str, int], truth: Truth | None
) -> RegionLabels:
    """The classes of all regions of some stores.

    Args:
        readers: the stores.
        ids: class name -> id; regions of other classes are left out, so a run on base classes
            never sees the name of a novel one.
        truth: of sample-world stores; its objects have their concept as class.

    Raises:
        StoreError: a store has no `label` column and there is no truth table.
    """
    names: dict[int, str] = {}
    for reader in readers:
        table = lance.dataset(f"{reader.uri}/regions.lance", version=reader.versions["regions"])
        if LABEL in table.schema.names:
            rows = table.to_table(columns=["key", LABEL])
            pairs = zip(rows["key"].to_pylist(), rows[LABEL].to_pylist(), strict=True)
            names |= {key: label for key, label in pairs if label is not None}
        elif truth is not None:
            rows = table.to_table(columns=["key", "image_id", "region_id"])
            for key, image, region in zip(*(c.to_pylist() for c in rows.columns), strict=True):
                thing = truth.rows.get((image, region))
                if thing is not None and thing.kind == OBJECT:
                    names[key] = thing.concept
        else:
            raise StoreError(
                f"{reader.uri} has no column {LABEL!r}, so nothing says what its regions are: "
                "import a data set with classes, or give --set init.labels=TRUTH for a store of "
                "the sample world"
            )
    return RegionLabels.of(names, ids)
