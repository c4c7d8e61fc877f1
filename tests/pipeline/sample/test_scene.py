from collections import Counter

import cv2
import numpy as np
import pytest

from tap_engine.pipeline.sample import sprites as sample_sprites
from tap_engine.pipeline.sample.captions import compose_captions
from tap_engine.pipeline.sample.drawings import (
    LEFT_OUT_REASONS,
    SAMPLE_DATA,
    SURFACES,
    concept_groups,
    drawings,
    left_out,
    plain_name,
    select,
)
from tap_engine.pipeline.sample.layout import (
    MAX_OBJECTS,
    MIN_OBJECTS,
    TINTS,
    Backdrop,
    Placement,
    SceneLayout,
    plan_layout,
)
from tap_engine.pipeline.sample.scene import Scene, SceneRegion, draw_layout, render_scene
from tap_engine.pipeline.sample.stuff import paint
from tap_engine.schemas import rle
from tap_engine.schemas.errors import ConfigError, SourceError
from tap_engine.schemas.vocabulary import load_vocabulary


def scene_of(seed: int, size: int = 256) -> Scene:
    return render_scene(np.random.default_rng(seed), size, select())


def mask_of(region: SceneRegion, size: int) -> np.ndarray:
    return rle.decode(region.counts, (size, size)).astype(bool)


def test_the_list_names_at_least_300_concepts_of_the_vocabulary() -> None:
    names = load_vocabulary("merged-2560").ids
    concepts = {drawing.concept for drawing in drawings()}
    assert len(concepts) >= 300
    assert concepts | set(SURFACES) <= set(names)
    assert not concepts & set(SURFACES), "a thing and a surface share a name"
    assert set(concept_groups()) == concepts | set(SURFACES)


def test_what_is_left_out_has_a_reason_and_is_not_also_used() -> None:
    used = {drawing.glyph for drawing in drawings()}
    assert not used & set(left_out())
    assert {reason for _, reason in left_out().values()} <= set(LEFT_OUT_REASONS)


def test_select_by_group() -> None:
    chosen = select(("vehicle",))
    assert {drawings()[i].group for indices in chosen.values() for i in indices} == {"vehicle"}
    with pytest.raises(ConfigError, match=r"'vehicles'; known: .*vehicle"):
        select(("vehicles",))


def test_sprites_fill_their_cells_and_divide_into_parts() -> None:
    sprites = sample_sprites.load_sprites()
    assert len(sprites.rgba) == len(sprites.parts) == len(drawings())
    assert sprites.made["font_version"] == "2.042"
    inside = sprites.rgba[..., 3] >= 128
    assert inside.any(axis=(1, 2)).all()
    assert np.array_equal(sprites.parts > 0, inside)
    counts = sprites.parts.reshape(len(drawings()), -1).max(axis=1)
    assert 2 < counts.mean() <= sample_sprites.MAX_PARTS


def test_the_data_card_counts_what_the_lists_hold() -> None:
    card = (SAMPLE_DATA / "README.md").read_text("utf-8")
    concepts = {drawing.concept for drawing in drawings()}
    assert f"| things | {len(concepts)} concepts" in card
    assert f"{len(drawings())} drawings (`concepts.tsv`" in card
    assert f"| left out | {len(left_out())} drawings" in card
    for reason, count in Counter(reason for _, reason in left_out().values()).items():
        assert f" {count} " in card, f"{count} left out as {reason}"


def test_a_missing_font_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(sample_sprites, "_FONT_PLACES", ())
    with pytest.raises(SourceError, match="apt-get install fonts-noto-color-emoji"):
        sample_sprites.make_sprites(tmp_path)


def test_another_file_is_not_taken_for_the_font(tmp_path) -> None:
    other = tmp_path / "font.ttf"
    other.write_bytes(b"no font")
    with pytest.raises(SourceError, match=r"font\.ttf: expected the bitmap"):
        sample_sprites.make_sprites(tmp_path, other)


def test_the_shipped_sheet_is_what_the_font_draws() -> None:
    try:
        font = sample_sprites._find_font()
    except SourceError:
        pytest.skip("the font Noto Color Emoji is not installed")
    if sample_sprites._font_version(font.read_bytes()) != "2.042":
        pytest.skip("another version of the font is installed")
    face = sample_sprites.ImageFont.truetype(str(font), sample_sprites.STRIKE)
    sprites = sample_sprites.load_sprites()
    for index in range(0, len(drawings()), 50):
        drawn = sample_sprites._draw(face, drawings()[index].glyph)
        assert np.array_equal(drawn, sprites.rgba[index])
        assert np.array_equal(sample_sprites._divide(drawn), sprites.parts[index])


@pytest.mark.parametrize("stuff", SURFACES)
def test_a_surface_is_textured_and_within_range(stuff: str) -> None:
    painted = paint(stuff, np.random.default_rng(3), 128)
    assert painted.shape == (128, 128, 3)
    assert painted.dtype == np.float32
    assert -20 < painted.min() < painted.max() < 300
    assert painted.std() > 1


