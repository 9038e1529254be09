"""Measures the quality and speed of answers, for `mlx_dg eval` and `mlx_dg.evaluate`."""
