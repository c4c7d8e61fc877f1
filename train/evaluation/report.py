"""Scores as files, and tables of scores beside the published ones, for people and machines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tap_engine.schemas.errors import SchemaError, SourceError
from tap_engine.train.evaluation.published import PUBLISHED, Published
from tap_engine.train.evaluation.stamps import Stamp

SCORE_FILE = "score.json"

WIDEST = 14
"""A table of more metrics than this stands on its side."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One result and all that is needed to read it right.

    Attributes:
        name: what the row is called, such as the checkpoint.
        stamp: what was measured on what.
        metrics: name -> value; fractions, not percent.
        per_category: category name -> AP, where the protocol has categories.
        notes: what a reader must know, such as METEOR missing for want of Java.
        made: files, settings and versions behind it.
    """

    name: str
    stamp: Stamp
    metrics: dict[str, float]
    per_category: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the score as json."""
        content = {**asdict(self), "stamp": self.stamp.to_json()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Score":
        """Reads what `save` wrote.

        Raises:
            SourceError: no such file.
            SchemaError: not a score file.
        """
        try:
            content = json.loads(path.read_text())
            content["stamp"] = Stamp.from_json(content["stamp"])
            content["notes"] = tuple(content["notes"])
            return cls(**content)
        except FileNotFoundError:
            raise SourceError(f"{path}: no such score file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(
                f"{path}: expected a score that `tap-train score` or `eval` wrote, found {error!r}"
            ) from error


def load_scores(path: Path) -> list[Score]:
    """The score of a file, or all scores below a folder.

    Raises:
        SourceError: none there.
        SchemaError: not a score file.
    """
    if not path.is_dir():
        return [Score.load(path)]
    if files := sorted(path.rglob(SCORE_FILE)):
        return [Score.load(file) for file in files]
    raise SourceError(f"{path}: no {SCORE_FILE} in this folder or below it")


@dataclass(frozen=True)
class Table:
    """Scores of one test side by side.

    Attributes:
        scores: ours; their stamps agree.
        published: rows of the same test.
        left_out: published rows of this protocol that were measured on something else, with why.
    """

    scores: tuple[Score, ...]
    published: tuple[Published, ...]
    left_out: tuple[tuple[Published, str], ...]


def tabulate(scores: Sequence[Score], *, apart: bool = False) -> list[Table]:
    """Group scores into tables, one for each test, and find the published rows of each.

    Args:
        scores: any protocols; those of one protocol are compared.
        apart: scores of one protocol with unlike stamps get a table each.

    Raises:
        SchemaError: unlike stamps within one protocol, and not `apart`; names each difference.
    """
    groups: list[list[Score]] = []
    for score in scores:
        for group in groups:
            if group[0].stamp.protocol == score.stamp.protocol:
                if apart and group[0].stamp.unlike(score.stamp):
                    continue
                score.stamp.require_like(group[0].stamp, score.name, group[0].name)
                group.append(score)
                break
        else:
            groups.append([score])
    return [_table(group) for group in groups]


def _table(group: list[Score]) -> Table:
    stamp = group[0].stamp
    same, left_out = [], []
    for row in PUBLISHED:
        if row.stamp.protocol != stamp.protocol:
            continue
        if stamp.same_test(row.stamp):
            same.append(row)
        else:
            why = "; ".join(stamp.unlike(row.stamp)) or "nothing shows that the data are the same"
            left_out.append((row, why))
    return Table(tuple(group), tuple(same), tuple(left_out))


def to_markdown(tables: Iterable[Table]) -> str:
    """Tables with stamps above and sources below; percent with one digit, as the papers print."""
    return "\n".join(_section(table) for table in tables)


def to_json(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """The table as JSON values, unrounded."""
    return [
        {
            "stamp": table.scores[0].stamp.to_json(),
            "rows": [{"name": s.name, "source": "ours", "metrics": s.metrics} for s in table.scores]
            + [
                {
                    "name": row.name,
                    "source": row.source,
                    "metrics": dict(row.metrics),
                    "unverified": table.scores[0].stamp.unverified(row.stamp),
                }
                for row in table.published
            ],
            "left_out": [
                {"name": row.name, "source": row.source, "because": why}
                for row, why in table.left_out
            ],
        }
        for table in tables
    ]


def _section(table: Table) -> str:
    stamp = table.scores[0].stamp
    columns = list(dict.fromkeys(name for score in table.scores for name in score.metrics))
    facts = [
        f"{name} {_fact(value)}" for name, value in stamp.to_json().items() if name != "protocol"
    ]
    lines = [f"## {stamp.protocol}", "", "Test: " + "; ".join(facts) + ". Numbers are percent.", ""]
    sources = list(dict.fromkeys(row.source for row in table.published))
    rows = [["", *columns, "source"]]
    for score in table.scores:
        rows.append([f"**{score.name}**", *_cells(score.metrics, columns), "ours"])
    for row in table.published:
        mark = f"[{sources.index(row.source) + 1}]"
        rows.append([row.name, *_cells(row.metrics, columns), mark])
    if len(columns) > WIDEST:
        rows = [list(column) for column in zip(*rows, strict=True)]
    head, *body = rows
    lines += [_row(head), _row(["---"] * len(head)), *map(_row, body)]
    lines.append("")
    for number, source in enumerate(sources, start=1):
        row = next(row for row in table.published if row.source == source)
        unverified = ", ".join(stamp.unverified(row.stamp)) or "nothing"
        lines.append(f"[{number}] {source}; not stated there: {unverified}.  ")
    lines += [
        f"Note: {note}.  " for note in dict.fromkeys(n for s in table.scores for n in s.notes)
    ]
    if table.left_out:
        row, why = table.left_out[0]
        lines.append(
            f"Left out: {len(table.left_out)} published rows of this protocol, measured on other "
            f"data (first: {row.name}, {why})."
        )
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(metrics: Any, columns: list[str]) -> list[str]:
    return [f"{100 * metrics[name]:.1f}" if metrics.get(name, -1) >= 0 else "-" for name in columns]


def _fact(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
