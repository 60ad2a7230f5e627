"""The exported edge: the same results in other runtimes, and nothing in the files but the edge."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_support import _drawn, _network, run_config, save_checkpoint
from edge_support import FakeCloud, Loop
from tiny_source import TinySource

from facemix_jax import export, keys, mixing
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.defenses import DefenseConfig
from facemix_jax.serving import loading, segments, wire
from facemix_jax.serving import wire_pb2 as pb

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("flatbuffers")
onnx_graph = pytest.importorskip("facemix_jax.onnx_graph")

ROOT = Path(__file__).parents[2]
FUNCTIONS = ("protect", "finish")


def edge_of(seed=0, **model):
    """What runs on the edge of a drawn network, without a work directory."""
    network, like = _network(run_config(**model))
    variables = _drawn(like, seed).variables
    pre, post = segments._jitted_edge(network)
    return segments.Segments(
        spec=network.spec,
        model_id="0" * 16,
        step=1,
        attribute_names=("a", "b", "c"),
        group_size=4,
        protected=True,
        wire="float32",
        pre=functools.partial(pre, variables["pre"]),
        post=functools.partial(post, variables["post"]),
        main=None,
    )


def arguments(function, groups, seed=0):
    """Pictures or responses, and orthogonal matrices."""
    rng = np.random.default_rng(seed)
    (name, like), _ = function.arguments.items()
    shape = (groups, *like.shape[1:])
    pictures = rng.integers(0, 256, shape).astype(np.uint8)
    first = pictures if name == "images" else rng.normal(size=shape).astype(np.float32)
    matrix = np.linalg.qr(rng.normal(size=(groups, 4, 4)))[0].astype(np.float32)
    return first, matrix


def with_onnx(content, function, values):
    session = onnxruntime.InferenceSession(content)
    return session.run([function.output], dict(zip(function.arguments, values, strict=True)))[0]


def with_jax(content, values):
    return np.asarray(jax.export.deserialize(bytearray(content)).call(*values))


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its network and variables, and its export."""
    folder = tmp_path_factory.mktemp("export")
    network, variables = save_checkpoint(folder / "run")
    manifest = export.write(folder / "run", folder / "phone")
    return folder, network, variables, manifest


