"""What `mlx_dg bench` measures and computes: times, bytes and arithmetic of a denoising step."""
