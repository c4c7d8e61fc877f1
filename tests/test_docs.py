"""The pages that list things list all of them, and what they link to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "model", "pipeline", "train", "jobs")
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/results/*.md")]
)
LINK = re.compile(r"\]\(([^)#\s]+)")


def links(page: Path) -> set[Path]:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    found = [target for target in LINK.findall(text) if "://" not in target]
    return {(page.parent / target).resolve() for target in found}


def test_the_map_has_every_file_of_the_five_rooms() -> None:
    files = {path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    listed = {path for path in links(ROOT / "docs" / "map.md") if path.suffix == ".py"}
    wrong = sorted(str(path.relative_to(ROOT)) for path in files ^ listed)
    assert not wrong, f"run `make map`: files that are not listed, or listed and gone: {wrong}"


def test_the_index_has_every_decision() -> None:
    folder = ROOT / "docs" / "decisions"
    missing = {path.resolve() for path in folder.glob("[0-9]*.md")} - links(folder / "README.md")
    assert not missing, f"run `make map`: not in the index: {sorted(p.name for p in missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    gone = sorted(str(path) for path in links(page) if not path.exists())
    assert not gone
