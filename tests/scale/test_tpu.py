"""What runs in training, inference and the attacks can be compiled for a TPU, and stays on it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scale_support as support
from jax import export as jax_export

from facemix_jax import defenses, inference, population, sharding, training
from facemix_jax.sharding import MeshConfig

pytestmark = pytest.mark.library_promotes  # Optax

STEPS = 10


def lowered(function, *arguments):
    """StableHLO text of a function for a TPU."""
    exported = jax_export.export(jax.jit(function), platforms=["tpu"])
    return exported(*arguments).mlir_module()


def host_calls(text):
    """Custom calls that go back to Python, and transfers."""
    return re.findall(r"@\w*callback\w*|stablehlo\.(?:infeed|outfeed|send|recv)\b", text)


def callbacks_in(function, *arguments):
    """Names of primitives that call Python."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                for part in value if isinstance(value, tuple | list) else (value,):
                    if hasattr(inner := getattr(part, "jaxpr", part), "eqns"):
                        yield from walk(inner)

    names = set(walk(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert "conv_general_dilated" in names, "the search reaches what is inside"
    return {name for name in names if "callback" in name or "infeed" in name}


def step_and_arguments(group_size):
    model = support.tiny_model()
    config = training.TrainConfig(batch_size=16)
    defense = defenses.facemix(group_size=group_size) if group_size > 1 else defenses.none()
    step = training.make_step(model, defense, config, STEPS)
    state = training.init_state(model, config, STEPS)
    images = np.zeros((16, 40, 36, 3), np.uint8)
    return step, (state, images, np.zeros((16, 3), np.int8), training.Scalars.of(config))


@pytest.mark.parametrize("group_size", [8, 1])
def test_a_training_step_lowers_and_calls_no_host(group_size):
    step, arguments = step_and_arguments(group_size)
    text = lowered(step, *arguments)
    assert "stablehlo.convolution" in text
    assert host_calls(text) == []
    assert callbacks_in(step, *arguments) == set()


def test_the_search_finds_a_call_to_the_host():
    step, arguments = step_and_arguments(8)

    def chatty(*arguments):
        state, info = step(*arguments)
        jax.debug.callback(print, info.loss)
        return state, info

    assert callbacks_in(chatty, *arguments) == {"debug_callback"}

    def asking(*arguments):
        state, info = step(*arguments)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return state, jax.pure_callback(lambda x: x, shape, info.loss)

    text = jax.jit(asking).lower(*arguments).as_text()
    assert host_calls(text)


@pytest.mark.parametrize("several", [1, 2])
def test_the_program_of_several_runs_lowers(several):
    step, (state, images, attributes, scalars) = step_and_arguments(8)
    mesh = sharding.make_mesh(MeshConfig())
    program = population.build(step, state, mesh, several)
    arguments = (
        program.stack([state] * several),
        program.put([images] * several, 16),
        program.put([attributes] * several, 16),
        program.scalars([scalars] * several),
    )
    text = jax_export.export(program.step, platforms=["tpu"])(*arguments).mlir_module()
    assert host_calls(text) == []


@pytest.mark.parametrize("family", sorted(defenses.mixing.FAMILIES))
def test_inference_lowers_with_every_family_of_keys(family):
    model = support.tiny_model()
    defense = defenses.facemix(group_size=8, family=family)
    variables = model.init(jax.random.key(0))

    def run(variables, rng_key, images):
        return inference.infer(model, defense, variables, rng_key, images)

    text = lowered(run, variables, jax.random.key(1), np.zeros((16, 40, 36, 3), np.float32))
    assert host_calls(text) == []


def test_bfloat16_is_for_computing_only():
    """Parameters, statistics, moments and mixing stay float32; convolutions are bfloat16."""
    defense = defenses.facemix(group_size=8)
    config = training.TrainConfig(batch_size=16)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = support.tiny_model(dtype=dtype)
        state = training.init_state(model, config, STEPS)
        step = training.make_step(model, defense, config, STEPS)
        arguments = (np.zeros((16, 40, 36, 3), np.uint8), np.zeros((16, 3), np.int8))
        scalars = training.Scalars.of(config)
        end, info = jax.eval_shape(step, state, *arguments, scalars)
        floats = [
            leaf.dtype
            for leaf in jax.tree.leaves((end.variables, end.opt_state))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        assert set(floats) == {jnp.dtype(jnp.float32)}
        assert info.loss.dtype == jnp.float32
        kinds = {"conv_general_dilated": set(), "dot_general": set()}
        _operands(jax.make_jaxpr(step)(state, *arguments, scalars).jaxpr, kinds)
        found[jnp.dtype(dtype).name] = kinds
        z = jax.ShapeDtypeStruct((16, 10, 9, 8), dtype)
        sent = jax.eval_shape(defense.protect, defense.init(jax.random.key(0), 16, True), z)
        assert sent.dtype == jnp.float32, "mixing is in the matrix's dtype"
    assert found["bfloat16"]["conv_general_dilated"] == {"bfloat16"}
    assert found["float32"]["conv_general_dilated"] == {"float32"}, "the control"
    # The head and the mixing matrices.
    assert found["bfloat16"]["dot_general"] == {"float32"}


def _operands(jaxpr, kinds):
    for equation in jaxpr.eqns:
        if equation.primitive.name in kinds:
            kinds[equation.primitive.name] |= {str(v.aval.dtype) for v in equation.invars}
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(part, "jaxpr", part), "eqns"):
                    _operands(inner, kinds)


_EVERYTHING = """
import jax
import sys; sys.path[:0] = [TESTS, TESTS + "/scale", TESTS + "/attacks"]
import recording_jit; jax.jit = recording_jit.jit
import json
from attack_support import make_target
from facemix_jax import attacks, evaluation
from facemix_jax.attacks import suite
from jax import export as jax_export
import test_tpu

target = make_target()
key = jax.random.key(4)
evaluation.evaluate_utility(
    target.model, target.defense, target.variables, target.source, rng_key=key, batch_size=32)
rows = attacks.recorded_rows(target, 4)
recording = attacks.record(target, rows, rng_key=key)
ran, skipped = [], []
for name, attack in suite.ATTACKS.items():
    if attack.unsuitable(target) is not None:
        skipped.append(name)
        continue
    attack.run(target, recording, key, attacks.AttackConfig(num_groups=4, steps=2, batch_size=16))
    ran.append(name)
failed, hosts = {}, {}
for name, (compiled, args, kwargs) in recording_jit.CALLS.items():
    args = tuple("tpu" if a == "cpu" else a for a in args)
    kwargs = {k: "tpu" if v == "cpu" else v for k, v in kwargs.items()}
    try:
        text = jax_export.export(compiled, platforms=["tpu"])(*args, **kwargs).mlir_module()
        if test_tpu.host_calls(text):
            hosts[name] = test_tpu.host_calls(text)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"[:300]
print(json.dumps(
    {"functions": sorted(recording_jit.CALLS), "failed": failed, "hosts": hosts, "ran": ran,
     "skipped": skipped}))
"""


@pytest.mark.slow
def test_every_jitted_function_of_the_attacks_lowers():
    body = _EVERYTHING.replace("TESTS", repr(str(support.TESTS)))
    found = support.result(support.start(body, bare=True))
    print(json.dumps(found, indent=1))
    assert found["failed"] == {}
    assert found["hosts"] == {}
    assert len(found["ran"]) >= 15
    modules = {name.split(".")[2] for name in found["functions"] if ".attacks." in name}
    assert {"separation", "inversion", "grouping", "reconstruction"} <= modules
