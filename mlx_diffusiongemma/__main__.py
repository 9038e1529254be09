"""`python -m mlx_diffusiongemma`, the same as the command `mlx_dg`."""

from mlx_diffusiongemma.cli import run

if __name__ == "__main__":
    run()
