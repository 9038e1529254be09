"""The short name of mlx_diffusiongemma: `import mlx_dg`.

Both names give the same objects, which are imported on first use. `python -m mlx_dg` is the command `mlx_dg`.
"""

from typing import TYPE_CHECKING

from mlx_diffusiongemma import __all__ as __all__
from mlx_diffusiongemma import __dir__ as __dir__

if TYPE_CHECKING:
    from mlx_diffusiongemma import *  # noqa: F403
else:
    from mlx_diffusiongemma import __getattr__ as __getattr__

if __name__ == "__main__":
    from mlx_diffusiongemma.cli import run

    run()
