"""Process settings: what they change, in fresh interpreters."""

import os
import platform
import subprocess
import sys

import pytest

from facemix_jax import _runtime

FAULTS_OF_A_BUFFER = """
import ctypes, resource, threading
if {configured}:
    from facemix_jax import _runtime
    _runtime.configure()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def use():
    buffer = libc.malloc(1 << 29)
    libc.memset(buffer, 1, 1 << 29)
    libc.free(buffer)

def use_in_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

use_in_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use_in_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = (1 << 29) // (2 << 20)
"""The fewest faults that mapping the buffer can take: 256."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("configured", [True, False])
def test_a_buffer_of_the_last_step_is_used_again(configured: bool) -> None:
    program = FAULTS_OF_A_BUFFER.format(configured=configured)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={}
    )
    faults = int(run.stdout)
    if configured:
        assert faults < HUGE_PAGES / 2
    else:  # the control: without the setting every page is mapped again
        assert faults >= HUGE_PAGES


@pytest.mark.parametrize(
    ("version", "set_before", "expected"),
    [
        ("0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-reduce"),
        ("0.11.2", "", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-reduce"),
        ("0.12.0", "", ""),
        ("0.11.2", "--xla_cpu_experimental_ynn_fusion_type=", None),
    ],
)
def test_flags_are_those_of_the_version_and_the_users_stay(
    monkeypatch, version, set_before, expected
):
    monkeypatch.setenv("XLA_FLAGS", set_before)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # so that this process's memory is left alone
    monkeypatch.setattr(_runtime.metadata, "version", lambda name: version)
    _runtime.configure()
    assert os.environ["XLA_FLAGS"] == (set_before if expected is None else expected)


def test_a_mean_over_maps_does_not_hide_nan():
    program = (
        "from facemix_jax import _runtime\n"
        "_runtime.configure()\n"
        "import jax, jax.numpy as jnp\n"
        "maps = jnp.full((128, 9, 9, 4), jnp.nan)\n"
        "found = jax.jit(lambda z: jax.nn.relu(z).mean((1, 2)))(maps)\n"
        "print(bool(jnp.isnan(found).all()))"
    )
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert run.stdout.strip() == "True"


@pytest.mark.parametrize("set_before", ["", "--xla_gpu_deterministic_ops=false"])
def test_deterministic_kernels_are_asked_for_unless_the_user_has_said_something(
    monkeypatch, set_before
):
    monkeypatch.setenv("XLA_FLAGS", set_before)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    _runtime.configure()
    assert "--xla_gpu_deterministic_ops=true" not in os.environ["XLA_FLAGS"]  # the control
    _runtime.configure(deterministic=True)
    assert ("--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]) is (not set_before)
