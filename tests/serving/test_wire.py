import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf.message import DecodeError

from facemix_jax._validate import UsageError
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb

SHAPES = [(3, 5), (2, 6, 5, 4), (1, 1), (4, 3, 2)]
LARGEST = np.finfo(np.float32).max


def rows(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def there_and_back(x, dtype):
    message = pb.Tensor.FromString(wire.encode(x, dtype).SerializeToString())
    return wire.decode(message, row_shape=x.shape[1:], max_rows=len(x))


def tensor(encoding="float32", **changes):
    """A good message with some fields exchanged."""
    message = wire.encode(rows((2, 3, 4)), encoding)
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def refusal(message, row_shape=(3, 4), max_rows=2):
    with pytest.raises(wire.WireError) as caught:
        wire.decode(message, row_shape=row_shape, max_rows=max_rows)
    return str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_exact_to_the_bit(shape):
    x = rows(shape)
    x.flat[0] = -0.0
    x.flat[-1] = LARGEST if x.size > 1 else 1e-45
    back = there_and_back(x, "float32")
    assert back.dtype == np.float32
    assert back.tobytes() == x.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_off_by_at_most_2_to_minus_8_of_the_value(shape):
    x = rows(shape)
    back = there_and_back(x, "bfloat16")
    assert back.dtype == np.float32
    assert (np.abs(back - x) <= 2**-8 * np.abs(x)).all()
    np.testing.assert_array_equal(there_and_back(back, "bfloat16"), back)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_off_by_at_most_half_a_scale_of_its_row_and_channel(shape):
    x = rows(shape)
    x[0] *= 1000  # other rows are not coarser for it
    axes = tuple(range(1, x.ndim - 1)) or (1,)
    bound = np.abs(x).max(axis=axes, keepdims=True) / 254
    back = there_and_back(x, "int8")
    assert back.dtype == np.float32
    assert (np.abs(back - x) <= bound * 1.0001).all()
    if x.size > 2:
        assert np.abs(back - x).max() > 0.2 * bound.max()


@pytest.mark.parametrize("dtype", wire.DTYPES)
def test_zeros_and_extremes_come_back(dtype):
    np.testing.assert_array_equal(there_and_back(np.zeros((2, 3), np.float32), dtype), 0)
    large = np.array([[3e38, -3e38, 1.0]], np.float32)
    np.testing.assert_allclose(there_and_back(large, dtype), large, rtol=2**-8, atol=3e38 / 254)
    small = np.array([[1e-44, -3e-45, 0]], np.float32)
    np.testing.assert_allclose(there_and_back(small, dtype), small, atol=1e-43)


def test_the_largest_number_survives_int8_and_is_refused_by_bfloat16():
    x = np.array([[LARGEST, -LARGEST]], np.float32)
    np.testing.assert_allclose(there_and_back(x, "int8"), x, rtol=1e-6)
    with pytest.raises(wire.WireError, match="rounded to bfloat16 hold 2"):
        wire.encode(x, "bfloat16")


def test_bytes_are_a_half_and_about_a_quarter():
    x = rows((8, 28, 23, 16))
    full, half, quarter = (wire.encode(x, dtype).ByteSize() for dtype in wire.DTYPES)
    assert 1 <= full / x.nbytes < 1.001
    assert 0.5 <= half / x.nbytes < 0.501
    assert 0.25 <= quarter / x.nbytes < 0.253  # a scale for each of 644 positions


def test_the_layout_is_little_endian_c_order():
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert wire.encode(x).data == struct.pack("<6f", *range(6))
    assert wire.encode(x, "bfloat16").data == b"".join(struct.pack("<f", v)[2:] for v in range(6))
    coded = wire.encode(x, "int8")
    np.testing.assert_array_equal(coded.scales, np.float32([3, 4, 5]) / np.float32(127))
    assert struct.unpack("6b", coded.data)[3:] == (127, 127, 127)


def test_other_memory_orders_and_jax_arrays_are_taken():
    x = rows((3, 4, 5))
    for other in (np.asfortranarray(x), x[::-1][::-1], jnp.asarray(x)):
        assert wire.encode(other) == wire.encode(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", wire.DTYPES)
def test_numbers_that_are_none_are_not_sent(bad, dtype):
    x = rows((2, 3))
    x[1, 1] = bad
    with pytest.raises(wire.WireError, match="1 NaN or infinite numbers of 6"):
        wire.encode(x, dtype)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((0, 3), np.float32)]
)
def test_rows_of_another_kind_are_not_sent(x):
    with pytest.raises(wire.WireError, match="must be float32"):
        wire.encode(x)


def test_an_unknown_dtype_is_not_sent():
    with pytest.raises(UsageError, match="'bfloat16'"):
        wire.encode(rows((1, 1)), "bfloat")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_not_taken(bad):
    x = rows((2, 3, 4))
    x[0, 1, 2] = bad
    assert "NaN" in refusal(tensor(data=x.tobytes()))
    upper_halves = x.view("<u2")[..., 1::2]  # NaN and infinities keep their meaning
    assert "NaN" in refusal(tensor("bfloat16", data=upper_halves.tobytes()))
    assert "scales" in refusal(tensor("int8", scales=[bad] + [1.0] * 7))


