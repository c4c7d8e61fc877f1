"""Hands parts of the data engine to training and evaluation, which never import it.

Embedding names with a teacher, drawing held-out scenes, naming crops with a teacher: each joins the
data engine with something of `model` or `train`, so its place is here, and it is passed in.
"""

from collections.abc import Sequence

from tap_engine.model.concepts import ConceptTable
from tap_engine.pipeline.concepts import SOURCE_TEMPLATES, embed_concepts
from tap_engine.pipeline.teacher import Teacher, TeacherConfig


def embed_names(names: Sequence[str], teacher_name: str, device: str = "auto") -> ConceptTable:
    """Text embeddings of any names, from the teacher that a model learned from.

    Args:
        names: names as people say them; the template "a {}" is put around each.
        teacher_name: see `TeacherConfig.name`.
        device: see `TeacherConfig.device`.

    Raises:
        TapError: no such teacher on this machine.
    """
    teacher = Teacher(TeacherConfig(name=teacher_name, device=device))
    embeddings = embed_concepts(teacher, names, SOURCE_TEMPLATES)
    return ConceptTable(tuple(names), embeddings, teacher.info.logit_scale)
