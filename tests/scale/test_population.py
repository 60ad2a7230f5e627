"""Runs that train together end as they would alone."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import scale_support as support

from facemix_jax import checkpoint, fitting, hosts, loop, population, runs
from facemix_jax._validate import UsageError
from facemix_jax.fitting import Options

pytestmark = pytest.mark.library_promotes  # Optax

QUIET = Options(show_progress=False)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    model = support.tiny_model()
    monkeypatch.setattr(runs, "build_model", lambda config, source: model)


def configs(**changes):
    """Two seeds, another learning rate, another weight decay."""
    base = support.tiny_config(learning_rate=5e-4, **changes)
    return [
        dataclasses.replace(base, train=dataclasses.replace(base.train, **values))
        for values in (
            {"seed": 0},
            {"seed": 1},
            {"seed": 1, "learning_rate": 2e-4},
            {"seed": 0, "weight_decay": 0.3},
        )
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_source):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        model = support.tiny_model()
        patch.setattr(runs, "build_model", lambda config, source: model)
        states = [
            fitting.fit(config, folder / str(i), source=tiny_source, options=QUIET)
            for i, config in enumerate(configs())
        ]
    return folder, states


@pytest.mark.parametrize(
    "method", ["loop", "vmap", "dense", pytest.param("auto", marks=pytest.mark.slow)]
)
def test_runs_together_end_as_alone(alone, tiny_source, tmp_path, method):
    folder, states = alone
    folders = [tmp_path / str(i) for i in range(4)]
    choice = tmp_path / "choice.json"
    found = fitting.fit_together(
        configs(), folders, source=tiny_source, method=method, choice=choice, options=QUIET
    )
    for i, (state, wanted) in enumerate(zip(found, states, strict=True)):
        assert int(state.step) == 8
        assert support.difference(state.variables, wanted.variables) < TOLERANCE
        assert runs.read_config(folders[i]) == runs.read_config(folder / str(i))
        records = [fitting.read_records(f / str(i)) for f in (tmp_path, folder)]
        for a, b in zip(*records, strict=True):
            for name in ("step", "loss", "learning_rate", "epoch"):
                assert a[name] == pytest.approx(b[name], abs=TOLERANCE)
        assert checkpoint.newest(folders[i] / "checkpoints") == 8
    for i in range(3):
        assert support.difference(found[i].variables, found[i + 1].variables) > 10 * TOLERANCE
    if method == "auto":
        chosen = json.loads(choice.read_text())
        assert set(chosen["seconds_per_step"]) == {"loop", "vmap"}
        assert (chosen["runs"], chosen["device"]) == (4, "cpu")
        assert chosen["method"] == min(*chosen["seconds_per_step"].items(), key=lambda x: x[1])[0]


def test_an_interrupted_group_goes_on_from_the_newest_common_step(alone, tiny_source, tmp_path):
    _, states = alone
    folders = [tmp_path / str(i) for i in range(4)]

    save = checkpoint.Checkpoints.save

    # Steps 3 of all four, then 6 of two; those lose nothing by a kill on the way there again.
    for saves in (6, 0):
        left = [save] * saves

        def dying(self, state, left=left):
            if not left:
                raise MemoryError
            left.pop()(self, state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.Checkpoints, "save", dying)
            with pytest.raises(MemoryError):
                fitting.fit_together(
                    configs(), folders, source=tiny_source, method="loop", options=QUIET
                )
        newest = [checkpoint.newest(folder / "checkpoints") for folder in folders]
        assert newest == [6, 6, 3, 3]
    # Nor by a stop, after which there would be no common step any more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_due", lambda step, *_: (step == 5, step == 5, step == 5))
        with pytest.raises(fitting.StoppedError, match=r"after step 5 of 8.* on from step 3"):
            fitting.fit_together(
                configs(), folders, source=tiny_source, method="loop", options=QUIET
            )
    assert [checkpoint.newest(folder / "checkpoints") for folder in folders] == newest
    found = fitting.fit_together(
        configs(), folders, source=tiny_source, method="loop", options=QUIET
    )
    for state, wanted, folder in zip(found, states, folders, strict=True):
        np.testing.assert_array_equal(
            support.numbers(state.variables), support.numbers(wanted.variables)
        )
        assert [r["step"] for r in fitting.read_records(folder)] == [2, 3, 4, 6, 8]


def test_a_fresh_run_beside_one_that_has_begun_costs_it_nothing(
    alone, tiny_source, tmp_path, monkeypatch
):
    _, states = alone
    folders = [tmp_path / str(i) for i in range(2)]
    options = {"source": tiny_source, "method": "loop", "options": QUIET}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_due", lambda step, *_: (step == 2, step == 2, step == 2))
        with pytest.raises(fitting.StoppedError):
            fitting.fit_together(configs()[:1], folders[:1], **options)
    began, train = [], loop.train

    def noted(members, plan, mesh, start, *rest, **more):
        began.append((start, [member.workdir for member in members]))
        assert checkpoint.newest(folders[0] / "checkpoints") >= 2
        train(members, plan, mesh, start, *rest, **more)

    monkeypatch.setattr(loop, "train", noted)
    found = fitting.fit_together(configs()[:2], folders, **options)
    assert began == [(2, folders[:1]), (0, folders[1:])]
    for state, wanted in zip(found, states[:2], strict=True):
        np.testing.assert_array_equal(
            support.numbers(state.variables), support.numbers(wanted.variables)
        )


def test_all_processes_take_the_first_ones_choice_of_a_method(tiny_source, tmp_path, monkeypatch):
    """Another one may not see the file yet."""

    class BuiltError(Exception):
        pass

    def build(*args, dense_convolutions):
        assert dense_convolutions
        raise BuiltError

    def first(values):
        return [population.METHODS.index("dense")] if values == [0] else values

    monkeypatch.setattr(population, "build", build)
    monkeypatch.setattr(hosts, "from_first", first)
    folders, options = [tmp_path / str(i) for i in range(2)], {"options": QUIET}
    options |= {"source": tiny_source, "choice": tmp_path / "choice.json"}
    with pytest.raises(BuiltError):
        fitting.fit_together(configs()[:2], folders, **options)


def test_all_processes_go_on_from_where_the_first_says(tiny_source, tmp_path, monkeypatch):
    """Another one may not see the newest files of a shared folder yet."""

    class LoadedError(Exception):
        pass

    def load(members, plan, mesh, start, initial):
        assert (start, [member.saved for member in members]) == (3, [6, 3])
        raise LoadedError

    monkeypatch.setattr(fitting, "_load", load)
    monkeypatch.setattr(hosts, "from_first", lambda values: [3, 3, 6, 3])
    folders = [tmp_path / str(i) for i in range(2)]
    with pytest.raises(LoadedError):
        fitting.fit_together(configs()[:2], folders, source=tiny_source, options=QUIET)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([set(), set()], [0, 0]),
        ([{3, 6}, {3}], [3, 3]),
        ([{3}, set()], [3, 0]),
        ([{3, 6}, set(), {3}], [3, 0, 3]),
        ([{12}, {3, 6}, {3, 6}], [12, 6, 6]),
        ([{6, 9}, set(), {6, 9}], [9, 0, 9]),
        ([{6, 9}, {3}], [9, 3]),
        ([{3, 6}, {3, 5}], [6, 5]),
        ([{12}, {9, 12}], [12, 12]),
    ],
)
def test_where_runs_go_on(saved, expected):
    assert fitting._starts(saved, num_steps=12) == expected


def test_one_that_diverges_does_not_stop_the_others(tiny_source, tmp_path):
    several = configs()
    train = dataclasses.replace(several[1].train, learning_rate=1e38)
    several[1] = dataclasses.replace(several[1], train=train)
    folders = [tmp_path / str(i) for i in range(4)]
    with pytest.raises(fitting.DivergedError, match=r"loss is (nan|inf)") as caught:
        fitting.fit_together(several, folders, source=tiny_source, method="loop", options=QUIET)
    assert list(caught.value.reasons) == [folders[1]]
    states = caught.value.states
    assert states[1] is None
    assert [int(states[i].step) for i in (0, 2, 3)] == [8, 8, 8]


def test_one_network_that_is_not_finite_does_not_stop_the_others(tiny_source, tmp_path):
    drawn = []

    def poison_second(variables):
        drawn.append(variables)
        if len(drawn) != 2:
            return variables
        main = variables["main"]
        stats = jax.tree.map(lambda leaf: leaf * np.inf, main["batch_stats"])
        return {**variables, "main": {**main, "batch_stats": stats}}

    folders = [tmp_path / str(i) for i in range(3)]
    with pytest.raises(fitting.DivergedError, match=r"NaN or infinities at step 3.*1\.$") as caught:
        fitting.fit_together(
            configs()[:3],
            folders,
            source=tiny_source,
            initial_variables=poison_second,
            method="loop",
            options=QUIET,
        )
    assert list(caught.value.reasons) == [folders[1]]
    steps = [state and int(state.step) for state in caught.value.states]
    assert steps == [8, None, 8]
    assert [checkpoint.newest(f / "checkpoints") for f in folders] == [8, None, 8]


def test_runs_that_differ_in_more_are_refused(tiny_source, tmp_path):
    first, second = configs()[:2]
    second = dataclasses.replace(second, train=dataclasses.replace(second.train, flip=False))
    with pytest.raises(UsageError, match="seed, learning_rate and weight_decay only"):
        fitting.fit_together([first, second], [tmp_path / "a", tmp_path / "b"], source=tiny_source)


def test_sizes_of_programs():
    mesh = types.SimpleNamespace(shape={"seed": 2})
    assert population.size("vmap", 8, mesh) == 8
    assert population.size("loop", 8, mesh) == 2
    assert jax.device_count() == 1, "these tests run on one device"
