"""Exported models as huggingface_hub loads them: ``Pretrained.from_pretrained("FOLDER_OR_REPO")``."""

from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin

from robustmix.models import Classifier, ModelSpec


class Pretrained(Classifier, PyTorchModelHubMixin, library_name="robustmix", tags=["robustmix"]):
    """A classifier that huggingface_hub loads, saves and uploads; needs the extra ``zoo``.

    Args:
        name: of the architecture.
        width: channels of the first stage; None for networks of other packages.
        classes: names of the classes, in the order of the logits.
        shape: [C, H, W] of the inputs that it was trained on.
    """

    def __init__(self, name: str, width: int | None, classes: tuple[str, ...], shape: tuple[int, int, int]) -> None:
        super().__init__(ModelSpec.model_validate({"name": name, "width": width, "classes": classes, "shape": shape}))

    @classmethod
    def _from_pretrained(cls, **options: Any) -> Self:
        """Load all weights, where the mixin would leave those that a file lacks as they were drawn."""
        model: Self = super()._from_pretrained(**{**options, "strict": True})
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
