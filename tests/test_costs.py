"""Costs are read off the architecture: each of the paper's figures, and counts done by hand."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import _validate, commands, costs, costs_paper, mixing
from facemix_jax.models import ModelConfig, resnet18, vgg16


@pytest.fixture(scope="module", name="table1")
def _table1():
    return costs_paper.table1()


@pytest.fixture(scope="module", name="resnet18_table")
def _resnet18_table():
    return costs_paper.resnet18_table()


def _abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _conv(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


# One layer at a time, counted by hand.


@pytest.mark.parametrize(
    ("options", "kernel", "expected"),
    [
        ({"window_strides": (1, 1), "padding": "VALID"}, (3, 3, 4, 8), 6 * 5 * 8 * 9 * 4),
        ({"window_strides": (1, 1), "padding": "SAME"}, (3, 3, 4, 8), 8 * 7 * 8 * 9 * 4),
        ({"window_strides": (2, 2), "padding": "SAME"}, (3, 3, 4, 8), 4 * 4 * 8 * 9 * 4),
        (
            {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
            (3, 3, 1, 8),
            8 * 7 * 8 * 9,
        ),
    ],
)
def test_convolution_counts_output_times_kernel(options, kernel, expected):
    (layer,) = costs.linear_layers(
        lambda x, k: _conv(x, k, **options), _abstract(1, 8, 7, 4), _abstract(*kernel)
    )
    assert layer.kind == "conv"
    assert layer.macs == expected
    assert layer.input_size == 8 * 7 * 4
    assert layer.weights == math.prod(kernel)


def test_transposed_convolution_counts_input_times_kernel():
    def up(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")

    (layer,) = costs.linear_layers(up, _abstract(1, 8, 7, 4), _abstract(3, 3, 4, 5))
    assert layer.kind == "transposed conv"
    assert layer.macs == 8 * 7 * 4 * 9 * 5
    assert layer.output_size == 16 * 14 * 5


def test_batched_product_is_counted_once_for_each_batch():
    (layer,) = costs.linear_layers(jnp.matmul, _abstract(6, 3, 4), _abstract(6, 4, 5))
    assert (layer.kind, layer.macs) == ("dense", 6 * 3 * 4 * 5)


def test_layers_inside_other_programs_are_found():
    def layer(x, w):
        return x @ w

    wrapped = {
        "jit": jax.jit(layer),
        "remat": jax.checkpoint(layer),
        "nested": jax.jit(jax.checkpoint(jax.jit(layer))),
        "vmap": lambda x, w: jax.vmap(jax.jit(layer), (0, None))(x, w),
    }
    custom = jax.custom_vjp(layer)
    custom.defvjp(lambda x, w: (layer(x, w), None), lambda residuals, g: (g, g))
    wrapped["custom_vjp"] = custom
    jvp = jax.custom_jvp(layer)
    jvp.defjvp(lambda primals, tangents: (layer(*primals), layer(*primals)))
    wrapped["custom_jvp"] = jvp
    for name, function in wrapped.items():
        assert costs.macs(function, _abstract(2, 3), _abstract(3, 3)) == 18, name


def test_scan_counts_every_iteration():
    def chain(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, length=7)[0]

    layers = costs.linear_layers(chain, _abstract(2, 3), _abstract(3, 3))
    assert [layer.macs for layer in layers] == [18] * 7


def test_unknown_number_of_runs_is_refused():
    def loop(x, w):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 1, lambda c: c @ w, x)

    def branch(x, w):
        return jax.lax.cond(jnp.sum(x) < 1, lambda: x @ w, lambda: x)

    for function in (loop, branch):
        with pytest.raises(_validate.UsageError, match="how often they run"):
            costs.linear_layers(function, _abstract(2, 3), _abstract(3, 3))
    # A loop without linear layers costs no MACs and is no error.
    harmless = jax.lax.while_loop
    assert costs.macs(lambda x: harmless(lambda c: jnp.sum(c) < 1, lambda c: c + 1, x), 0.0) == 0


def test_mixing_formula_is_what_mixing_does():
    model = resnet18(cut=1, image_size=(64, 48), width=8)
    cost = costs.model_cost(model, group_size=8)
    key = jax.eval_shape(lambda: mixing.sample_mix_key(jax.random.key(0), 2, 8))
    x = _abstract(16, *model.spec.activation_shape)
    y = _abstract(16, *model.spec.response_shape)
    assert costs.macs(mixing.mix, key, x) == 16 * cost.mixing_macs
    assert costs.macs(mixing.unmix, key, y) == 16 * cost.unmixing_macs


# Parameters.


def test_batch_norm_is_counted_apart():
    model = resnet18(cut=2, image_size=(64, 48), width=8)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for name in ("pre", "main", "post"):
        without, batch_norm = costs.parameters(variables[name])
        every = sum(x.size for x in jax.tree.leaves(variables[name]["params"]))
        running = sum(x.size for x in jax.tree.leaves(variables[name].get("batch_stats", {})))
        # One scale and one shift for each running mean and variance.
        assert without + batch_norm == every
        assert batch_norm == running
    cost = costs.model_cost(model, group_size=8)
    edge = [cost.pre, cost.post]
    assert cost.edge_parameters == sum(part.parameters for part in edge)
    assert cost.edge_parameters_with_norm == sum(
        part.parameters + part.batch_norm_parameters for part in edge
    )


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_cut_moves_cost_but_makes_none(cut):
    cost = costs.model_cost(resnet18(cut=cut), group_size=8)
    assert cost.macs == 1_498_546_112
    assert cost.parameters == 11_207_952
    assert cost.parameters_with_norm == 11_217_552
    assert cost.pre.macs + cost.main.macs + cost.post.macs == cost.macs


def test_network_without_norm_has_no_norm_parameters():
    cost = costs.model_cost(
        resnet18(cut=1, image_size=(64, 48), width=8, norm="none"), group_size=2
    )
    assert cost.parameters == cost.parameters_with_norm


# The paper.


def test_resnet18_figures(resnet18_table):
    """Section 4's edge columns; every integer exact."""
    edge, *without, anonymizer, one, two, three = (row.figures for row in resnet18_table)
    assert len(without) == 5
    for row in without:
        assert row["parameters"].derived == row["macs"].derived == 0
    blurred = 6 * 3 * 218 * 178  # two averages of an element, four for an element
    assert [row["macs_all"].derived for row in without] == [0, 0, 0, blurred, blurred]
    assert edge["macs"].derived == 1_498_546_112
    assert edge["parameters"].derived == 11_207_952
    assert edge["parameters_with_norm"].derived == 11_217_552
    for row, parameters, macs in (
        (one, 50_448, 92_534_208),
        (two, 124_176, 275_011_008),
        (three, 197_904, 457_487_808),
    ):
        assert row["parameters"].derived == parameters
        assert row["macs"].derived == macs
        assert row["macs_all"].derived - macs == 512 * 80 + 8 * 512
    assert anonymizer["parameters"].derived == 11_378_179
    assert round(anonymizer["macs"].derived / 1e9, 3) == 47.136


