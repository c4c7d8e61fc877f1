import numpy as np

from tap_engine.schemas import boxes


def test_conversions_are_inverse() -> None:
    xywh = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    assert boxes.xywh_to_xyxy(xywh).tolist() == [[1, 2, 4, 6], [0, 0, 1, 1]]
    assert boxes.xyxy_to_xywh(boxes.xywh_to_xyxy(xywh)).tolist() == xywh.tolist()


def test_clip_leaves_nothing_of_a_box_off_the_image() -> None:
    clipped = boxes.clip_xyxy(np.array([[-5.0, -904.0, 20.0, -890.0], [5, 5, 15, 15]]), (10, 12))
    assert boxes.area_xyxy(clipped).tolist() == [0.0, 35.0]
