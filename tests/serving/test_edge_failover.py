"""Several clouds of which one refuses, or takes less than a group."""

import grpc
import pytest
from edge_support import client_of, honest, pictures

from facemix_jax.serving import clouds, edge
from facemix_jax.serving.refusals import CloudError, LimitError, explained

REFUSALS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
)


@pytest.mark.parametrize("status", REFUSALS, ids=lambda status: status.name)
def test_one_cloud_that_refuses_fails_no_request(trained, root, fake, status):
    sick, well = fake(lambda request: status), fake()
    said = []
    with client_of(trained, root, sick.address, well.address, say=said.append) as client:
        assert client.infer(pictures(16)).requests == 2
    assert len(well.requests) == 2
    assert said == [f"{sick.address} refuses ({status.name}: On purpose); trying other clouds."]


def test_a_call_ends_when_every_cloud_has_refused(trained, root, fake):
    refusing = [fake(lambda request, status=status: status) for status in REFUSALS[:3]]
    with (
        client_of(trained, root, *(c.address for c in refusing), give_up_s=60.0) as client,
        pytest.raises(edge.CloudError, match="On purpose"),
    ):
        client.infer(pictures(4))
    assert [len(cloud.requests) for cloud in refusing] == [1, 1, 1]


def test_clouds_that_refuse_and_those_of_another_model_add_up(trained, root, fake, monkeypatch):
    monkeypatch.setattr(clouds, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(clouds, "_REFUSED_S", 0.1)
    other = fake(lambda request: grpc.StatusCode.FAILED_PRECONDITION)
    sick = fake(lambda request: grpc.StatusCode.INTERNAL)
    with (
        client_of(trained, root, other.address, sick.address, give_up_s=60.0) as client,
        pytest.raises(edge.CloudError, match="On purpose"),
    ):
        client.infer(pictures(4))
    assert len(other.requests) >= 6  # it may yet read the right checkpoint


def test_a_cloud_that_answers_too_much_is_no_limit_of_the_request(trained, root, fake):
    huge, well = fake(lambda request: bytes(2**20)), fake()
    with client_of(trained, root, huge.address, well.address) as client:
        assert client.infer(pictures(8)).requests == 2
    assert huge.described == 1


def test_a_cloud_that_takes_less_than_a_group_gets_no_requests(trained, root, fake):
    small, well = fake(), fake()
    small.max_rows = 3
    with client_of(trained, root, small.address, well.address) as client:
        assert client.infer(pictures(12)).logits.shape == (12, 3, 2)
    assert not small.requests


def test_a_cloud_that_takes_less_than_a_group_from_now_on_is_left_out(trained, root, fake):
    answer = honest(*trained[1:])
    clouds = fake(), fake()
    with client_of(trained, root, *(cloud.address for cloud in clouds)) as client:
        client.infer(pictures(8))
        clouds[0].max_rows = 3
        clouds[0].answer = lambda request: (
            answer(request)
            if request.activations.shape[0] <= 3
            else grpc.StatusCode.INVALID_ARGUMENT
        )
        assert client.infer(pictures(8)).logits.shape == (8, 3, 2)
        clouds[0].requests.clear()
        client.infer(pictures(8))
    assert not clouds[0].requests


@pytest.mark.parametrize(
    ("code", "details", "kind", "words"),
    [
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 8)", LimitError,
         "Send fewer rows"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 8)", CloudError,
         "more than an answer holds"),
        ("INVALID_ARGUMENT", "what", LimitError, "Compare the releases"),
        ("UNAVAILABLE", "Socket closed", CloudError, "--certificate, --private-key"),
        ("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED: self signed certificate", CloudError,
         "authority that signed it"),
        ("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED: certificate has expired", CloudError,
         "must renew its certificate, unless this machine's clock"),
        ("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", CloudError,
         "must renew its certificate, unless this machine's clock"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(code, details, kind, words):
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], None, None, details)
    told = explained("a:1", error, 3.0)
    assert type(told) is kind
    assert str(told).startswith(f"The cloud a:1 answers {code}: {details}. ")
    assert words in str(told)