def test_table1_figures(table1):
    cloud, osia, slalom, first, second = (row.figures for row in table1)

    def check(row, **expected):
        for name, value in expected.items():
            decimals = len(str(value).partition(".")[2])
            # A little above, so that an exact half rounds up as it does by hand.
            assert round(row[name].derived + 1e-9, decimals) == value, name

    check(cloud, up_mib=0.574, seconds=0.357, edge_share=0.0, rounds=1)
    check(osia, up_mib=0.383, seconds=0.255, edge_share=0.932)
    check(slalom, mib=86.486, seconds=33.135, rounds=16)
    check(first, mib=12.266, up_mib=12.25, seconds=6.588, edge_share=0.0056)
    check(second, mib=3.078, up_mib=3.0625, seconds=1.688, edge_share=0.125)
    assert slalom["edge_share"].mark == "paper"
    assert slalom["edge_share"].derived is None
    check(slalom, edge_share_all=0.0123)


def test_every_printed_figure_is_met(table1, resnet18_table):
    """Two are truncated in the paper; all others round to what it prints."""
    agreement = {
        (row.name, name): figure.agreement
        for row in (*table1, *resnet18_table)
        for name, figure in row.figures.items()
        if figure.agreement is not None
    }
    assert set(agreement.values()) == {"rounded", "truncated"}
    assert [key for key, value in agreement.items() if value == "truncated"] == [
        ("FaceMix, after pool1", "mib"),
        ("face anonymizer, 256x256", "macs"),
    ]
    assert len(agreement) == 24 + 2 * 5


def test_verification_costs_a_layer_of_one_output_and_a_product():
    layers = costs.linear_layers(
        lambda x, k, w: _conv(x, k, window_strides=(2, 2), padding="SAME").reshape(1, -1) @ w,
        _abstract(1, 8, 6, 4),
        _abstract(3, 3, 4, 8),
        _abstract(96, 5),
    )
    conv, dense = (costs_paper.freivalds_macs(layer, 1) for layer in layers)
    assert conv == 4 * 3 * (9 * 4 + 8)
    assert dense == 96 + 5


def test_a_wrong_figure_would_differ():
    assert costs_paper._agreement(0.0, "0.4 MB") == "differs"
    assert costs_paper._agreement(1.56e9, "1.50G") == "differs"


def test_only_mixing_after_the_pool_gives_the_paper():
    """Negative controls: without mixing 0.28 is 0.27; with mixing before the pool 0.09 is 0.10."""
    one, two = (costs.model_cost(resnet18(cut=cut), group_size=8) for cut in (1, 2))
    before_pool = one.pre.macs + 8 * one.pre.layers[0].output_size
    assert costs_paper._agreement(two.edge_macs_paper, "0.28G") == "rounded"
    assert costs_paper._agreement(two.pre.macs, "0.28G") == "differs"
    assert costs_paper._agreement(one.edge_macs_paper, "0.09G") == "rounded"
    assert costs_paper._agreement(before_pool, "0.10G") == "rounded"


