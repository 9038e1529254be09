"""Hugging Face weights to quantized MLX weights; installed as `mlx_diffusiongemma.converter`.

planning.py decides from names and shapes what becomes of each tensor, conversion.py carries it out.
"""

from .conversion import convert

__all__ = ["convert"]
