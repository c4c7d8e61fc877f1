"""What stands beside the code says the same as the code."""

import re
from pathlib import Path

import yaml

from tap_engine import __version__

ROOT = Path(__file__).parents[1]


def parsed(name: str):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_names_this_version() -> None:
    assert parsed("CITATION.cff")["version"] == __version__


def test_ci_runs_what_a_developer_is_told_to_run() -> None:
    ci = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    (line,) = re.findall(r"^check: ([\w -]+?) ##", (ROOT / "Makefile").read_text(), re.M)
    assert set(line.split()) < set(ci), "make check is part of CI"
    assert "    make test " in (ROOT / "README.md").read_text() and "test" in ci


def test_the_workflow_names_tests_that_exist() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert ".ci/run" in commands
    named = re.findall(r"tests/\S+", " ".join(commands))
    assert named and [name for name in named if not (ROOT / name).is_file()] == []


def test_the_hooks_are_those_of_make_lint() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nlint: ")[1].split("\n\n")[0]
    programs = set(re.findall(r"\$\(BIN\)/(\S+)", recipe))
    hooks = [hook for repo in parsed(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == programs
    assert all(hook["language"] == "system" for hook in hooks), "no network"


def test_issues_ask_for_version_and_card() -> None:
    bug = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "tap-data --version" in bug and "tap-data inspect" in bug
