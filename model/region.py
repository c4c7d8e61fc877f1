"""What a model answers: regions with a mask, names and a caption, and the raw candidates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tap_engine.model.image_decoder import RegionOutput
from tap_engine.model.image_input import FittedImage


@dataclass(frozen=True, slots=True)
class Concept:
    """A name and how probable it is, over the whole vocabulary in use."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The model's answer to one prompt.

    Attributes:
        mask: [H, W] bool, at the image's own size.
        iou: the model's estimate of the mask's IoU, not squashed: may leave 0..1 a little.
        candidate: which of the four masks was taken: 0 for boxes, 1-3 for points.
        concepts: the most probable names, best first; empty without a concept table.
        entropy: entropy of the distribution over all concepts, nats; high if no name fits. It is
            NaN without a concept table.
        caption: greedy caption; None if the checkpoint has no tokenizer or none was asked for.
        sem_token: [D] float32, prompts the text decoder (unless `text.prompt` is "mask").
        sem_embed: [E] float32 visual embedding in the teacher's space, not normalised.
    """

    mask: npt.NDArray[np.bool_]
    iou: float
    candidate: int
    concepts: tuple[Concept, ...]
    entropy: float
    caption: str | None
    sem_token: npt.NDArray[np.float32]
    sem_embed: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedImage:
    """An image that the encoder has seen; prompts on it cost only the decoder.

    Attributes:
        fitted: the image in the canvas.
        embedding: [1, D, S/16, S/16].
    """

    fitted: FittedImage
    embedding: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The model's whole answer to P prompts: four candidates for each. `Region` is a view of it.

    Attributes:
        image: what was asked about.
        raw: the decoder's output, [1, P, 4, ...], on the model's device, in its precision.
        chosen: [P] int64, the candidate that routing takes: 0 for boxes, 1 to 3 for points.
    """

    image: EmbeddedImage
    raw: RegionOutput
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def mask_logits(self) -> Tensor:
        """[P, 4, S/4, S/4] over the model's canvas; above 0 is inside. See `Tap.masks`."""
        return self.raw.mask_logits[0]

    @property
    def iou(self) -> Tensor:
        """[P, 4] float32, the model's estimate of each mask's IoU, not squashed."""
        return self.raw.iou_pred[0].float()

    @property
    def sem_embeds(self) -> Tensor:
        """[P, 4, E] float32 visual embeddings in the teacher's space, not normalised."""
        return self.raw.sem_embeds[0].float()

    def routed(self) -> RegionOutput:
        """The chosen candidate of each prompt, [1, P, ...]."""
        return self.raw.select(self.chosen.unsqueeze(0))
