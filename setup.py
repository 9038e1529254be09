"""Finds the packages; everything else is in pyproject.toml.

Setuptools can either find packages or be told of them, and `mlx_diffusiongemma.converter` and
`mlx_diffusiongemma.kernels` have to be told: they are mapped to convert/ and kernels/.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["mlx_diffusiongemma", "mlx_diffusiongemma.*"]),
        "mlx_diffusiongemma.converter",
        "mlx_diffusiongemma.kernels",
    ]
)
