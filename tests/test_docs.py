"""The pages that list things list all of them, and what they link to exists."""

import re
from pathlib import Path

import pytest
import typer

from tap_engine.jobs import data_cli, tap_cli, train_cli

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


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of every command in a code block of a page."""
    found = []
    for page in [*PAGES, ROOT / "docs" / "demo.sh"]:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            for command in re.findall(
                r"(?:^ {4}|^\$ |^run |`|\$ )(tap(?:-data|-train)? [^`#]*)", line
            ):
                found.append((page.name, command.replace("...", " ").strip()))
    return found


def test_every_command_that_a_page_shows_exists() -> None:
    apps = {"tap": tap_cli.main, "tap-data": data_cli.app, "tap-train": train_cli.main}
    programs = {name: typer.main.get_command(app) for name, app in apps.items()}
    shown = shown_commands()
    assert len(shown) > 60, "the pages show commands, and they are found"
    wrong = []
    for page, line in shown:
        program, *rest = line.split()
        words = [word for word in rest if re.fullmatch(r"[a-z][a-z-]*", word)]
        options = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)]
        command = programs[program]
        if words and rest[0] == words[0]:
            command = command.commands.get(words[0])
            if command is None:
                wrong.append(f"{page}: no command: {line}")
                continue
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        wrong += [
            f"{page}: no option {option}: {line}"
            for option in options
            if option not in known and option != "--help"
        ]
    assert not wrong, "\n".join(wrong)
