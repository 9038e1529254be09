"""Finds the packages; everything else is in pyproject.toml.

Setuptools can either find packages or take a list, and `mlx_diffusiongemma.kernels` has to be listed: it
is mapped to kernels/. `mlx_diffusiongemma.converter` is a link to convert/, and is found like others. The
demo's training needs torch and stays in the repository.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(
            include=["mlx_diffusiongemma", "mlx_diffusiongemma.*"],
            exclude=["mlx_diffusiongemma.demo.training"],
        ),
        "mlx_diffusiongemma.kernels",
    ]
)
