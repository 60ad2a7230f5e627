"""Eight virtual devices compute what one does, whatever the mesh; mixing needs no traffic."""

import json

import pytest
import scale_support as support

from facemix_jax._validate import UsageError
from facemix_jax.sharding import MeshConfig

SHAPES = [(s, d, 8 // s // d) for s in (1, 2, 4, 8) for d in (1, 2, 4, 8) if s * d <= 8]
TOLERANCE = 1e-5

_STEPS = """
model, defense = tiny_model(), defenses.facemix(group_size=4)
source = TinySource()
steps, size = 6, 64
sharding._WHOLE = 1024  # so that moments of this network are divided, too

def config(seed):
    return training.TrainConfig(batch_size=size, learning_rate=5e-4, seed=seed, warmup_fraction=0.0)

step = training.make_step(model, defense, config(0), steps)

def batch(seed, index):
    rows = np.random.default_rng([seed, index]).permutation(128)[:size]
    return source.images(rows), source.attributes[rows]

def trained(mesh, seeds):
    first = training.init_state(model, config(0), steps)
    program = population.build(step, first, mesh, len(seeds))
    places = sharding.shardings(mesh, first)
    states = [sharding.put(training.init_state(model, config(s), steps), places) for s in seeds]
    state = program.stack(states)
    scalars = program.scalars([training.Scalars.of(config(s)) for s in seeds])
    losses = []
    for index in range(steps):
        images, attributes = zip(*(batch(seed, index) for seed in seeds))
        state, info = program.step(
            state, program.put(images, size), program.put(attributes, size), scalars
        )
        losses.append(np.atleast_1d(info.loss))
    where = {
        name: sorted({str(leaf.sharding.spec) for leaf in jax.tree.leaves(part)})
        for name, part in (("main", state.variables["main"]), ("moments", state.opt_state),
                           ("post", state.variables["post"]))
    }
    ends = [sharding.gather(program.member(state, i), mesh) for i in range(len(seeds))]
    return ends, np.stack(losses), where

one = sharding.make_mesh(MeshConfig(seed_devices=1, data_devices=1))
alone = {}
found = []
for shape, more in json.loads(sys.argv[2]):
    mesh = sharding.make_mesh(MeshConfig(
        seed_devices=shape[0], data_devices=shape[1], model_devices=shape[2]), num_runs=shape[0])
    for seeds in [range(shape[0])] + ([range(2 * shape[0])] if more else []):
        for seed in seeds:
            alone[seed] = alone.get(seed) or trained(one, [seed])
        ends, losses, where = trained(mesh, list(seeds))
        found.append({
            "shape": shape, "runs": len(seeds), "where": where,
            **{
                what: max(
                    difference(getattr(ends[s], what), getattr(alone[s][0][0], what))
                    for s in seeds
                )
                for what in ("variables", "opt_state")
            },
            "losses": max(difference(losses[:, s], alone[s][1][:, 0]) for s in seeds),
            "moved": difference(
                alone[0][0][0].variables, training.init_state(model, config(0), steps).variables
            ),
        })
print(json.dumps(found))
"""


def check_shapes(shapes, *, twice=()):
    wanted = json.dumps([(shape, shape in twice) for shape in shapes])
    found = support.result(support.start(_STEPS, wanted))
    assert {tuple(f["shape"]) for f in found} == set(shapes)
    for each in found:
        for what in ("variables", "opt_state", "losses"):
            assert each[what] < TOLERANCE, each
        assert each["moved"] > 100 * TOLERANCE, "the control: a step does something"
        _, d, m = each["shape"]
        axes = " ".join(each["where"]["main"])
        assert ("model" in axes) == (m > 1)
        assert ("seed" in axes) == (each["runs"] > 1)
        assert "model" not in " ".join(each["where"]["post"])
        assert "data" not in axes
        assert ("data" in " ".join(each["where"]["moments"])) == (d > 1)


def test_sharded_equals_unsharded():
    check_shapes([(2, 2, 2)])


@pytest.mark.slow
def test_sharded_equals_unsharded_on_every_mesh():
    check_shapes(SHAPES, twice=[(2, 2, 2), (4, 2, 1)])


_MIXING = """
import re
KINDS = r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\\("
mesh = sharding.make_mesh(MeshConfig(data_devices=8))
place = sharding.batch_sharding(mesh)
x = jax.device_put(jax.random.normal(jax.random.key(0), (64, 6, 5, 4)), place)
rng_key = jax.random.key(1)

def work(group_size, training_, draw):
    defense = defenses.facemix(group_size=group_size)
    def both(rng_key, secret, x):
        if draw:
            secret = defense.init(rng_key, 64, training_)
        sent = defense.protect(secret, x)
        return sent, defense.recover(secret, jnp.mean(sent, axis=(1, 2))), secret
    secret = defense.init(rng_key, 64, training_)
    compiled = jax.jit(both, out_shardings=(place, place, None)).lower(rng_key, secret, x).compile()
    text = compiled.as_text()
    found = re.findall(KINDS, text)
    return len(found), compiled(rng_key, secret, x), jax.jit(both)(rng_key, secret, np.asarray(x))

result = {}
for name, arguments in {
    "two groups a device": (4, True, True), "key given": (8, True, False),
    "groups across devices": (16, True, True),
}.items():
    count, sharded, plain = work(*arguments)
    result[name] = {
        "collectives": count,
        "matrix": float(jnp.max(jnp.abs(sharded[2].matrix - plain[2].matrix))),
        "sent": float(np.max(np.abs(np.asarray(sharded[0]) - np.asarray(plain[0])))),
        "recovered": float(np.max(np.abs(np.asarray(sharded[1]) - np.asarray(plain[1])))),
    }
print(json.dumps(result))
"""


def test_mixing_needs_no_traffic_and_draws_the_same_keys():
    found = support.result(support.start(_MIXING))
    for name in ("two groups a device", "key given"):
        assert found[name]["collectives"] == 0, name
    assert found["groups across devices"]["collectives"] > 0, "the control"
    for each in found.values():
        assert each["matrix"] == 0, "the same secret, to the last bit"
        assert each["sent"] < 1e-6
        assert each["recovered"] < 1e-6


_ERRORS = """
from facemix_jax._validate import UsageError
found = []
for options, batch, group, runs_ in (
    ({}, 64, 16, 1), ({"data_devices": 3}, 64, 8, 1),
    ({"model_devices": 3, "data_devices": 4}, 64, 8, 1),
    ({"model_devices": 16}, 64, 8, 1), ({"seed_devices": 2}, 64, 4, 3),
):
    try:
        mesh = sharding.make_mesh(MeshConfig(**options), num_runs=runs_)
        sharding.check_batch(mesh, batch, group)
        found.append("")
    except UsageError as error:
        found.append(str(error))
sizes = [
    dict(sharding.make_mesh(MeshConfig(**options), num_runs=runs_, num_groups=groups).shape)
    for options, runs_, groups in (
        ({}, 1, 0), ({}, 4, 0), ({}, 3, 0), ({"model_devices": 2}, 8, 0),
        ({"data_devices": 4}, 2, 0), ({}, 1, 6), ({}, 4, 1), ({"data_devices": 4}, 2, 6),
    )
]
print(json.dumps([found, sizes]))
"""


def test_sizes_that_do_not_fit_are_explained_and_left_out_ones_are_found():
    found, sizes = support.result(support.start(_ERRORS))
    for message, words in zip(
        found,
        (
            ("batch_size 64 is no multiple of 128", "data_devices 4"),
            ("batch_size 64 is no multiple of 24", "48 or 72", "data_devices 2"),
            ("need 12 devices, but there are 8",),
            ("need 16 devices", "smaller"),
            ("seed_devices 2 does not divide num_runs 3",),
        ),
        strict=True,
    ):
        for word in words:
            assert word in message
    assert [(s["seed"], s["data"], s["model"]) for s in sizes] == [
        (1, 8, 1),
        (4, 2, 1),
        (1, 8, 1),
        (4, 1, 2),
        (2, 4, 1),
        (1, 6, 1),
        (4, 1, 1),
        (2, 4, 1),
    ]


@pytest.mark.parametrize("options", [{"model_devices": 0}, {"data_devices": -1}])
def test_wrong_counts_are_refused(options):
    with pytest.raises(UsageError, match="devices"):
        MeshConfig(**options)
