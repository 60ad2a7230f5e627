"""Programs with several devices or processes: XLA counts devices once, before JAX starts."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

_START = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "scale")!r}]
from facemix_jax import _runtime; _runtime.configure(virtual_cpu_devices=int(sys.argv[1]))
import os; os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
import json, dataclasses, functools
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from tiny_source import TinySource
from facemix_jax import defenses, fitting, hosts, mixing, population, runs, sharding, training
from facemix_jax.sharding import MeshConfig
from scale_support import *
"""


def start(body, *arguments, devices=8, bare=False, **options):
    """A process that runs ``body``, its arguments ``sys.argv[2:]``; ``bare`` imports nothing."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [
        sys.executable,
        "-c",
        ("" if bare else _START) + body,
        str(devices),
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


def result(process, *, code=0):
    """The JSON of the last line that a process printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return json.loads(output.splitlines()[-1]) if output.strip() else None


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def together(body, *arguments, processes=2, devices=2):
    """Processes of one run; each gets the coordinator, the count and its index first."""
    address = f"localhost:{free_port()}"
    return [
        start(body, address, processes, index, *arguments, devices=devices)
        for index in range(processes)
    ]


def stop_all(processes):
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


# For the programs themselves: imported there after the devices are set.


def tiny_model(width=8, dtype=None):
    """A stem, two blocks and a pool: compiled in a second."""
    import functools

    import jax.numpy as jnp

    from facemix_jax.models import resnet
    from facemix_jax.models.split import Head, split

    dtype = dtype or jnp.float32
    block = functools.partial(resnet.BasicBlock, norm="batch", dtype=dtype)
    units = [
        ("stem", functools.partial(resnet.Stem, width, "batch", dtype)),
        ("layer1_0", functools.partial(block, width, 1)),
        ("layer2_0", functools.partial(block, 2 * width, 2)),
        ("pool", resnet.GlobalAveragePool),
    ]
    head = functools.partial(Head, 3, 2)
    return split(units, head, name="tiny", cut=1, last_cut=3, image_size=(40, 36))


def tiny_config(**train):
    from facemix_jax.defenses import DefenseConfig
    from facemix_jax.models import ModelConfig
    from facemix_jax.runs import RunConfig
    from facemix_jax.training import TrainConfig

    train = {"num_epochs": 2, "batch_size": 32, "log_every": 2, "checkpoint_every": 3, **train}
    return RunConfig(
        model=ModelConfig(width=8), defense=DefenseConfig(group_size=4), train=TrainConfig(**train)
    )


def use_tiny_model():
    """Runs of this process have the tiny network."""
    from facemix_jax import runs

    runs.build_model = lambda config, source: tiny_model(config.model.width)


def numbers(tree):
    """All numbers of a tree in one array."""
    import jax
    import numpy as np

    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


def difference(first, second):
    """Largest difference, as a share of the value where that is above 1."""
    import numpy as np

    a, b = numbers(first), numbers(second)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1)))


def digest(state):
    import hashlib

    import jax
    import numpy as np

    found = hashlib.sha256()
    for leaf in jax.tree.leaves((state.variables, state.opt_state)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
