"""The network: one stack of weights that encodes causally and decodes a canvas bidirectionally."""

from .diffusion_gemma import DiffusionGemma
from .network import Network

__all__ = ["DiffusionGemma", "Network"]
