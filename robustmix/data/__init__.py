"""Data sets: a train and a test split of inputs and labels, in a space that attacks know the limits of."""

from robustmix.data.dataset import Dataset, Split, TensorSplit
from robustmix.data.load import data_root, load_data
from robustmix.data.stream import StreamedSplit

__all__ = ["Dataset", "Split", "StreamedSplit", "TensorSplit", "data_root", "load_data"]
