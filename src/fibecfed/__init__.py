"""Fine-tune language models on text that cannot leave its owners, with FibecFed (Liu et al., EMNLP 2024).

The whole method: `fibecfed.run(config)`. Its parts, on any Hugging Face model with an adapter, without a federation:

    task = fibecfed.TransformerTask(peft_model)
    params = task.params()                                        # its trainable tensors, under their own names
    fibecfed.per_example_fisher_trace(task, params, batches)      # difficulty of each example
    fibecfed.layer_sensitivity(task, params, batches)             # importance of each layer
    fibecfed.choose_layers(importance, 3)                         # which layers
    fibecfed.neuron_masks(options, params, neurons, key)          # which neurons
    fibecfed.PACES["linear"](0.5, 0.6)                            # how much data

A method of your own follows `fibecfed.core.method`; `fibecfed.testing.check_method` puts it under the laws that all methods keep to.

A batch is what a tokenizer returns plus `labels`. Importing the package is cheap: names are loaded when they are first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import run as run
    from .config import Config as Config
    from .config import load as load_config
    from .core.errors import RunFailed as RunFailed
    from .core.errors import UserError as UserError
    from .core.method import ClientView as ClientView
    from .core.method import Defaults as Defaults
    from .core.method import Load as Load
    from .core.method import Phase as Phase
    from .core.method import Received as Received
    from .core.method import Update as Update
    from .core.method import Work as Work
    from .core.rng import Key as Key
    from .core.wire import Tensors as Tensors
    from .core.wire import message as message
    from .local.batches import plain_epochs as plain_epochs
    from .local.curriculum import PACES as PACES
    from .local.fisher import fisher_pass as fisher_pass
    from .local.fisher import per_example_fisher_trace as per_example_fisher_trace
    from .local.optimise import fit as fit
    from .local.options import CurriculumOptions as CurriculumOptions
    from .local.options import LayerOptions as LayerOptions
    from .local.options import NeuronOptions as NeuronOptions
    from .local.options import TrainingOptions as TrainingOptions
    from .local.selection import choose_layers as choose_layers
    from .local.selection import neuron_masks as neuron_masks
    from .local.sensitivity import layer_sensitivity as layer_sensitivity
    from .methods.aggregation import mean_by_size as mean_by_size
    from .methods.catalogue import MethodContext as MethodContext
    from .methods.catalogue import Row as Row
    from .methods.fedavg import FedAvg as FedAvg
    from .methods.options import MethodOptions as MethodOptions
    from .models.base_models import model_folder as model_folder
    from .models.own_adapters import load_adapter as load_adapter
    from .models.transformer_task import TransformerTask as TransformerTask
    from .session import resume as resume
    from .trained.plain import load_model as load_model
    from .trained.run import FinishedRun as FinishedRun

logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever uses the package says where its log goes

_HOME = {
    "FedAvg": ".methods.fedavg",
    "fit": ".local.optimise",
    "plain_epochs": ".local.batches",
    "mean_by_size": ".methods.aggregation",
    "TrainingOptions": ".local.options",
    "ClientView": ".core.method",
    "Defaults": ".core.method",
    "Load": ".core.method",
    "Phase": ".core.method",
    "Received": ".core.method",
    "Update": ".core.method",
    "Work": ".core.method",
    "message": ".core.wire",
    "Tensors": ".core.wire",
    "MethodOptions": ".methods.options",
    "Row": ".methods.catalogue",
    "MethodContext": ".methods.catalogue",
    "run": ".api",
    "Config": ".config",
    "RunFailed": ".core.errors",
    "UserError": ".core.errors",
    "Key": ".core.rng",
    "PACES": ".local.curriculum",
    "fisher_pass": ".local.fisher",
    "per_example_fisher_trace": ".local.fisher",
    "CurriculumOptions": ".local.options",
    "LayerOptions": ".local.options",
    "NeuronOptions": ".local.options",
    "choose_layers": ".local.selection",
    "neuron_masks": ".local.selection",
    "layer_sensitivity": ".local.sensitivity",
    "model_folder": ".models.base_models",
    "load_adapter": ".models.own_adapters",
    "load_model": ".trained.plain",
    "FinishedRun": ".trained.run",
    "TransformerTask": ".models.transformer_task",
    "resume": ".session",
}

__all__ = [
    "PACES",
    "ClientView",
    "Config",
    "CurriculumOptions",
    "Defaults",
    "FedAvg",
    "FinishedRun",
    "Key",
    "LayerOptions",
    "Load",
    "MethodContext",
    "MethodOptions",
    "NeuronOptions",
    "Phase",
    "Received",
    "Row",
    "RunFailed",
    "Tensors",
    "TrainingOptions",
    "TransformerTask",
    "Update",
    "UserError",
    "Work",
    "choose_layers",
    "fisher_pass",
    "fit",
    "layer_sensitivity",
    "load_adapter",
    "load_config",
    "load_model",
    "mean_by_size",
    "message",
    "model_folder",
    "neuron_masks",
    "per_example_fisher_trace",
    "plain_epochs",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        return import_module(".config", __name__).load
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
