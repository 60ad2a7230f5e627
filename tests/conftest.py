"""Settings and fixtures of all tests.

JAX reads the settings when it is imported, and so do NumPy's and SciPy's libraries: the fixtures
import what needs them.
"""

import gc
import os
import tempfile
from pathlib import Path

import pytest

from facemix_jax import _runtime

_runtime.configure()
# Most of the tests' time is compilation, of which optimising saves less than it takes.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

# Tracing makes millions of objects that stay; two files took 7 and 13% less without looking
# through them as often.
gc.set_threshold(100_000, 20, 20)

# The same few programs are compiled in many tests, and in the processes that some tests start.
# Parallel workers share the cache of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Mixed dtypes and ranks are errors, except where a library underneath mixes them itself."""
    if request.node.get_closest_marker("library_promotes"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def tiny_source():
    from tiny_source import TinySource

    return TinySource()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with celeba/ and lfwa/; tests that need it are skipped elsewhere."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FACEMIX_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real faces: set FACEMIX_DATA to a folder with celeba/")
    return folder
