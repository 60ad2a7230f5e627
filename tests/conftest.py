import os
import tempfile
from pathlib import Path

from facemix_jax import _runtime

_runtime.configure()
# Most of the tests' time is compilation: LLVM's costly passes save less than they take.
os.environ["XLA_FLAGS"] += " --xla_llvm_disable_expensive_passes=true"

import jax  # noqa: E402  # after the settings
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# The same few programs are compiled in many tests, and in the processes that some tests start.
# Parallel workers share the cache of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Mixed dtypes and ranks are errors, except where a library underneath mixes them itself."""
    if request.node.get_closest_marker("library_promotes"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


class TinySource:
    """Random pictures whose first attribute is their brightness: learnable, and no files."""

    name = "tiny"
    image_size = (40, 36)
    attribute_names = ("Bright", "Even", "Coin")

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        bright = rng.integers(0, 2, 192)
        noise = rng.integers(0, 120, (192, *self.image_size, 3))
        self._images = (noise + 120 * bright[:, None, None, None]).astype(np.uint8)
        coin = rng.integers(0, 2, 192)
        self.attributes = np.stack([bright, np.arange(192) % 2, coin], 1).astype(np.int8)
        self.identities = np.arange(192, dtype=np.int32)
        self.splits = {"train": np.arange(128), "test": np.arange(128, 192)}

    def __len__(self) -> int:
        return 192

    def images(self, indices):
        return self._images[indices]


@pytest.fixture(scope="session")
def tiny_source():
    return TinySource()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with celeba/ and lfwa/; tests that need it are skipped elsewhere."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FACEMIX_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real faces: set FACEMIX_DATA to a folder with celeba/")
    return folder