def test_objects_are_disjoint_and_parts_lie_in_their_object() -> None:
    for seed in range(6):
        scene = scene_of(seed)
        taken = np.zeros((256, 256), int)
        for region in scene.regions:
            mask = mask_of(region, 256)
            assert region.area == mask.sum() > 0
            assert region.bbox_xywh == rle.bbox_xywh(
                rle.runs(region.counts, (256, 256)), (256, 256)
            )
            assert mask[region.point_xy[1], region.point_xy[0]]
            assert 0 < region.visibility <= 1
            if region.kind == "part":
                parent = scene.regions[region.parent]
                assert parent.kind == "object"
                assert parent.concept == region.concept
                assert not (mask & ~mask_of(parent, 256)).any()
            else:
                taken += mask
        assert taken.max() == 1
        # What is left is small: unannotated slivers of objects and surfaces.
        assert (taken == 0).mean() < 0.03


def test_scenes_hold_six_to_twelve_objects_and_all_kinds() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(20):
        regions = scene_of(seed, 128).regions
        objects = [region for region in regions if region.kind == "object"]
        assert MIN_OBJECTS <= len(objects) <= MAX_OBJECTS
        assert len({region.concept for region in objects}) == len(objects)
        kinds += Counter(region.kind for region in regions)
        assert {region.tint for region in regions} <= {None, *TINTS}
    assert min(kinds["object"], kinds["part"], kinds["stuff"]) >= 20


def test_a_mask_is_exactly_where_the_object_shows() -> None:
    """Taking the nearest object away changes its mask, and nothing but its soft outline beside."""
    layout = plan_layout(np.random.default_rng(5), select())
    top = layout.placements[-1]
    # Without a shadow, which darkens what is beside an object.
    top = Placement(**{name: getattr(top, name) for name in top.__slots__} | {"grounded": False})
    with_it = SceneLayout(backdrop=layout.backdrop, placements=(*layout.placements[:-1], top))
    without = SceneLayout(backdrop=layout.backdrop, placements=layout.placements[:-1])
    scenes = [draw_layout(each, np.random.default_rng(0), 256) for each in (with_it, without)]
    changed = (scenes[0].image_rgb != scenes[1].image_rgb).any(axis=-1)
    concept = drawings()[top.drawing].concept
    (region,) = (r for r in scenes[0].regions if r.kind == "object" and r.concept == concept)
    mask = mask_of(region, 256)
    assert (changed & mask).sum() > 0.95 * mask.sum()
    around = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    assert not (changed & ~around).any()


def test_visibility_counts_what_is_covered_and_what_is_cut_off() -> None:
    apple = next(i for i, drawing in enumerate(drawings()) if drawing.concept == "apple")
    backdrop = Backdrop(stuff=("sand",), edges=(), path=None, horizon=0.0)

    def visible(*centres: tuple[float, float]) -> float:
        placements = tuple(
            Placement(
                drawing=apple,
                centre_xy=centre,
                side=0.3,
                degrees=0,
                mirrored=False,
                tint=None,
                strength=0.5,
                light=1.0,
                grounded=False,
            )
            for centre in centres
        )
        layout = SceneLayout(backdrop=backdrop, placements=placements)
        scene = draw_layout(layout, np.random.default_rng(0), 256)
        return next(r for r in scene.regions if r.kind == "object").visibility

    assert visible((0.5, 0.5)) == 1
    assert visible((0.0, 0.5)) == pytest.approx(0.5, abs=0.06)
    assert 0.2 < visible((0.5, 0.5), (0.6, 0.5)) < 0.6


def test_the_same_scene_at_two_sizes() -> None:
    small, large = scene_of(11, 256), scene_of(11, 512)
    pairs = [
        (one, other)
        for one in small.regions
        for other in large.regions
        if one.kind == other.kind == "object" and one.concept == other.concept
    ]
    assert len(pairs) >= MIN_OBJECTS
    for one, other in pairs:
        shrunk = mask_of(other, 512)[::2, ::2]
        mask = mask_of(one, 256)
        assert (mask & shrunk).sum() > 0.9 * (mask | shrunk).sum()


def test_captions_are_true_and_grammatical() -> None:
    for seed in range(8):
        scene = scene_of(seed)
        captions = compose_captions(scene, np.random.default_rng(0))
        by_region = Counter(index for index, _ in captions)
        for index, region in enumerate(scene.regions):
            assert by_region[index] == {"object": 2, "part": 0, "stuff": 1}[region.kind]
        for index, phrase in captions:
            region = scene.regions[index]
            assert plain_name(region.concept) in phrase
            assert ("  " not in phrase) and "(" not in phrase and phrase == phrase.strip()
            if region.tint:
                assert f"{region.tint} {plain_name(region.concept)}" in phrase
            for name, sign in ((" left of ", 1), (" right of ", -1)):
                if name in phrase:
                    words = phrase.split(name)[1].removeprefix("an ").removeprefix("a ")
                    other = next(
                        r
                        for r in scene.regions
                        if r.kind == "object" and plain_name(r.concept) == words
                    )
                    here, there = (r.bbox_xywh[0] + r.bbox_xywh[2] / 2 for r in (region, other))
                    assert sign * (there - here) > 0
        assert all(" a orange" not in f" {phrase}" for _, phrase in captions)
