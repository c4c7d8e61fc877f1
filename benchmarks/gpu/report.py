"""Results as a Markdown page: figures of each step, and expected against measured."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.expected import expected_against_measured
from benchmarks.gpu.steps import STEPS


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by step, in the order of the steps."""
    paths = {step.name: folder / f"{step.name}.json" for step in STEPS}
    return {name: json.loads(p.read_text()) for name, p in paths.items() if p.is_file()}


def page(folder: Path) -> str:
    """The whole page. A figure of another card than the first result's is marked with its card."""
    results = read(folder)
    lines = ["# Measured on a GPU", ""]
    if not results:
        return "\n".join([*lines, f"There is no result in {folder}.", ""])
    dry = any(result["dry_run"] for result in results.values())
    if dry:
        lines += ["**A dry run with tiny sizes: no figure here means anything.**", ""]
    figures: dict[str, Any] = {}
    for result in results.values():
        figures |= result["figures"]
    lines += ["## Expected against measured", ""]
    lines += ["Not shown for a dry run." if dry else expected_against_measured(figures), ""]
    for name, result in results.items():
        state = "" if result.get("finished") else " (not finished)"
        lines += [
            f"## {name}{state}",
            "",
            f"{result['date']}, {result['card']}, torch {result['torch']}, Python "
            f"{result['python']}, seed {result['seed']}.",
            "",
            f"    {result['command']}",
            "",
        ]
        if result["figures"]:
            lines += ["| figure | value | unit | note |", "|---|---|---|---|"]
            lines += [
                f"| {key} | {f['value']:,.4g} | {f['unit']} | {f['note']} |"
                for key, f in result["figures"].items()
            ]
            lines.append("")
        lines += [f"- Skipped, {part}: {why}" for part, why in result["skipped"].items()]
        lines += [f"- Failed, {part}: {why}" for part, why in result["failed"].items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
