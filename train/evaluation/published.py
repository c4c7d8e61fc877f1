"""Published scores, each with its source and what is known of the test it was measured on.

Numbers are as printed: the notebooks of the official repository print fractions, the papers
percent. A row stands beside a score of ours only if nothing known about the two tests differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tap_engine.train.evaluation.scoring_captions import PTB
from tap_engine.train.evaluation.stamps import GT, Stamp

NOTEBOOKS = "official notebooks evaluation_tap_*.ipynb (baaivision/tokenize-anything)"
TAP = "TAP paper (arXiv 2312.09128)"
TAP_V2 = "TAP-v2 paper (Sci. China Inf. Sci. 2025, 68(10): 200106)"

VITDET_H = "vitdet-h"
"""Boxes of detectron2's ViTDet-H cascade: 92,857 on COCO val2017, 3,293,288 on LVIS v1 val."""

COCO_SEGM = Stamp(protocol="coco-segm", data="coco", images=5_000, box_source=VITDET_H)
LVIS_SEGM = Stamp(protocol="lvis-segm", data="lvis", images=19_809, box_source=VITDET_H)
COCO_NAMES = Stamp(protocol="coco-bbox", data="coco", images=5_000, box_source=GT)
LVIS_NAMES = Stamp(
    protocol="lvis-bbox",
    data="lvis",
    images=19_809,
    regions=244_707,
    boxes=244_707,
    box_source=GT,
)
VG_GRIT = Stamp(
    protocol="captions",
    data="visual-genome",
    images=5_000,
    regions=232_935,
    references=232_935,
    boxes=232_935,
    box_source=GT,
    text_processing=PTB,
)
"""GRiT's test.json: every annotation a sample of its own with one reference."""
VG_GLAMM = replace(VG_GRIT, regions=5_000, references=5_000, boxes=5_000)
"""One region an image; published beside the former for years (ControlCap issue 5)."""
VG_UNKNOWN = Stamp(protocol="captions", box_source=GT)
"""Never shown: nothing tells whose test it was."""
REFCOCOG = Stamp(protocol="captions", data="refcocog", box_source=GT)
"""No source says which references: per sentence (4,896) or per region (2,573), UMD or Google."""


@dataclass(frozen=True, slots=True)
class Published:
    """One printed row; metrics as fractions."""

    name: str
    source: str
    stamp: Stamp
    metrics: Mapping[str, float]


def _rows(
    source: str, stamp: Stamp, columns: str, text: str, *, percent: bool = False
) -> list[Published]:
    rows = []
    for line in text.strip().splitlines():
        name, _, values = line.partition("|")
        numbers = {
            column: float(value) / (100 if percent else 1)
            for column, value in zip(columns.split(), values.split(), strict=True)
            if value != "-"
        }
        rows.append(Published(name.strip(), source, stamp, numbers))
    return rows


