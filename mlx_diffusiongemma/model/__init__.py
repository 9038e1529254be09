"""The network: one stack of weights that encodes causally and decodes a canvas bidirectionally."""

from .diffusion_gemma import DiffusionGemma

__all__ = ["DiffusionGemma"]