def test_vgg16_is_the_imagenet_network():
    cost = costs.model_cost(vgg16(num_attributes=1, num_classes=1000), group_size=8)
    assert cost.macs == 15_470_264_320
    assert cost.parameters == cost.parameters_with_norm == 138_357_544
    layers = (*cost.pre.layers, *cost.main.layers, *cost.post.layers)
    assert [layer.kind for layer in layers] == ["conv"] * 13 + ["dense"] * 3


def test_reports_are_plain_json(table1, resnet18_table):
    report = json.loads(json.dumps(costs_paper.table1_report(), allow_nan=False))
    assert report["table1"]["macs"]["derived"] == 15_470_264_320
    assert len(report["table1"]["rows"]) == 5
    assert report["table1"]["rows"][3]["figures"]["seconds"]["paper"] == "6.6 sec"
    assert {
        figure["mark"] for row in report["table1"]["rows"] for figure in row["figures"].values()
    } == {
        "derived",
        "paper",
    }
    cost = costs.cost_report(
        ModelConfig(width=8, cut=2), image_size=(64, 48), group_size=4, link=costs.Link()
    )
    assert json.loads(json.dumps(cost, allow_nan=False))["group_size"] == 4
    widths = {len(row) for row in costs.format_cost(cost)}
    assert widths == {2}
    for table in (
        costs_paper.format_table1(table1),
        costs_paper.format_resnet18(resnet18_table),
    ):
        assert len({len(row) for row in table}) == 1


def test_80_columns_hold_every_number_whole(table1, resnet18_table, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(costs_paper, "table1", lambda link: table1)
    monkeypatch.setattr(costs_paper, "resnet18_table", lambda: resnet18_table)
    commands.Cost(table1=True).run()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    tables = costs_paper.format_table1(table1) + costs_paper.format_resnet18(resnet18_table)
    lines = [line for row in tables for cell in row for line in cell.splitlines()]
    assert {"1,498,546,112", "(1.50G)", "(3.0*)", "(47.13G*)", "(~1%)"} <= {*lines}
    for line in lines:
        assert f" {line} " in out, "broken, or beside something else"
    assert out.count("*: truncated") == 2


def test_link_time_is_bytes_over_rate_and_waiting():
    link = costs.Link(up_mbps=8, down_mbps=16, delay_s=0.1)
    assert link.seconds(2**20, 2**21, rounds=3) == pytest.approx(1 + 1 + 0.6)
    with pytest.raises(_validate.UsageError, match="up_mbps"):
        costs.Link(up_mbps=0)
    with pytest.raises(_validate.UsageError, match="delay_s"):
        costs.Link(delay_s=-1)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-320])
def test_link_times_are_finite_numbers(value):
    for name in ("up_mbps", "down_mbps"):
        with pytest.raises(_validate.UsageError, match=name):
            costs.Link(**{name: value})
    if value != 1e-320:
        with pytest.raises(_validate.UsageError, match="delay_s"):
            costs.Link(delay_s=value)


# XLA's own count, a cross-check: it leaves zero padding out and counts additions and so on too.


def _xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def _taps(length, kernel, stride, low, outputs):
    """Kernel positions that meet the image and not its padding, over all outputs of one axis."""
    positions = stride * np.arange(outputs)[:, None] - low + np.arange(kernel)
    return np.sum((positions >= 0) & (positions < length))


def _macs_without_padding(jaxpr):
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            (_, h, w, _), (kh, kw, inputs, features) = (v.aval.shape for v in equation.invars)
            _, oh, ow, _ = equation.outvars[0].aval.shape
            (low_h, _), (low_w, _) = equation.params["padding"]
            stride_h, stride_w = equation.params["window_strides"]
            taps = _taps(h, kh, stride_h, low_h, oh) * _taps(w, kw, stride_w, low_w, ow)
            count += int(taps) * inputs * features
        elif equation.primitive.name == "dot_general":
            count += math.prod(equation.invars[1].aval.shape)
        for part in costs._inner_programs(equation.params):
            count += _macs_without_padding(part)
    return count


def test_xla_counts_an_unpadded_convolution_the_same():
    def f(x, kernel):
        return _conv(x, kernel, window_strides=(1, 1), padding="VALID")

    arguments = _abstract(1, 20, 17, 8), _abstract(3, 3, 8, 16)
    assert _xla_flops(f, *arguments) == 2 * costs.macs(f, *arguments)


@pytest.mark.parametrize(
    ("build", "padding_share"), [(resnet18, (0.08, 0.10)), (vgg16, (0.03, 0.04))]
)
def test_xla_agrees_on_the_whole_network_padding_aside(build, padding_share):
    """Within 1%: what XLA adds are normalisation, ReLU and pooling."""
    model = build()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    x = _abstract(1, *model.spec.image_size, 3)

    def whole(variables, x):
        x = model.pre(variables["pre"], x)
        return model.post(variables["post"], model.main(variables["main"], x))

    padded = costs.macs(whole, variables, x)
    unpadded = _macs_without_padding(jax.make_jaxpr(whole)(variables, x).jaxpr)
    assert padding_share[0] < 1 - unpadded / padded < padding_share[1]
    assert 1.0 < _xla_flops(whole, variables, x) / (2 * unpadded) < 1.01
