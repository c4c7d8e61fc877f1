"""Plans CaptionSA-400M: which images of which store each subset trains on. Copies nothing.

TAP-v2 (section 3.1) mixes about 4 M regions of Visual Genome with about 96 M of SA-1B into a core
subset of 100 M, and draws SA-1B again for each of 4 subsets. Here a source that is named with a
share is *repeated*: each subset takes its share from the source in rotation, so how often two
images are used differs by one at most. All other sources are *drawn*: no image is in two subsets.
Whole images are drawn; counts come from `images`, so pixels and regions are never read
(docs/decisions/0061-mixture.md).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, StoreError
from tap_engine.schemas.keys import SOURCES
from tap_engine.schemas.provenance import Provenance, software
from tap_engine.schemas.tables import IMAGES, MIXTURE, SOURCE_TYPE, mixture_schema

HELD_OUT = ("val", "test")
"""Splits that never enter a mixture: captions are measured on them."""

_BATCH_ROWS = 1 << 17

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Settings of a mixture.

    Attributes:
        subsets: the number of subsets.
        regions: the number of regions per subset.
        shares: source name -> share of that repeated source in every subset's regions.
        seed: another one draws other images.
    """

    subsets: int = 4
    regions: int = 100_000_000
    shares: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 1 or self.regions < 1:
            raise ConfigError(
                f"subsets and regions must be positive, got {self.subsets} and {self.regions}"
            )
        if unknown := set(self.shares) - set(SOURCES):
            raise ConfigError(
                f"no source {min(unknown)!r} to give a share; there are {', '.join(SOURCES)}"
            )
        total = sum(self.shares.values())
        if any(not 0 < share < 1 for share in self.shares.values()) or total >= 1:
            raise ConfigError(f"shares must lie in 0..1 and leave a rest, got {dict(self.shares)}")


@dataclass(frozen=True, slots=True)
class Pool:
    """The usable images of one source, sorted by id; those without regions are of no use.

    Attributes:
        image_ids: [N] int64.
        regions: [N] int32.
        held_out: images left out because of their split.
    """

    image_ids: Ids
    regions: npt.NDArray[np.int32]
    held_out: int = 0

    @property
    def total(self) -> int:
        """Regions of all its images."""
        return int(self.regions.sum(dtype=np.int64))

    def describe(self) -> dict[str, int | str]:
        """The mixture's settings as provenance keeps them."""
        digest = hashlib.blake2b(self.image_ids.tobytes(), digest_size=8)
        digest.update(self.regions.tobytes())
        images = len(self.image_ids)
        return {"images": images, "regions": self.total, "digest": digest.hexdigest()}


@dataclass(frozen=True, slots=True)
class Part:
    """Share of one source in one subset: asked and drawn regions, drawn images."""

    subset: int
    source: str
    asked: int
    regions: int
    images: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """A plan.

    Attributes:
        table: rows of `mixture_schema`, sorted by subset, source and image id.
        parts: subset by subset, source by source.
        scale: 1, or by how much less than was asked the stores hold; all subsets shrink alike.
        pools: what there was, by source.
    """

    table: pa.Table
    parts: list[Part]
    scale: float
    pools: Mapping[str, Pool]


def read_pools(stores: Sequence[Store]) -> dict[str, Pool]:
    """Image-level counts of some stores, by source; 12 B an image.

    Raises:
        StoreError: not a store, or an image that is in two of them.
    """
    ids: dict[str, list[Ids]] = {}
    regions: dict[str, list[npt.NDArray[np.int32]]] = {}
    held_out: Counter[str] = Counter()
    for store in stores:
        dataset = store.open(IMAGES)
        split = ["split"] if "split" in dataset.schema.names else []
        columns = ["image_id", "source", "region_count", *split]
        for batch in dataset.scanner(columns=columns, batch_size=_BATCH_ROWS).to_batches():
            batch_ids, counts = (batch.column(c).to_numpy() for c in ("image_id", "region_count"))
            out = np.zeros(len(counts), bool)
            if split:
                found = pc.is_in(batch.column("split"), pa.array(HELD_OUT))
                out = found.to_numpy(zero_copy_only=False)
            source = batch.column("source")
            codes = source.indices.to_numpy()
            for code, name in enumerate(source.dictionary.to_pylist()):
                mine = codes == code
                held_out[name] += int((mine & out).sum())
                mine &= (counts > 0) & ~out
                ids.setdefault(name, []).append(batch_ids[mine])
                regions.setdefault(name, []).append(counts[mine])
    pools = {}
    for name in _ordered(ids):
        every = np.concatenate(ids.pop(name))
        order = np.argsort(every, kind="stable")
        every = every[order]
        if len(repeated := every[1:][every[1:] == every[:-1]]):
            raise StoreError(
                f"image {repeated[0]} is in two of the stores, or twice in one; name each store "
                "once, and run `tap-data verify`"
            )
        pools[name] = Pool(every, np.concatenate(regions.pop(name))[order], held_out[name])
    return pools