def test_a_product_of_finite_numbers_may_still_overflow():
    message = tensor("int8", data=b"\x7f" * 24, scales=[float(LARGEST)] * 8)
    assert "values hold 24" in refusal(message)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float64"}, ("float64", "bfloat16")),
        ({"dtype": ""}, ("''", "float32")),
        ({"shape": []}, ("0 axes", "[3, 4]")),
        ({"shape": [2, 12]}, ("2 axes", "[3, 4]")),
        ({"shape": [2, 4, 3]}, ("[2, 4, 3]", "[3, 4]")),
        ({"shape": [0, 3, 4]}, ("0 rows", "1 to 2")),
        ({"shape": [3, 3, 4]}, ("3 rows", "1 to 2", "Split")),
        ({"shape": [1, 3, 4]}, ("96 bytes", "48")),
        ({"shape": [1] * 100_000}, ("100000 axes",)),
        ({"data": b""}, ("0 bytes", "96")),
        ({"data": bytes(95)}, ("95 bytes", "96")),
        ({"data": bytes(97)}, ("97 bytes", "96")),
        ({"scales": [1.0]}, ("1 scales", "takes 0")),
    ],
)
def test_what_does_not_fit_is_refused_with_value_and_limit(changes, words):
    message = refusal(tensor(**changes))
    assert all(word in message for word in words), message
    assert len(message) < 400


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9, 24])
def test_int8_needs_a_scale_for_each_row_and_channel(count):
    assert f"{count} scales" in refusal(tensor("int8", scales=[1.0] * count))


def test_what_a_peer_wrote_is_escaped_and_cut_short():
    message = refusal(tensor(dtype="\x1b[31m\n" + "x" * 10_000))
    assert message.isprintable()
    assert len(message) < 300


def test_a_claimed_shape_takes_no_memory():
    message = tensor(shape=[2**32 - 1, 2**16, 2**16])
    tracemalloc.start()
    try:
        text = refusal(message, row_shape=(2**16, 2**16), max_rows=2**32 - 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(4 * (2**32 - 1) * 2**32) in text
    assert peak < 200_000


def plain_decode(message):
    """Values of a message by the words of wire.proto, one at a time."""
    rows_, *rest = message.shape
    channels = rest[-1] if len(rest) > 1 else 1
    if message.dtype == "float32":
        return [v for (v,) in struct.iter_unpack("<f", message.data)]
    if message.dtype == "bfloat16":
        pairs = (message.data[i : i + 2] for i in range(0, len(message.data), 2))
        return [struct.unpack("<f", b"\0\0" + pair)[0] for pair in pairs]
    per_row = len(message.data) // rows_
    return [
        float(
            np.float32(message.scales[i // per_row * channels + i % channels]) * np.float32(value)
        )
        for i, (value,) in enumerate(struct.iter_unpack("b", message.data))
    ]


def mutate(raw, rng):
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(raw))) if raw else 0
        kind = rng.integers(5)
        if kind == 0 and raw:
            raw[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[place:place] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 2:
            del raw[place : place + int(rng.integers(1, 5))]
        elif kind == 3:
            del raw[place:]
        else:
            raw += raw[place : place + 40]
    return bytes(raw)


def rewrite(raw, rng):
    """Another message of the same kind: fields with other values, which all parsers can read."""
    message = pb.RunRequest.FromString(raw)
    changed = message.activations
    for _ in range(rng.integers(1, 3)):
        kind = rng.integers(5)
        if kind == 0 and changed.shape:
            place = int(rng.integers(len(changed.shape)))
            changed.shape[place] = int(rng.choice([0, 1, 2, 3, 5, 2**31, 2**32 - 1]))
        elif kind == 1:
            changed.dtype = str(rng.choice([*wire.DTYPES, "float16", "INT8", ""]))
        elif kind == 2:
            changed.data = mutate(changed.data, rng)
        elif kind == 3:
            specials = [np.nan, np.inf, -1.0, 0.0, 1e38, 3e38]
            count = int(rng.integers(9)) if rng.random() < 0.3 else len(changed.scales)
            scales = [float(rng.choice(specials)) for _ in range(count)]
            changed.ClearField("scales")
            changed.scales.extend(scales)
        else:
            changed.data = rng.bytes(len(changed.data))
    return message.SerializeToString()


def test_2000_mutated_messages_are_refused_or_mean_what_they_say():
    rng = np.random.default_rng(7)
    originals = [
        pb.RunRequest(
            version=1, model_id="m", request_id=bytes(16), activations=wire.encode(x, dtype)
        ).SerializeToString()
        for x in (rows((2, 2, 3)), rows((2, 5)))
        for dtype in wire.DTYPES
    ]
    outcomes = {"unreadable": 0, "refused": 0, "decoded": 0}
    for number in range(2000):
        change = mutate if number % 3 == 0 else rewrite
        raw = change(originals[number % len(originals)], rng)
        row_shape = ((2, 3), (5,))[number % len(originals) // 3]
        try:
            message = pb.RunRequest.FromString(raw).activations
            decoded = wire.decode(message, row_shape=row_shape, max_rows=2)
        except DecodeError:
            outcomes["unreadable"] += 1
        except wire.WireError:
            outcomes["refused"] += 1
        else:
            outcomes["decoded"] += 1
            assert decoded.shape == (message.shape[0], *row_shape)
            assert decoded.dtype == np.float32
            assert np.isfinite(decoded).all()
            np.testing.assert_array_equal(
                decoded.ravel(), np.array(plain_decode(message), np.float32)
            )
    assert min(outcomes.values()) > 100, outcomes


def answered(**changes):
    request = pb.RunRequest(
        version=1, model_id="ab", request_id=b"r" * 16, activations=wire.encode(rows((2, 3)))
    )
    response = pb.RunResponse(
        version=1, model_id="ab", request_id=b"r" * 16, responses=wire.encode(rows((2, 7)))
    )
    for name, value in changes.items():
        setattr(response, name, value)
    return request, response


def test_the_answer_to_this_request_is_taken():
    wire.check_response(*answered())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"version": 2}, "protocol version is 2"),
        ({"model_id": "cd"}, "model is 'cd'"),
        ({"request_id": b"s" * 16}, "request identifier"),
        ({"request_id": b""}, "request identifier"),
        ({"request_id": b"r" * 17}, "request identifier"),
    ],
)
def test_the_answer_to_another_request_is_not(changes, name):
    with pytest.raises(wire.WireError, match=name):
        wire.check_response(*answered(**changes))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_answer_with_another_number_of_rows_is_not_taken(count):
    request, response = answered()
    response.responses.CopyFrom(wire.encode(rows((count, 7))) if count else pb.Tensor())
    with pytest.raises(wire.WireError, match="number of rows"):
        wire.check_response(request, response)


