"""Triton kernels: declaring them, and compiling them for GPUs on a machine that has none."""

from s3cache.kernels.declaration import Declaration, declare, declared

__all__ = ["Declaration", "declare", "declared"]