@pytest.mark.parametrize(
    "model",
    [
        {"cut": 0},
        {"cut": 1},
        {"cut": 2, "centre": True},
        {"cut": 3, "norm": "none"},
        {"cut": 2, "norm": "scale", "activation": "prelu"},
        pytest.param({"cut": 1, "activation": "shifted"}, marks=pytest.mark.slow),
        {"network": "vgg16", "cut": 3},
        pytest.param({"cut": 9}, marks=pytest.mark.slow),
        pytest.param({"network": "vgg16", "cut": 18}, marks=pytest.mark.slow),
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_other_runtimes_agree_with_jax_for_any_number_of_groups(model):
    for function in export.functions(edge_of(**model)):
        contents = export.onnx(function), export.stablehlo(function)
        for groups in (1, 3):
            values = arguments(function, groups)
            expected = np.asarray(jax.jit(function.call)(*values))
            assert expected.shape[:2] == (groups, 4)
            close(with_onnx(contents[0], function, values), expected)
            close(with_jax(contents[1], values), expected)


def test_agreement_notices_other_weights_and_another_matrix():
    protect, other = (export.functions(edge_of(seed))[0] for seed in (0, 1))
    values = arguments(protect, 2)
    found = with_onnx(export.onnx(protect), protect, values)
    for wrong in (other.call(*values), protect.call(values[0], values[1].swapaxes(1, 2))):
        with pytest.raises(AssertionError):
            close(found, np.asarray(wrong), tolerance=1e-2)


def test_finish_undoes_what_protect_mixes():
    edge = edge_of()
    protect, finish = export.functions(edge)
    images, matrix = arguments(protect, 2)
    mixtures = with_onnx(export.onnx(protect), protect, (images, matrix))
    features = mixtures.reshape(2, 4, -1)[..., :32]
    logits = with_onnx(export.onnx(finish), finish, (features, matrix))
    for group, expected in zip(images, logits, strict=True):
        close(expected, np.asarray(edge.post(edge.pre(group).reshape(4, -1)[:, :32])), 1e-3)


def test_the_manifest_describes_the_files(place):
    folder, network, _, manifest = place
    phone = folder / "phone"
    assert json.loads((phone / "manifest.json").read_text()) == manifest
    assert {p.name for p in phone.iterdir()} == {"manifest.json", *manifest["files"]}
    for name, facts in manifest["files"].items():
        content = (phone / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == facts["sha256"]
        assert len(content) == facts["bytes"]
    assert (phone / "wire.proto").read_text() == (
        ROOT / "facemix_jax/serving/wire.proto"
    ).read_text()
    assert manifest["model_id"] == loading.load(folder / "run").model_id
    assert manifest["wire_version"] == wire.VERSION
    assert manifest["wire"] == "float32"
    spec = network.spec
    protect, finish = (manifest["functions"][name] for name in FUNCTIONS)
    assert [i["shape"] for i in protect["inputs"]] == [["G", 4, *spec.image_size, 3], ["G", 4, 4]]
    assert [i["dtype"] for i in protect["inputs"]] == ["uint8", "float32"]
    assert protect["output"]["shape"] == ["G", 4, *spec.activation_shape]
    assert finish["inputs"][0]["shape"] == ["G", 4, *spec.response_shape]
    assert finish["output"]["shape"] == ["G", 4, *spec.logits_shape]
    for name in FUNCTIONS:
        session = onnxruntime.InferenceSession(phone / f"{name}.onnx")
        declared = manifest["functions"][name]
        for found, said in zip(
            [*session.get_inputs(), *session.get_outputs()],
            [*declared["inputs"], declared["output"]],
            strict=True,
        ):
            assert (found.name, found.shape) == (said["name"], said["shape"])


def test_stablehlo_runs_in_a_fresh_process_without_this_library(place):
    folder = place[0]
    images = TinySource().images(np.arange(8)).reshape(2, 4, 40, 36, 3)
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 4, 4)))[0].astype(np.float32)
    np.savez(folder / "values.npz", images=images, matrix=matrix)
    program = (
        "import sys, jax, numpy as np, jax.export\n"
        "values = np.load('values.npz')\n"
        "called = jax.export.deserialize(bytearray(open('phone/protect.stablehlo', 'rb').read()))\n"
        "np.save('found.npy', called.call(values['images'], values['matrix']))\n"
        "assert called.platforms == ('cpu', 'cuda', 'tpu')\n"
        "assert 'facemix_jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder)
    edge = segments.load(folder / "run")
    expected = [
        np.asarray(jax.jit(mixing.mix_group)(one, edge.pre(group)))
        for one, group in zip(matrix, images, strict=True)
    ]
    close(np.load(folder / "found.npy"), np.stack(expected))


def test_the_documented_phone_runs_as_written_without_jax(place):
    """The cloud here is linear, so that the answer is known whatever matrix the phone draws."""
    folder, *_ = place
    page = (ROOT / "docs" / "deploying.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    faces = TinySource().images(np.arange(8)).reshape(2, 4, 40, 36, 3)
    np.save(folder / "faces.npy", faces)

    def linear(request):
        rows = wire.decode(request.activations, row_shape=(10, 9, 4), max_rows=8)
        return pb.RunResponse(
            version=request.version,
            model_id=request.model_id,
            request_id=request.request_id,
            responses=wire.encode(np.ascontiguousarray(rows.reshape(8, -1)[:, :32])),
        )

    with Loop() as loop:
        cloud = FakeCloud(loop, linear)
        program = (
            f"{example.replace('localhost:50051', cloud.address)}\n"
            "import sys\n"
            "assert not {'jax', 'jaxlib', 'flax'} & set(sys.modules)\n"
            "np.savez('phone.npz', logits=logits, matrix=matrix, order=order)\n"
        )
        assert cloud.address in program
        for _ in range(2):
            subprocess.run([sys.executable, "-c", program], check=True, cwd=folder)
            with np.load(folder / "phone.npz") as found:
                logits, matrix, order = found["logits"], found["matrix"], found["order"]
            close(matrix @ matrix.swapaxes(1, 2), np.stack([np.eye(4)] * 2), 1e-5)
            assert sorted(order) == list(range(8))
            edge = segments.load(folder / "run")
            for group, got in zip(faces, logits, strict=True):
                close(got, np.asarray(edge.post(edge.pre(group).reshape(4, -1)[:, :32])), 1e-3)
        first, second = cloud.requests
        assert first.request_id != second.request_id
        assert first.activations.data != second.activations.data
        assert first.model_id == place[3]["model_id"]
        cloud.stop()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "change",
    [
        lambda first, matrix: (first[:, :3], matrix),
        lambda first, matrix: (first[..., :2], matrix),
        lambda first, matrix: (first.astype(np.float16), matrix),
        lambda first, matrix: (first, matrix[:, :3, :3]),
        lambda first, matrix: (first, matrix[:1]),
        lambda first, matrix: (first[:1], matrix),
        lambda first, matrix: (first, matrix[0]),
    ],
    ids=["group", "channels", "dtype", "matrix", "one-matrix", "one-group", "rank"],
)
def test_wrong_inputs_are_refused_by_both_runtimes(place, name, change):
    phone = place[0] / "phone"
    exported = jax.export.deserialize(bytearray((phone / f"{name}.stablehlo").read_bytes()))
    session = onnxruntime.InferenceSession(phone / f"{name}.onnx")
    function = export.functions(edge_of())[FUNCTIONS.index(name)]
    right = arguments(function, 2)
    session.run(None, dict(zip(function.arguments, right, strict=True)))
    wrong = change(*right)
    with pytest.raises((ValueError, TypeError), match=r"[Ss]hape|Rank|[Dd]type"):
        exported.call(*wrong)
    with pytest.raises(
        Exception,
        match=r"Got invalid dimensions|Invalid rank|Unexpected input|equal_numbers_of_groups",
    ):
        session.run(None, dict(zip(function.arguments, wrong, strict=True)))


def holds(content, array):
    """Whether a file holds an array's first numbers, in one of the usual layouts."""
    layouts = [array, array.T]
    if array.ndim == 4:
        layouts.append(array.transpose(3, 2, 0, 1))
    return any(np.ascontiguousarray(x).ravel()[:4].tobytes() in content for x in layouts)


def test_the_files_hold_the_edges_weights_and_not_mains(place):
    folder, _, variables, _ = place
    files = {p.name: p.read_bytes() for p in (folder / "phone").iterdir()}
    kernel = np.asarray(variables["pre"]["params"]["stem"]["conv1"]["kernel"])
    head = np.asarray(variables["post"]["params"]["head"]["fc"]["kernel"])
    for form in ("stablehlo", "onnx"):
        assert holds(files[f"protect.{form}"], kernel)
        assert holds(files[f"finish.{form}"], head)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["main"])]
    leaves = [leaf for leaf in leaves if leaf.size >= 4]
    assert len(leaves) > 50
    for name, content in files.items():
        assert not any(holds(content, leaf) for leaf in leaves), name


