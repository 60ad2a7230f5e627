"""Wrong answers of the cloud, and what the edge notices of them."""

import os
import re

import numpy as np
import pytest
from edge_support import client_of, honest, pictures, with_response

from facemix_jax._validate import FacemixError
from facemix_jax.serving import segments, wire
from facemix_jax.serving.wire import WireError


def _more_rows(response):
    response.responses.CopyFrom(wire.encode(np.ones((5, 32), np.float32)))


def _narrow(response):
    response.responses.CopyFrom(wire.encode(np.ones((4, 7), np.float32)))


def _nan(response):
    rows = np.frombuffer(response.responses.data, np.float32).copy()
    rows[3] = np.nan
    response.responses.data = rows.tobytes()


def _short(response):
    response.responses.data = response.responses.data[:-4]


def _other_request(response):
    response.request_id = os.urandom(16)


def _other_model(response):
    response.model_id = "0" * 16


def _other_version(response):
    response.version = 99


def _unknown_type(response):
    response.responses.dtype = "complex64"


class TestWrongAnswers:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (_more_rows, "number of rows"),
            (_narrow, r"rows of \[32\]"),
            (_nan, "1 NaN or infinite"),
            (_short, "bytes"),
            (_other_request, "request identifier"),
            (_other_model, "model"),
            (_other_version, "version"),
            (_unknown_type, "complex64"),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_are_noticed_and_not_decoded(self, trained, root, fake, monkeypatch, change, words):
        monkeypatch.setattr(segments, "unmix", None)  # would fail if it were called
        cloud = fake(with_response(change)(honest(*trained[1:])))
        with (
            client_of(trained, root, cloud.address) as client,
            pytest.raises(WireError, match=words) as told,
        ):
            client.predict(pictures(4))
        assert len(cloud.requests) == 1
        assert f"The cloud {cloud.address} answers wrongly: " in str(told.value)
        assert not re.search(r"\bSend\b|Split|fresh key", str(told.value))  # is for the cloud

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            (100, "no message of this protocol"),
            (2**20, "RESOURCE_EXHAUSTED.*sent more than an answer holds"),
        ],
        ids=["no message", "too large"],
    )
    def test_bytes_that_are_no_answer(self, trained, root, fake, size, words):
        cloud = fake(lambda request: b"\xff" * size)
        with (
            client_of(trained, root, cloud.address, give_up_s=0.2) as client,
            pytest.raises(FacemixError, match=words) as told,
        ):
            client.predict(pictures(4))
        assert cloud.address in str(told.value)
        assert "request_rows" not in str(told.value)
        assert len(cloud.requests) == 1

    def test_plausible_numbers_are_noticed_by_spot_checks_only(self, trained, root, fake):
        def tamper(response):
            rows = np.frombuffer(response.responses.data, np.float32)
            response.responses.data = (1.1 * rows).astype(np.float32).tobytes()

        lying, true = fake(with_response(tamper)(honest(*trained[1:]))), fake()
        with client_of(trained, root, lying.address) as client:
            client.predict(pictures(8))  # the limit that the module states
        for dtype in wire.DTYPES:
            with client_of(trained, root, true.address, spot_checks=6, wire=dtype) as client:
                client.predict(pictures(8))
        with (
            client_of(trained, root, lying.address, spot_checks=1) as client,
            pytest.raises(WireError, match=f"{lying.address} answers wrongly: 1 of 1 spot-checked"),
        ):
            client.predict(pictures(8))
