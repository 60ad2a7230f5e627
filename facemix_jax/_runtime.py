"""Process settings that must stand before JAX starts. Entry points call ``configure`` first.

Nothing here runs on import, and what the user has set is left alone.
"""

import ctypes
import os
import platform
from importlib import metadata

_YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_YNN_TYPES = "-individual_convolution,-reduce"
"""What is kept from YNNPACK: its convolutions are slow, and its sums over maps, fused with the
layers before them, are wrong: of a ReLU's NaN they make numbers, so that a network that diverged
has an accuracy, and in jaxlib 0.11.2 they return NaN for some means in bfloat16."""
_YNN_VERSIONS = ((0, 10), (0, 11))

_KEEP_FREED_MEMORY = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
"""Parameters of glibc's ``mallopt`` and their values: all large buffers from one heap, which is
never handed back to the system."""

_DETERMINISTIC = "--xla_gpu_deterministic_ops"


def configure(*, virtual_cpu_devices: int | None = None, deterministic: bool = False) -> None:
    """Sets the environment for the CPU speed this project measured.

    Call it before the first JAX computation (device counts and flags are read once).

    * Convolutions leave XLA's slow path: on two cores, training ResNet-18 at 218x178 went from
      5.2 to 9.4 images/s. Sums over maps leave YNNPACK too, as it hides NaN. XLA stops at flags
      that it does not know, so the flag is set only for jaxlib 0.10 and 0.11.
    * LAPACK runs one thread: drawing many small orthogonal matrices is faster by tens.
    * The process keeps the memory that it frees (glibc only). A training step's buffers are
      otherwise mapped anew and zeroed page by page in every step: 120,000 page faults and a
      tenth of the step's time in the setting above.

    Args:
        virtual_cpu_devices: how many CPU devices to simulate; None for the usual one.
        deterministic: whether GPUs compute the same bits every time, with the kernels that cuDNN
            and cuBLAS suggest. XLA otherwise tries out all kernels of each convolution, which took
            3 s for most of ResNet-18's 32 on an H200 (docs/scaling.md).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    if version in _YNN_VERSIONS and _YNN_FLAG not in flags:
        flags += f" {_YNN_FLAG}={_YNN_TYPES}"
    if virtual_cpu_devices is not None:
        flags += f" --xla_force_host_platform_device_count={virtual_cpu_devices}"
    if deterministic and _DETERMINISTIC not in flags:
        flags += f" {_DETERMINISTIC}=true --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = flags.strip()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if platform.libc_ver()[0] == "glibc" and not any(n.startswith("MALLOC_") for n in os.environ):
        libc = ctypes.CDLL(None)
        for parameter, value in _KEEP_FREED_MEMORY.values():
            libc.mallopt(parameter, value)
