"""Networks: pixels in [0, 1] in, logits out. The first layer normalises with statistics that the checkpoint holds."""

from robustmix.models.classifier import SMALLEST_SIDE, Classifier, ModelSpec, build

__all__ = ["SMALLEST_SIDE", "Classifier", "ModelSpec", "build"]
