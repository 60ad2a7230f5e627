"""Process settings that must stand before JAX starts. Entry points call ``configure`` first.

Nothing here runs on import, and what the user has set is left alone.
"""

import os
from importlib import metadata

_YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def configure(*, virtual_cpu_devices: int | None = None) -> None:
    """Sets the environment for the CPU speed this project measured.

    Call it before the first JAX computation (device counts and flags are read once).

    * Convolutions leave XLA's slow path: on two cores, training ResNet-18 at 218x178 went from
      5.2 to 9.4 images/s. XLA stops at flags that it does not know, so the flag is set only for
      jaxlib 0.10 and 0.11.
    * LAPACK runs one thread: drawing many small orthogonal matrices is faster by tens.

    Args:
        virtual_cpu_devices: how many CPU devices to simulate; None for the usual one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    if (0, 10) <= version < (0, 12) and _YNN_FLAG not in flags:
        flags += f" {_YNN_FLAG}=-individual_convolution"
    if virtual_cpu_devices is not None:
        flags += f" --xla_force_host_platform_device_count={virtual_cpu_devices}"
    os.environ["XLA_FLAGS"] = flags.strip()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
