"""Converts Hugging Face weights to quantized MLX weights. Installed as `mlx_diffusiongemma.converter`.

source.py says what a conversion reads. planning.py decides how each tensor is stored. conversion.py does it.
"""

from .conversion import convert

__all__ = ["convert"]