def plan_mixture(pools: Mapping[str, Pool], config: MixConfig) -> Mixture:
    """Draw the subsets; the same pools and config give the same plan, in whatever order stored.

    Raises:
        ConfigError: a source with a share has no images, or nothing is left to draw.
    """
    if missing := [name for name in config.shares if not pools.get(name) or not pools[name].total]:
        raise ConfigError(
            f"source {missing[0]!r} has a share but no images; the stores hold "
            f"{', '.join(name for name, pool in pools.items() if pool.total) or 'none'}"
        )
    drawn = {name: pool for name, pool in pools.items() if name not in config.shares and pool.total}
    if not drawn:
        raise ConfigError(
            "every source has a share, so nothing is left to draw; name a store of SA-1B too"
        )
    rest = 1 - sum(config.shares.values())
    drawn_total = sum(pool.total for pool in drawn.values())
    scale = min(
        1.0,
        drawn_total / (config.subsets * rest * config.regions),
        *(pools[name].total / (s * config.regions) for name, s in config.shares.items()),
    )
    # Several drawn sources share the rest by what they hold.
    asked = {name: share * config.regions * scale for name, share in config.shares.items()} | {
        name: pool.total / drawn_total * rest * config.regions * scale
        for name, pool in drawn.items()
    }
    draws = {name: _Draw(pools[name], asked[name], name, config.seed) for name in _ordered(asked)}
    parts: list[Part] = []
    tables: list[pa.Table] = []
    for subset in range(config.subsets):
        for name, draw in draws.items():
            pool, rows = pools[name], draw.rows(subset)
            drawn_regions = int(pool.regions[rows].sum(dtype=np.int64))
            parts.append(Part(subset, name, round(asked[name]), drawn_regions, len(rows)))
            tables.append(_table(subset, name, pool, rows))
    return Mixture(pa.concat_tables(tables), parts, scale, pools)


def write_mixture(out: Store, mixture: Mixture, config: MixConfig) -> bool:
    """Store a plan as table `mixture`; False when the same one is there already.

    Raises:
        SchemaError: another plan is there.
    """
    settings: dict[str, Any] = {
        "subsets": config.subsets,
        "regions": config.regions,
        "shares": dict(config.shares),
        "seed": config.seed,
        "held_out_splits": list(HELD_OUT),
        "pools": {name: pool.describe() for name, pool in mixture.pools.items()},
    }
    wanted = Provenance(settings, software())
    if out.exists(MIXTURE):
        wanted.require_same(out.provenance(MIXTURE), f"the mixture in {out.uri}")
        return False
    out.create(MIXTURE, mixture.table, wanted)
    return True


def report_lines(mixture: Mixture, config: MixConfig) -> Iterator[str]:
    """Lines for people: what was drawn beside what was asked."""
    if mixture.scale < 1:
        yield (
            f"the stores hold less than was asked for: every subset has "
            f"{mixture.scale:.4%} of {config.regions:,} regions"
        )
    yield f"{'subset':>6}  {'source':<8} {'asked':>13} {'drawn':>13} {'share':>8} {'images':>11}"
    subset_regions: Counter[int] = Counter()
    for part in mixture.parts:
        subset_regions[part.subset] += part.regions
    for part in mixture.parts:
        share = part.regions / subset_regions[part.subset]
        yield (
            f"{part.subset:>6}  {part.source:<8} {part.asked:>13,} {part.regions:>13,} "
            f"{share:>8.3%} {part.images:>11,}"
        )
    for name, pool in mixture.pools.items():
        regions = sum(part.regions for part in mixture.parts if part.source == name)
        times = regions / pool.total if pool.total else 0.0
        held_out = ""
        if pool.held_out:
            held_out = f"; {pool.held_out:,} images of {' and '.join(HELD_OUT)} left out"
        used = f"{regions:,} regions in all subsets, {times:.1%} of its {pool.total:,}"
        yield f"{name}: {used}{held_out}"


class _Draw:
    """A random order of a pool's images, cut where regions come nearest to each target."""

    def __init__(self, pool: Pool, target: float, name: str, seed: int) -> None:
        rng = np.random.default_rng([seed, SOURCES[name]])
        self._order = rng.permutation(len(pool.image_ids))
        self._ends = np.zeros(len(pool.image_ids) + 1, np.int64)
        np.cumsum(pool.regions[self._order], out=self._ends[1:])
        self._target = target

    def rows(self, subset: int) -> Ids:
        """Rows of the pool in a subset, ascending; after the last image comes the first again."""
        low, high = (self._place(edge * self._target) for edge in (subset, subset + 1))
        return np.sort(np.take(self._order, np.arange(low, high), mode="wrap"))

    def _place(self, regions: float) -> int:
        """Number of images, in rotation, that hold about so many regions."""
        rounds, left = divmod(regions, int(self._ends[-1]))
        right = int(np.clip(np.searchsorted(self._ends, left), 1, len(self._order)))
        before, after = left - self._ends[right - 1], self._ends[right] - left
        return int(rounds) * len(self._order) + (right - 1 if before < after else right)


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: SOURCES[name])


def _table(subset: int, name: str, pool: Pool, rows: Ids) -> pa.Table:
    source = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int8), pa.array([name]))
    return pa.table(
        [
            pa.array(np.full(len(rows), subset, np.int32)),
            pa.array(pool.image_ids[rows]),
            source.cast(SOURCE_TYPE),
            pa.array(pool.regions[rows]),
        ],
        schema=mixture_schema(),
    )
