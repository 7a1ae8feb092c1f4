"""Kernels of transformers, as operators of torch that work by themselves and under torch.compile."""

from s3cache.kernels.library.cross_entropy import linear_cross_entropy
from s3cache.kernels.library.matmul import matmul
from s3cache.kernels.library.norms import layer_norm, rms_norm
from s3cache.kernels.library.rope import rope
from s3cache.kernels.library.swiglu import swiglu

__all__ = ["layer_norm", "linear_cross_entropy", "matmul", "rms_norm", "rope", "swiglu"]
