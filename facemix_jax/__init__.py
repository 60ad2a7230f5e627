"""Mixed split inference in JAX: train, run and attack split networks (FaceMix).

Mixing is not a cipher: see ``facemix_jax.attacks``.

Names are imported when they are first used, so that the cloud's process, which needs one
subpackage, never loads the code that could unmix.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

__version__ = "0.1.0"

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

_NAMES_OF = {
    "_validate": ("DataError", "FacemixError", "UsageError"),
    "attacks": ("Figure", "View", "separate"),
    "data": ("DataConfig", "Source", "load_source"),
    "defenses": ("Defense", "DefenseConfig"),
    "evaluation": ("Leakage", "Utility", "evaluate_leakage", "evaluate_utility"),
    "fitting": ("fit",),
    "inference": ("infer", "trace"),
    "mixing": ("MixKey", "mix", "sample_mix_key", "unmix"),
    "models": ("ModelConfig", "SplitModel", "from_torch", "resnet18", "vgg16"),
    "runs": ("Run", "RunConfig"),
    "training": ("TrainConfig", "TrainState", "make_train_step"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
