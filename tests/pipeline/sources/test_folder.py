import os

import pytest

from tap_engine.pipeline.sources.folder import Folder, Names, image_number

FILES = [
    "images/a.png",
    "cat/1.png",
    "dog/1.png",
    "x y.png",
    "sub/deep/K.PNG",
    "b%20c.png",
    "b c.png",
    "caf\u00e9.png",
    "labels/a.png",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("images/a.png", "images/a.png"),
        ("a.png", "images/a.png"),
        ("..\\..\\upload\\a.png", "images/a.png"),
        ("/srv/sets/cat/1.png", "cat/1.png"),
        ("C:\\data\\dog\\1.png", "dog/1.png"),
        ("https://host/x%20y.png?size=2", "x y.png"),
        ("/data/local-files/?d=sub/deep/K.PNG", "sub/deep/K.PNG"),
        ("k.png", "sub/deep/K.PNG"),
        ("b%20c.png", "b%20c.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("images/a", "images/a.png"),
        ("patch/9/a.png", "images/a.png"),
    ],
)
def test_a_name_finds_its_photo(wanted, found) -> None:
    assert Names(FILES, less=["labels/a.png"]).find(wanted) == found


@pytest.mark.parametrize("wanted", ["1.png", "zz.png", "../secret.png", "a.tif", "", "/", ".."])
def test_two_that_fit_or_none_are_refused(wanted) -> None:
    with pytest.raises(LookupError):
        Names(FILES, less=["labels/a.png"]).find(wanted)


def test_a_name_beside_the_annotations_comes_first() -> None:
    names = Names(["1.png", "train/1.png", "val/1.png"])
    assert names.find("1.png", "val") == "val/1.png"
    assert names.find("1.png") == "1.png"


def test_leftovers_of_systems_are_passed_over(tmp_path) -> None:
    for name in ("a.png", "._a.png", "__MACOSX/a.png", ".git/x.png", "a.png.part", "b/c.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    folder = Folder(str(tmp_path))
    assert list(folder.sizes) == ["a.png", "b/c.JPG"]
    assert (folder.stray, folder.unreadable) == (4, 1)


def test_numbers_follow_the_path_alone_and_fit_the_key() -> None:
    numbers = {image_number(f"photos/{index}.jpg") for index in range(20_000)}
    assert len(numbers) == 20_000 and min(numbers) >= 0 and max(numbers) < 1 << 43
    assert image_number("cafe\u0301.png") == image_number("caf\u00e9.png")
    assert image_number("a.png") == 1640262006358  # stored keys hold it: it must never change
