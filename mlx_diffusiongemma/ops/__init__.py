"""Device operations, one a file. Each has a reference in plain MLX that defines what it computes."""

from .accept_and_renoise import Acceptance, accept_and_renoise
from .row_statistics import RowStatistics, row_statistics
from .soft_embedding import soft_embedding

__all__ = ["Acceptance", "RowStatistics", "accept_and_renoise", "row_statistics", "soft_embedding"]
