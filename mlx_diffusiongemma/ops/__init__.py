"""Device operations: each has a reference in plain MLX, a Metal kernel, and a function that chooses.

The reference defines the result. self_check.py compares a kernel with its reference before its first use.
"""

from .accept_and_renoise import (
    FREE,
    Acceptance,
    Bounds,
    Proposal,
    accept_and_renoise,
    advance,
    within_entropy_bound,
)
from .metal import on_gpu
from .row_statistics import RowStatistics, processed_logits, row_statistics
from .self_check import checked_kernels
from .soft_embedding import TOLERANCE, SoftEmbedding, dense_soft_embedding, is_sparse, soft_embedding
from .table_products import project

__all__ = [
    "FREE",
    "TOLERANCE",
    "Acceptance",
    "Bounds",
    "Proposal",
    "RowStatistics",
    "SoftEmbedding",
    "accept_and_renoise",
    "advance",
    "checked_kernels",
    "dense_soft_embedding",
    "is_sparse",
    "on_gpu",
    "processed_logits",
    "project",
    "row_statistics",
    "soft_embedding",
    "within_entropy_bound",
]
