"""Opens checkpoints: reads any container, hostile files included, into one index of byte ranges."""

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
from speechft_merge.checkpoints.opening import open_checkpoint

__all__ = ["Checkpoint", "DType", "TensorSpan", "open_checkpoint"]