PUBLISHED: tuple[Published, ...] = (
    *_rows(
        NOTEBOOKS,
        replace(COCO_SEGM, boxes=92_857),
        "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl",
        """
        TAP-B v1.0 | .449 .711 .479 .280 .499 .609 .339 .537 .559 .416 .616 .689
        TAP-B v1.1 | .451 .712 .481 .287 .501 .606 .340 .540 .562 .423 .620 .686
        TAP-L v1.0 | .456 .716 .489 .290 .506 .614 .343 .544 .566 .424 .623 .695
        TAP-L v1.1 | .460 .718 .499 .291 .509 .622 .345 .548 .571 .426 .626 .702
        TAP-H v1.1 | .463 .720 .500 .295 .510 .626 .347 .551 .574 .432 .628 .705
        """,
    ),
    *_rows(
        f"{TAP_V2}, table 3",
        COCO_SEGM,
        "AP APs APm APl",
        """
        ViTDet-H (supervised)  | 51.0 32.0 54.3 68.9
        SAM-B                  | 41.1 28.3 45.6 53.7
        SAM-L                  | 45.5 30.2 50.1 60.4
        SAM-H                  | 46.5 30.8 51.0 61.7
        TAPv2-B (stage 2)      | 45.9 28.7 50.9 62.2
        TAPv2-L (stage 2)      | 46.6 29.1 51.9 63.5
        TAPv2-XL (stage 2)     | 46.9 29.0 52.0 64.1
        """,
        percent=True,
    ),
    *_rows(
        NOTEBOOKS,
        replace(LVIS_SEGM, boxes=3_293_288),
        "AP AP50 AP75 APs APm APl APr APc APf AR ARs ARm ARl",
        """
        TAP-B v1.0 | .417 .607 .442 .289 .545 .637 .331 .427 .442 .504 .361 .631 .698
        TAP-B v1.1 | .422 .609 .450 .295 .550 .640 .336 .431 .450 .510 .368 .638 .700
        TAP-L v1.0 | .426 .610 .455 .298 .555 .648 .333 .436 .455 .513 .371 .642 .709
        TAP-L v1.1 | .430 .611 .462 .302 .559 .651 .337 .441 .460 .518 .375 .645 .711
        TAP-H v1.1 | .432 .613 .463 .302 .560 .654 .337 .441 .463 .519 .375 .648 .714
        """,
    ),
    *_rows(
        f"{TAP_V2}, table 3",
        LVIS_SEGM,
        "AP APs APm APl APr APc APf",
        """
        ViTDet-H (supervised)  | 46.6 35.0 58.0 66.3 35.9 46.8 51.1
        SAM-B                  | 40.8 30.1 53.0 58.5 32.6 41.9 43.3
        SAM-L                  | 43.8 31.9 56.7 64.2 34.3 44.7 46.9
        SAM-H                  | 44.7 32.5 57.6 65.5 34.6 45.5 47.8
        TAPv2-B (stage 2)      | 42.1 28.9 55.1 64.7 33.4 43.2 44.8
        TAPv2-L (stage 2)      | 42.9 29.4 56.0 65.8 34.1 44.0 45.7
        TAPv2-XL (stage 2)     | 42.7 29.0 55.8 65.9 33.6 43.7 45.5
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP}, table 4",
        COCO_NAMES,
        "AP APs APm APl",
        """
        TAP-L, feature prediction | 61.9 44.4 69.7 75.2
        TAP-L                     | 76.8 59.8 83.4 90.0
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP_V2}, table 6",
        COCO_NAMES,
        "AP APs APm APl",
        """
        TAPv2-L, feature prediction | 62.0 44.5 69.9 75.4
        TAPv2-L                     | 77.0 60.0 83.7 90.0
        """,
        percent=True,
    ),
    *_rows(
        NOTEBOOKS,
        LVIS_NAMES,
        "AP AP50 AP75 APs APm APl APr APc APf AR ARs ARm ARl",
        """
        TAP-B v1.0 | .564 .568 .565 .422 .695 .806 .556 .555 .577 .646 .478 .764 .871
        TAP-B v1.1 | .574 .579 .574 .431 .701 .805 .586 .568 .575 .655 .497 .766 .876
        TAP-L v1.0 | .587 .592 .587 .447 .710 .818 .599 .582 .586 .665 .512 .775 .884
        TAP-L v1.1 | .591 .597 .591 .445 .719 .817 .617 .589 .583 .669 .511 .782 .878
        TAP-H v1.1 | .596 .602 .596 .456 .722 .830 .616 .600 .582 .670 .518 .783 .890
        """,
    ),
    *_rows(
        f"{TAP}, table 2",
        LVIS_NAMES,
        "AP APr APc APf",
        """
        ViTDet-H (supervised)        | 69.3 52.8 66.3 79.8
        CLIP-L on image crops        | 48.8 52.8 50.0 45.6
        EVA-CLIP-E on image crops    | 64.3 72.4 65.3 59.7
        RegionCLIP-R50x4             | 50.7 50.1 50.1 51.7
        RegionSpot-BL                | 56.6 50.6 50.2 68.8
        TAP-B                        | 56.4 55.6 55.6 57.7
        TAP-L                        | 59.0 60.5 58.7 58.7
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP_V2}, table 1",
        LVIS_NAMES,
        "AP APr APc APf",
        """
        TAPv2-B, concepts    | 57.4 58.6 56.8 57.5
        TAPv2-L, concepts    | 59.1 61.7 58.9 58.3
        TAPv2-B, captions    | 61.5 60.6 61.2 62.3
        TAPv2-L, captions    | 65.2 66.1 65.3 64.7
        TAPv2-XL, captions   | 67.2 69.2 67.4 66.1
        """,
        percent=True,
    ),
    *_rows(
        NOTEBOOKS,
        VG_GRIT,
        "BLEU@1 BLEU@2 BLEU@3 BLEU@4 METEOR ROUGE-L CIDEr",
        """
        TAP-B v1.0 | .36803 .23047 .16139 .11938 .17416 .35488 1.49214
        TAP-B v1.1 | .37375 .23526 .16514 .12227 .17706 .35952 1.52347
        TAP-L v1.0 | .36994 .23180 .16226 .11986 .17504 .35656 1.50697
        TAP-L v1.1 | .37729 .23824 .16744 .12396 .17873 .36243 1.54706
        TAP-H v1.1 | .37661 .23749 .16698 .12375 .17804 .36202 1.54236
        """,
    ),
    *_rows(
        f"{TAP_V2}, table 2",
        VG_GRIT,
        "METEOR CIDEr",
        """
        TAPv2-B (stage 2)  | 18.3 160.2
        TAPv2-L (stage 2)  | 18.6 162.9
        TAPv2-XL (stage 2) | 18.6 163.9
        """,
        percent=True,
    ),
    *_rows(
        "TAP, ECCV 2024 abstract (mixed fine-tuning)",
        VG_GRIT,
        "CIDEr",
        "TAP (ECCV 2024) | 164.7",
        percent=True,
    ),
    *_rows(
        f"{TAP_V2}, table 2; on this test by ControlCap issue 5",
        VG_GRIT,
        "METEOR CIDEr",
        """
        GRiT ViT-B | 17.1 142.0
        ASM        | 18.0 145.1
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP_V2}, table 2; on which Visual Genome test is not stated",
        VG_UNKNOWN,
        "METEOR CIDEr",
        """
        GPT4RoI-7B   | 17.4 145.2
        SCA Llama-3B | 17.4 149.8
        """,
        percent=True,
    ),
    *_rows(
        "GLaMM subset of 5,000 boxes (ControlCap issue 5, AlphaCLIP issue 70)",
        VG_GLAMM,
        "METEOR CIDEr",
        """
        AlphaCLIP + LLaVA | 18.9 160.3
        GLaMM             | 19.7 180.5
        ControlCap        | 20.5 183.3
        DynRefer          | -    190.9
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP}, table 3",
        REFCOCOG,
        "METEOR CIDEr",
        """
        TAP-B | 15.6 77.1
        TAP-L | 15.8 79.5
        """,
        percent=True,
    ),
    *_rows(
        f"{TAP_V2}, table 2",
        REFCOCOG,
        "METEOR CIDEr",
        """
        GRiT ViT-B         | 15.2 71.6
        ASM                | 20.8 103.0
        AlphaCLIP + LLaVA  | 16.7 109.2
        SCA Llama-3B       | 15.6 74.0
        TAPv2-B (stage 1)  | 19.2 93.5
        TAPv2-L (stage 1)  | 19.5 95.6
        TAPv2-B (stage 2)  | 19.7 97.8
        TAPv2-L (stage 2)  | 19.9 99.3
        TAPv2-XL (stage 2) | 20.0 100.2
        """,
        percent=True,
    ),
)
