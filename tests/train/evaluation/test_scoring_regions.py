import pyarrow as pa
import pytest

from tap_engine.schemas.errors import SchemaError
from tap_engine.train.evaluation.ground_truth import TRUTH_REGIONS, GroundTruth, TruthImage
from tap_engine.train.evaluation.scoring_regions import score_names, score_prompted
from tap_engine.train.evaluation.tasks.names import NAMED
from tap_engine.train.evaluation.tasks.prompts import PROMPTED


def truth_of(areas: list[float]) -> GroundTruth:
    rows = [
        {
            "region_id": 10 + i,
            "image_id": 1,
            "category_id": 1,
            "bbox_xywh": [0.0, 0.0, 1.0, 1.0],
            "area": area,
            "crowd": False,
        }
        for i, area in enumerate(areas)
    ]
    images = {1: TruthImage(image_id=1, size_hw=(9, 9), file_name="x")}
    return GroundTruth("t", images, {}, pa.Table.from_pylist(rows, TRUTH_REGIONS))


def prompted(rows: list[tuple[int, str, float, float]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "image_id": 1,
                "region_id": region,
                "prompt": prompt,
                "routed_iou": routed,
                "oracle_iou": oracle,
                "predicted_iou": 0.0,
            }
            for region, prompt, routed, oracle in rows
        ],
        PROMPTED,
    )


def test_mean_iou_by_prompt_size_and_choice() -> None:
    truth = truth_of([1023.0, 1024.0, 9216.0])
    rows = [(10, "box", 0.2, 0.4), (11, "box", 0.4, 0.6), (12, "box", 0.9, 0.95)]
    found = score_prompted(truth, [prompted([*rows, (10, "click 1", 0.1, 0.3)])])
    assert found["box"] == pytest.approx(0.5)
    assert found["box oracle"] == pytest.approx(0.65)
    assert [found[f"box {size}"] for size in "sml"] == pytest.approx([0.2, 0.4, 0.9])
    assert (found["click 1"], found["click 1 oracle"]) == pytest.approx((0.1, 0.3))
    assert "click 1 l" not in found, "no large region was clicked"


def test_names_count_by_region_and_by_class() -> None:
    rows = [(10, 1, 0), (11, 1, 0), (12, 1, 4), (13, 2, 5)]
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "image_id": 1,
                "region_id": region,
                "category_id": category,
                "rank": rank,
                "probability": 0.5,
            }
            for region, category, rank in rows
        ],
        NAMED,
    )
    found = score_names(truth_of([1.0] * 4), [batch])
    assert found["top-1"] == pytest.approx(2 / 4)
    assert found["top-5"] == pytest.approx(3 / 4)
    assert found["top-1 by class"] == pytest.approx((2 / 3 + 0) / 2)


def test_regions_of_another_split_are_refused() -> None:
    with pytest.raises(SchemaError, match="name region 99"):
        score_prompted(truth_of([1.0]), [prompted([(99, "box", 0.1, 0.1)])])
    with pytest.raises(SchemaError, match="no predictions"):
        score_prompted(truth_of([1.0]), [prompted([])])
