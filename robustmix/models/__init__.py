"""Networks: pixels in [0, 1] in, logits out. The first layer normalises with statistics that the checkpoint holds."""

from robustmix.models.choices import check_drop, check_layers
from robustmix.models.classifier import SMALLEST_SIDE, Classifier, ModelSpec, build
from robustmix.models.packaged import check_packaged

__all__ = ["SMALLEST_SIDE", "Classifier", "ModelSpec", "build", "check_drop", "check_layers", "check_packaged"]
