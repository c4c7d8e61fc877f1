import numpy as np
import pyarrow as pa
import pytest

from tap_engine.pipeline.mixing import (
    MixConfig,
    Pool,
    plan_mixture,
    read_pools,
    report_lines,
    write_mixture,
)
from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import ConfigError, SchemaError, StoreError
from tap_engine.schemas.keys import pack_image_id
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.tables import IMAGES, MIXTURE, images_schema


def pool(source: str, counts, first: int = 1) -> Pool:
    ids = [pack_image_id(source, first + k) for k in range(len(counts))]
    return Pool(np.array(ids, np.int64), np.array(counts, np.int32))


def random_pools(seed: int, sa1b: int, vg: int) -> dict[str, Pool]:
    rng = np.random.default_rng(seed)
    return {
        "sa1b": pool("sa1b", rng.integers(1, 200, sa1b)),
        "vg": pool("vg", rng.integers(1, 100, vg)),
    }


def by_subset(mixture, source: str) -> list[list[int]]:
    table = mixture.table.filter(pa.compute.field("source") == source)
    subsets = table.column("subset").to_numpy()
    ids = table.column("image_id").to_numpy()
    return [ids[subsets == k].tolist() for k in range(max(subsets) + 1)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("regions", "share"), [(60_000, 0.04), (20_000, 0.25), (100_000, 0.0401)])
def test_subsets_hold_what_was_asked(seed, regions, share) -> None:
    pools = random_pools(seed, 5000, 400)
    config = MixConfig(subsets=4, regions=regions, shares={"vg": share}, seed=seed)
    mixture = plan_mixture(pools, config)
    assert mixture.scale == 1
    sizes = {
        name: dict(zip(p.image_ids.tolist(), p.regions.tolist(), strict=True))
        for name, p in pools.items()
    }
    sa1b, vg = by_subset(mixture, "sa1b"), by_subset(mixture, "vg")
    for k in range(4):
        drawn = [sum(sizes["sa1b"][i] for i in sa1b[k]), sum(sizes["vg"][i] for i in vg[k])]
        assert abs(drawn[0] - (1 - share) * regions) <= 200
        assert abs(drawn[1] - share * regions) <= 100
        assert abs(drawn[1] / sum(drawn) - share) < 0.005
        for images in (sa1b[k], vg[k]):
            assert images == sorted(set(images)), "each image once per subset, in order"
    every = [image for images in sa1b for image in images]
    assert len(every) == len(set(every)), "drawn without replacement across subsets"
    times = np.unique([image for images in vg for image in images], return_counts=True)[1]
    uses = np.concatenate([times, np.zeros(400 - len(times), int)])
    assert uses.max() - uses.min() <= 1, "repeated in turns"
    counts = mixture.table.column("regions").to_numpy()
    ids = mixture.table.column("image_id").to_pylist()
    assert counts.tolist() == [(sizes["sa1b"] | sizes["vg"])[i] for i in ids]


def test_all_of_a_source_whose_size_is_asked_is_in_every_subset() -> None:
    """The paper's case: 4 % of 100 M are all of Visual Genome, 400 % of it in all."""
    pools = random_pools(0, 20_000, 400)
    asked = pools["vg"].total
    config = MixConfig(subsets=4, regions=20 * asked, shares={"vg": 0.05})
    for images in by_subset(plan_mixture(pools, config), "vg"):
        assert images == pools["vg"].image_ids.tolist()


@pytest.mark.parametrize(("sa1b", "vg"), [(500, 400), (5000, 20)])
def test_small_stores_give_small_subsets_with_the_same_shares(sa1b, vg) -> None:
    pools = random_pools(3, sa1b, vg)
    config = MixConfig(regions=100_000_000, shares={"vg": 0.04})
    mixture = plan_mixture(pools, config)
    expected = min(pools["sa1b"].total / 384e6, pools["vg"].total / 4e6)
    assert mixture.scale == pytest.approx(expected)
    for part in mixture.parts:
        assert abs(part.regions - part.asked) <= 200
    assert next(report_lines(mixture, config)).startswith("the stores hold less than was asked")


def test_the_seed_decides_and_the_order_in_the_store_does_not() -> None:
    pools = random_pools(1, 300, 50)
    config = MixConfig(subsets=2, regions=8000, shares={"vg": 0.1})
    first = plan_mixture(pools, config).table
    assert plan_mixture(dict(reversed(pools.items())), config).table == first
    other = MixConfig(subsets=2, regions=8000, shares={"vg": 0.1}, seed=1)
    assert plan_mixture(pools, other).table != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {"moon": 0.1}}, "no source 'moon'"),
        ({"shares": {"vg": 1.0}}, "shares must lie"),
        ({"shares": {"vg": 0.5, "coco": 0.5}}, "leave a rest"),
        ({"shares": {"coco": 0.5}}, "'coco' has a share but no images; the stores hold sa1b, vg"),
        ({"shares": {"vg": 0.5, "sa1b": 0.4}}, "nothing is left to draw"),
        ({"subsets": 0, "shares": {}}, "must be positive"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_mixture(random_pools(0, 10, 10), MixConfig(**{"regions": 100, **change}))


def images_table(store: Store, rows: list[tuple], captioned: bool) -> Store:
    names = ("image_id", "source", "region_count", *(["split"] if captioned else []))
    common = {"unit": 1, "file_name": "", "width": 1, "height": 1, "jpeg": b""}
    content = [common | dict(zip(names, row, strict=True)) for row in rows]
    schema = images_schema(captioned=captioned)
    store.create(IMAGES, pa.Table.from_pylist(content, schema), Provenance({}))
    return store


def test_pools_come_from_image_counts_without_held_out_images(tmp_path) -> None:
    """And a plan travels through a table whose provenance tells another one."""
    rows = [(number, "sa1b", number % 4) for number in (5, 2, 9, 4, 1)]
    sa1b = images_table(Store(str(tmp_path / "sa1b")), rows, captioned=False)
    splits = ("train", "val", None, "test", "train")
    rows = [(pack_image_id("vg", k), "vg", 7, split) for k, split in enumerate(splits)]
    vg = images_table(Store(str(tmp_path / "vg")), rows, captioned=True)
    pools = read_pools([vg, sa1b])
    assert list(pools) == ["sa1b", "vg"]
    assert pools["sa1b"].image_ids.tolist() == [1, 2, 5, 9]
    assert pools["sa1b"].regions.tolist() == [1, 2, 1, 1]
    assert [image & 7 for image in pools["vg"].image_ids.tolist()] == [0, 2, 4]
    assert pools["vg"].held_out == 2
    with pytest.raises(StoreError, match="in two of the stores"):
        read_pools([sa1b, sa1b])
    config = MixConfig(subsets=2, regions=10, shares={"vg": 0.7})
    mixture, out = plan_mixture(pools, config), Store(str(tmp_path / "mix"))
    assert write_mixture(out, mixture, config)
    assert out.open(MIXTURE).to_table().to_pylist() == mixture.table.to_pylist()
    assert not write_mixture(out, mixture, config), "the same plan is there already"
    other = MixConfig(subsets=2, regions=10, shares={"vg": 0.7}, seed=1)
    with pytest.raises(SchemaError, match="seed: 1 against 0"):
        write_mixture(out, plan_mixture(pools, other), other)
    assert "vg: 14 regions in all subsets, 66.7% of its 21; 2 images of val and test left out" in (
        list(report_lines(mixture, config))
    )
