"""Writes docs/map.md and the table in docs/decisions/README.md; `make map` runs it.

The map takes the first line of every module's docstring, so a line is corrected in the module. The
table of decisions takes the titles of the pages.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP, DECISIONS = ROOT / "docs" / "map.md", ROOT / "docs" / "decisions" / "README.md"

ROOMS = {
    "schemas": "Contracts that both halves share, and small tools that need nothing else.",
    "model": "The networks and the formulas they own; what a person needs who uses a model.",
    "pipeline": "The data engine: from shards of images to a store.",
    "train": "The trainer and the evaluation: from stores to models and scores.",
    "jobs": "Commands of the programs `tap`, `tap-data` and `tap-train`.",
}

HEAD = """# Map of the code

One line per file. `make map` writes this page from the first lines of the modules. How data moves
through these files is in [data-flow.md](data-flow.md); the words are in [glossary.md](glossary.md).
"""

TABLE = "<!-- `make map` writes what follows -->\n"


def map_text() -> str:
    """The whole of docs/map.md."""
    parts = [HEAD]
    for room, purpose in ROOMS.items():
        parts.append(f"## {room}\n\n{purpose}\n")
        folders: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / room).rglob("*.py")):
            folders.setdefault(path.parent, []).append(path)
        for folder, paths in sorted(folders.items()):
            if folder != ROOT / room:
                parts.append(f"### {folder.relative_to(ROOT)}\n")
            rows = [f"| [{p.name}](../{p.relative_to(ROOT)}) | {first_line(p)} |" for p in paths]
            parts.append("\n".join(["| file | what it is |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """The first line of a module's docstring, made safe for a table."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    line = text.partition("\n")[0].replace("|", "\\|").replace("<", "&lt;")
    return line if line.endswith(".") else line + " ..."


def decisions_text() -> str:
    """The whole of docs/decisions/README.md: what a person wrote, then the table."""
    written = DECISIONS.read_text("utf-8").partition(TABLE)[0]
    rows = ["| page | what was decided |", "|---|---|"]
    for path in sorted(DECISIONS.parent.glob("[0-9]*.md")):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        number, _, rest = title.replace("|", "\\|").partition(" ")
        rows.append(f"| [{number.rstrip(':')}]({path.name}) | {rest[0].upper()}{rest[1:]} |")
    return written + TABLE + "\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    MAP.write_text(map_text(), "utf-8")
    DECISIONS.write_text(decisions_text(), "utf-8")
    sys.stdout.write(f"wrote {MAP.relative_to(ROOT)} and {DECISIONS.relative_to(ROOT)}\n")
