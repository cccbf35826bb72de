"""Data sets: a train and a test split of inputs and labels, in a space that attacks know the limits of."""

from robustmix.data.augment import Augmentation, Share
from robustmix.data.dataset import Dataset, Split, check_augment
from robustmix.data.load import data_root, load_data
from robustmix.data.memory import TensorSplit
from robustmix.data.stream import StreamedSplit

__all__ = [
    "Augmentation",
    "Dataset",
    "Share",
    "Split",
    "StreamedSplit",
    "TensorSplit",
    "check_augment",
    "data_root",
    "load_data",
]
