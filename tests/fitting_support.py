"""A short training of a tiny network, for tests of work directories."""

from facemix_jax import fitting
from facemix_jax.models import ModelConfig
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig


def config_of(**train):
    train = {"num_epochs": 2, "batch_size": 32, "log_every": 2, "checkpoint_every": 3, **train}
    return RunConfig(model=ModelConfig(width=4), train=TrainConfig(**train))


def fit_in(workdir, source, config=None, **options):
    return fitting.fit(
        config or config_of(), workdir, source=source, show_progress=False, **options
    )
