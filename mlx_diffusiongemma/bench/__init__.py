"""Measurements of `mlx_dg bench`: times, bytes and arithmetic of a denoising step."""
