import json
from dataclasses import replace

import pytest

from tap_engine.schemas.errors import SchemaError
from tap_engine.schemas.provenance import Provenance
from tap_engine.schemas.store_settings import CropConfig, StoreSettings, TeacherInfo
from tap_engine.schemas.vocabulary import VocabularyInfo

# Word for word what stores of 2026-11-25 carry (before StoreSettings existed).
EMBEDDED = (
    '{"crop": {"fill": "mean", "fit": "pad", "margin": 0.0, "mean_rgb": [0.48145466, 0.4578275, '
    '0.40821073], "order": "composite", "resampling": "bicubic", "size_px": 64}, '
    '"source_templates": ["a {}"], "target_templates": ["a photo of a {}."], "teacher": '
    '{"embed_dim": 128, "image_px": 64, "logit_scale": 36.88913345336914, "mean_rgb": [0.48145466, '
    '0.4578275, 0.40821073], "name": "sample", "precision": "float32", "pretrained": "sample", '
    '"random_weights": false, "std_rgb": [0.26862954, 0.26130258, 0.27577711], '
    '"weights_sha256": "ca5181feac0a575263f3ace7724a0b72cb1f44ec6bd4531b422a0bc008834b8a"}, '
    '"top_k": 64, "vocabulary": {"fingerprint": "725a8709a181883e", '
    '"name": "merged-2560", "size": 2560}}'
)
CAPTIONED = (
    '{"captioned": true, "source": {"annotations": "89ab", "cleaning_rules": 1, "splits": null}, '
    '"teacher": null, "top_k": 0}'
)


def text(settings: StoreSettings) -> str:
    return json.dumps(settings.to_json(), sort_keys=True)


@pytest.mark.parametrize("stored", [EMBEDDED, CAPTIONED])
def test_stored_settings_are_written_back_byte_for_byte(stored) -> None:
    settings = StoreSettings.from_json(json.loads(stored))
    assert text(settings) == stored
    assert not settings.provenance().differences(Provenance(json.loads(stored)))


def test_settings_are_read_by_name() -> None:
    settings = StoreSettings.from_json(json.loads(EMBEDDED))
    teacher, crop = settings.teacher, settings.crop
    assert teacher is not None and crop is not None
    assert (teacher.logit_scale, settings.embed_dim, settings.top_k) == (36.88913345336914, 128, 64)
    assert crop == CropConfig(mean_rgb=(0.48145466, 0.4578275, 0.40821073), size_px=64)
    assert settings.vocabulary == VocabularyInfo(
        name="merged-2560", size=2560, fingerprint="725a8709a181883e"
    )
    captioned = StoreSettings.from_json(json.loads(CAPTIONED))
    assert captioned.captioned and captioned.teacher is None and captioned.embed_dim == 0
    assert captioned.source["cleaning_rules"] == 1


def test_what_a_later_version_adds_survives_a_change() -> None:
    """`reproject` changes the vocabulary of such a store and must lose nothing else."""
    later = json.loads(EMBEDDED)
    later["second_teacher"] = {"name": "dino", "embed_dim": 384}
    later["teacher"]["pooling"] = "attention"
    settings = StoreSettings.from_json(later)
    assert settings.teacher == StoreSettings.from_json(json.loads(EMBEDDED)).teacher
    changed = replace(settings, top_k=2).to_json()
    assert changed == {**later, "top_k": 2}


def test_an_unknown_setting_of_the_store_is_a_difference() -> None:
    later = Provenance(json.loads(EMBEDDED) | {"flip": True})
    ours = StoreSettings.from_json(json.loads(EMBEDDED)).provenance()
    with pytest.raises(SchemaError, match="flip: None against True"):
        ours.require_same(later, "the store")


def test_a_store_without_settings_has_the_defaults() -> None:
    assert StoreSettings.from_json({}) == StoreSettings()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"teacher": {"name": "sample"}}, "logit_scale"),
        ({"teacher": "sample"}, "expected the fields of TeacherInfo, found 'sample'"),
        ({"crop": {"mean_rgb": [0, 0, 0], "fill": "pink"}}, "crop.fill must be one of"),
        ({"top_k": "many"}, "many"),
    ],
)
def test_damaged_settings_are_refused(broken, message) -> None:
    with pytest.raises(SchemaError, match=message):
        StoreSettings.from_json(broken)


def test_a_teacher_comes_back_as_it_was() -> None:
    teacher = TeacherInfo(
        name="tiny",
        pretrained="local",
        weights_sha256="0" * 64,
        precision="float16",
        embed_dim=16,
        image_px=32,
        mean_rgb=(0.1, 0.2, 1 / 3),
        std_rgb=(0.4, 0.5, 0.6),
        logit_scale=100.00001,
        random_weights=True,
    )
    settings = StoreSettings(teacher=teacher)
    assert StoreSettings.from_json(json.loads(text(settings))) == settings