SPEC = SimpleNamespace(name="net", cut=1, activation_shape=(2, 2, 3), response_shape=(4,))


def main_segment():
    return {
        "params": {"a": {"kernel": rows((2, 3)), "bias": rows((3,), 1)}, "b": {"bias": rows((3,))}},
        "batch_stats": {"a": {"mean": rows((3,), 2)}},
    }


def test_a_models_name_does_not_depend_on_how_it_is_held():
    name = wire.model_id(main_segment(), SPEC)
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
    backwards = {k: dict(reversed(v.items())) for k, v in reversed(main_segment().items())}
    assert wire.model_id(backwards, SPEC) == name
    segment = main_segment()
    segment["params"]["a"]["kernel"] = jnp.asarray(segment["params"]["a"]["kernel"])
    assert wire.model_id(segment, SPEC) == name
    assert wire.model_id({**segment, "clean_stats": {"a": rows((3,))}}, SPEC) == name


def test_a_models_name_changes_with_every_part_of_it():
    names = [wire.model_id(main_segment(), SPEC)]
    one_bit = main_segment()
    one_bit["params"]["a"]["kernel"].view(np.uint32)[1, 2] ^= 1
    names.append(wire.model_id(one_bit, SPEC))
    reshaped = main_segment()
    reshaped["params"]["a"]["kernel"] = reshaped["params"]["a"]["kernel"].reshape(3, 2)
    names.append(wire.model_id(reshaped, SPEC))
    moved = main_segment()
    moved["params"]["c"] = moved["params"].pop("b")
    names.append(wire.model_id(moved, SPEC))
    statistics = main_segment()
    statistics["batch_stats"]["a"]["mean"] += 1
    names.append(wire.model_id(statistics, SPEC))
    for change in ({"name": "x"}, {"cut": 2}, {"activation_shape": (1,)}, {"response_shape": ()}):
        names.append(wire.model_id(main_segment(), SimpleNamespace(**{**vars(SPEC), **change})))
    assert len(set(names)) == len(names)


def test_the_generated_files_match_the_description(tmp_path):
    pytest.importorskip("grpc_tools", reason="comes with the extra 'dev'")
    root = Path(wire.__file__).parents[2]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(root)]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    proto = "facemix_jax/serving/wire.proto"
    subprocess.run([*command, *outputs, str(root / proto)], check=True)

    def described(folder):
        text = (folder / proto).with_name("wire_pb2.py").read_text()
        return [line for line in text.splitlines() if "AddSerializedFile" in line]

    def stub(folder):
        return (folder / proto).with_name("wire_pb2.pyi").read_text()

    assert described(root) == described(tmp_path) != []
    assert stub(root) == stub(tmp_path)


def test_method_names_are_those_of_the_description():
    service = pb.DESCRIPTOR.services_by_name["Cloud"]
    assert service.full_name == wire.SERVICE
    assert [f"/{service.full_name}/{m.name}" for m in service.methods] == [wire.RUN, wire.DESCRIBE]
