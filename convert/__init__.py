"""Converts Hugging Face weights to quantized MLX weights. Installed as `mlx_diffusiongemma.converter`.

source.py defines what a conversion reads. planning.py decides how each tensor is stored. conversion.py runs
the conversion.
"""

from .conversion import convert

__all__ = ["convert"]
