"""An emulator of MLX's custom Metal kernels, for machines without Metal.

    result = emulate(call, *inputs)

runs the kernel that `call(*inputs)` would launch, and raises KernelFault for what a GPU would do silently:
an index outside, a race, a barrier that not all threads reach, an output never written. It knows the part
of Metal that this package's kernels use; the rest does not compile.
"""

from .emulation import Emulation, KernelFault, emulate

__all__ = ["Emulation", "KernelFault", "emulate"]