def test_no_key_is_read_and_no_path_written(tmp_path, place):
    root = keys.create(tmp_path / "facemix" / "key")
    matrix = np.asarray(keys.fresh_mix_key(root, bytes(16), 2, 4, shuffle=False).matrix)
    arguments = ["export", "--workdir", str(place[0] / "run"), "--out", str(tmp_path / "phone")]
    program = (
        "import sys\nfrom facemix_jax import cli\n"
        f"assert cli.main({arguments}) == 0\n"
        "assert 'facemix_jax.export' in sys.modules\n"
        "assert not {'facemix_jax.keys', 'cryptography'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    secret = (tmp_path / "facemix" / "key").read_bytes()
    files = list((tmp_path / "phone").iterdir())
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        assert secret not in content
        assert secret.hex().encode() not in content
        assert not any(holds(content, one) for one in matrix)
        assert str(tmp_path).encode() not in content
        assert str(ROOT).encode() not in content
        assert b".py" not in content


def test_a_second_export_gives_the_same_files_and_leaves_no_stale_ones(place, tmp_path):
    folder, _, _, manifest = place
    out = tmp_path / "phone"
    assert export.write(folder / "run", out) == manifest
    (out / "notes.txt").write_text("mine")
    assert export.write(folder / "run", out) == manifest
    only = export.write(folder / "run", out, "stablehlo")
    assert {p.name for p in out.iterdir()} == {"manifest.json", "notes.txt", *only["files"]}
    assert set(only["files"]) == {"protect.stablehlo", "finish.stablehlo", "wire.proto"}
    for name, facts in only["files"].items():
        assert facts == manifest["files"][name]


@pytest.mark.parametrize("failing", [0, 3, 5])
def test_an_interrupted_export_has_no_manifest(place, tmp_path, monkeypatch, failing):
    out, written = tmp_path / "phone", []
    atomic = export.write_atomically

    def write(path, content):
        if len(written) == failing:
            raise OSError(28, "No space left on device")
        written.append(path)
        atomic(path, content)

    shutil.copytree(place[0] / "phone", out)
    monkeypatch.setattr(export, "write_atomically", write)
    with pytest.raises(FacemixError, match=r"No space left.*another --out"):
        export.write(place[0] / "run", out)
    assert len(written) == failing
    assert not (out / "manifest.json").exists()
    monkeypatch.undo()
    assert export.write(place[0] / "run", out) == place[3]


def test_only_runs_that_clients_can_mix_and_send_are_exported(tmp_path):
    refused = (
        ({"defense": "none"}, "without a defence"),
        ({"family": "hadamard"}, "'hadamard'"),
        ({"defense": "blur"}, "'blur', but"),
        ({"wire": "int4"}, "'int4', which no client sends"),
    )
    for number, (options, words) in enumerate(refused):
        workdir = tmp_path / str(number)
        defense = DefenseConfig(group_size=4, **options)
        save_checkpoint(workdir, config=dataclasses.replace(run_config(), defense=defense))
        with pytest.raises(UsageError, match=words):
            export.write(workdir, tmp_path / "phone")
    assert not (tmp_path / "phone").exists()


@pytest.mark.library_promotes
def test_bfloat16_and_unknown_operations_are_exported_as_stablehlo_only():
    protect, _ = export.functions(edge_of(compute_dtype="bfloat16"))
    with pytest.raises(UsageError, match=r"bfloat16.*StableHLO"):
        export.onnx(protect)
    values = arguments(protect, 2)
    close(with_jax(export.stablehlo(protect), values), np.asarray(protect.call(*values)), 2e-2)
    (groups,) = jax.export.symbolic_shape("G")
    like = {n: jax.ShapeDtypeStruct((groups, 3), jnp.float32) for n in ("a", "b")}
    with pytest.raises(UsageError, match=r"'sin'.*add.*StableHLO"):
        onnx_graph.model(lambda a, b: jnp.sin(a) + b, like, "c", producer="test")
