"""What commands print and how they end."""

import pytest

from tap_engine.jobs.output import print_left_out
from tap_engine.pipeline.summary import BuildSummary


def summary(left_out: int, built: int) -> BuildSummary:
    return BuildSummary(images=built, rejected_images=left_out)


def test_exactly_the_limit_is_not_more_than_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    at_limit = summary(1, 3)
    assert at_limit.reject_share == 0.25, "exact in binary"
    assert not print_left_out(at_limit, 0.25)
    assert capsys.readouterr().err == ""
    assert print_left_out(summary(2, 5), 0.25)
    assert "more than max_reject_share=0.25 allows" in capsys.readouterr().err
