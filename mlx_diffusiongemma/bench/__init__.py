"""Measures times, bytes and arithmetic of a denoising step, for `mlx_dg bench`."""
