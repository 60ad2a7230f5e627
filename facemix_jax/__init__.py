"""Mixed split inference in JAX: train, run and attack split networks (FaceMix).

Mixing is not a cipher: see ``facemix_jax.attacks``.
"""

from facemix_jax import costs, linearity, metrics, mixing
from facemix_jax._validate import DataError, FacemixError, UsageError
from facemix_jax.attacks import Figure, View, separate
from facemix_jax.data import DataConfig, Source, load_source
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.evaluation import Leakage, Utility, evaluate_leakage, evaluate_utility
from facemix_jax.fitting import fit
from facemix_jax.inference import infer, trace
from facemix_jax.mixing import MixKey, mix, sample_mix_key, unmix
from facemix_jax.models import ModelConfig, SplitModel, from_torch, resnet18, vgg16
from facemix_jax.runs import Run, RunConfig
from facemix_jax.training import TrainConfig, TrainState, make_train_step

__all__ = [
    "DataConfig",
    "DataError",
    "Defense",
    "DefenseConfig",
    "FacemixError",
    "Figure",
    "Leakage",
    "MixKey",
    "ModelConfig",
    "Run",
    "RunConfig",
    "Source",
    "SplitModel",
    "TrainConfig",
    "TrainState",
    "UsageError",
    "Utility",
    "View",
    "costs",
    "evaluate_leakage",
    "evaluate_utility",
    "fit",
    "from_torch",
    "infer",
    "linearity",
    "load_source",
    "make_train_step",
    "metrics",
    "mix",
    "mixing",
    "resnet18",
    "sample_mix_key",
    "separate",
    "trace",
    "unmix",
    "vgg16",
]
