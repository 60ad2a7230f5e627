"""Checkpoints that the cloud takes over, or does not."""

import asyncio
import json

import jax
import numpy as np
import pytest
from cloud_support import (
    Blocked,
    Client,
    activations,
    reference,
    request,
    run_config,
    running,
    save_checkpoint,
)

from facemix_jax import models, runs
from facemix_jax._validate import FacemixError
from facemix_jax.serving import loading


def test_a_newer_checkpoint_is_taken_over_while_requests_wait(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    model, old = save_checkpoint(workdir, step=1)

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            before = cloud.service.served
            assert await cloud.reload() is False
            blocked = Blocked(monkeypatch)
            x = activations(model, 4)
            first = request(cloud, x)
            waiting = asyncio.create_task(client.rows(first))
            await blocked.until_entered()
            compiled = before.apply._cache_size()
            _, new = await asyncio.to_thread(save_checkpoint, workdir, 2, 1)
            assert await cloud.reload() is True
            assert cloud.service.served.step == 2
            assert cloud.service.served.model_id != before.model_id
            status, words = await client.refusal(first)
            assert (status, "step 2" in words) == ("FAILED_PRECONDITION", True)
            blocked.release()
            np.testing.assert_array_equal(await waiting, reference(model, old, x))
            answer = await client.rows(request(cloud, x))
            np.testing.assert_array_equal(answer, reference(model, new, x))
            assert before.apply._cache_size() == compiled

    asyncio.run(go())


def test_a_checkpoint_that_cannot_be_used_changes_nothing(tmp_path, caplog):
    workdir = tmp_path / "run"
    model, _ = save_checkpoint(workdir, step=1)

    def poison(variables):
        return {**variables, "main": jax.tree.map(lambda leaf: leaf * np.nan, variables["main"])}

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            before = cloud.service.served

            async def refused(force=False):
                """Why, of two looks; the second says nothing, as what was refused stays so."""
                caplog.clear()
                for forced in (force, False):
                    assert await cloud.reload(force=forced) is False
                (record,) = caplog.records
                return record.fields["reason"]

            save_checkpoint(workdir, 2, change=poison)
            assert "NaN" in await refused()
            assert "NaN" in await refused(force=True)
            save_checkpoint(workdir, 3, config=run_config(cut=2))
            assert "another network" in await refused()
            (workdir / "checkpoints" / "4").mkdir()
            assert await cloud.reload() is False
            assert cloud.service.served is before
            assert len(await client.rows(request(cloud, activations(model, 1)))) == 1
            save_checkpoint(workdir, 5, 1)
            assert await cloud.reload() is True

    asyncio.run(go())


def test_a_fault_while_reloading_is_logged_and_the_next_reload_works(tmp_path, monkeypatch, caplog):
    workdir, tokens = tmp_path / "run", tmp_path / "tokens"
    save_checkpoint(workdir, step=1)
    tokens.write_text("phone old\n")
    tokens.chmod(0o600)

    def fail(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    async def go():
        async with running(workdir, tokens=tokens) as cloud:
            before = cloud.service.served
            save_checkpoint(workdir, 2, 1)
            tokens.write_text("phone new\n")
            with monkeypatch.context() as patch:
                patch.setattr(loading, "load", fail)
                assert await cloud.reload(force=True) is False
            assert "out of memory" in caplog.records[-1].fields["reason"]
            assert caplog.records[-1].exc_info
            assert cloud.service.served is before
            with pytest.raises(FacemixError, match="unknown"):
                cloud.service.tokens.client("Bearer old")
            assert await cloud.reload() is True
            assert cloud.service.served.step == 2
            # What is expected to happen carries no trace.
            tokens.write_text("phone\n")
            assert await cloud.reload(force=True) is False
            assert not caplog.records[-1].exc_info

    asyncio.run(go())


def test_clean_statistics_serve_a_run_without_a_defence(tmp_path):
    workdir = tmp_path / "run"
    save_checkpoint(workdir)
    config = json.loads((workdir / "config.json").read_text())
    assert loading.load(workdir).group_size == 4
    config["defense"]["defense"] = "none"
    (workdir / "config.json").write_text(json.dumps(config))
    assert loading.load(workdir).group_size == 8


def test_a_network_that_is_not_registered_is_told_from_one_of_another_version(
    tmp_path, monkeypatch
):
    save_checkpoint(tmp_path)
    monkeypatch.delitem(models.MODELS, "resnet18")
    with pytest.raises(
        FacemixError, match=r"'resnet18' is unknown; .*own, register it first\. Otherwise it was"
    ):
        loading.load(tmp_path)


def test_work_directories_from_before_there_were_activations_are_served(tmp_path, monkeypatch):
    current = runs.identity

    unknown = {"activation"}

    def older(config, model):
        known = current(config, model)
        return {name: value for name, value in known.items() if name not in unknown}

    monkeypatch.setattr(runs, "identity", older)
    workdir = tmp_path / "run"
    _, variables = save_checkpoint(workdir)
    config = json.loads((workdir / "config.json").read_text())
    for part, name in (("model", "activation"), ("train", "isometry")):
        del config[part][name]
    (workdir / "config.json").write_text(json.dumps(config))
    assert runs.read_config(workdir) == run_config()
    served = loading.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, served.variables, variables["main"])
    # What was there from the start is asked for all the same.
    unknown.add("cut")
    save_checkpoint(workdir, step=2)
    with pytest.raises(FacemixError, match="does not say what network it holds: 'cut'"):
        loading.load(workdir)
