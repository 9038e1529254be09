"""`python -m mlx_diffusiongemma`: the same as the command `mlx_dg`."""

from mlx_diffusiongemma.cli import main

if __name__ == "__main__":
    main()
