"""Whether a configuration, its model and its data go together."""

from __future__ import annotations

from .adapters.options import positions_used
from .config import Config, needing_classes
from .core.errors import UserError
from .data.federated import FederatedData
from .local.options import LayerOptions
from .models.base_models import PretrainedConfig, num_layers, num_positions, sliding_window


def reject_misfits(config: Config, model_config: PretrainedConfig, data: FederatedData) -> None:
    """Reject what neither model nor data can be blamed for alone.

    Raises:
        UserError: texts longer than the model reads, or keys that ask for more than there is.
    """
    if data.label_names is None and (mistakes := needing_classes(config)):
        raise UserError(mistakes[0])
    longest = num_positions(model_config)
    got = max((int(part.lengths.max()) for part in (data.train, data.validation, data.test) if len(part)), default=0)
    taken = positions_used(getattr(config.method, "adapter", None))
    if longest and got + taken > longest:
        but = f" without the {taken} of the prompt" if taken else ""
        raise UserError(
            f"data.max_length: got a text of {got} tokens, expected at most {longest - taken}, the model's positions{but}; set it to that"
        )
    if config.evaluation.generate and longest and len(data.test):
        room = longest - int(data.test.lengths.max())
        if config.evaluation.max_new_tokens > room:
            raise UserError(
                f"evaluation.max_new_tokens: got {config.evaluation.max_new_tokens} beside test examples of {longest - room} tokens, "
                f"expected at most {room}, which the model's {longest} positions leave; lower it, or `data.max_length`"
            )
    window, prompt = sliding_window(model_config), getattr(getattr(config.method, "adapter", None), "num_tokens", 0)
    if window and prompt and got + prompt > window:
        raise UserError(
            f"data.max_length: got a text of {got} tokens, expected at most {max(0, window - prompt)}: the model's attention window is "
            f"{window} tokens, of which the method's adapter takes {prompt}; set it to that, or choose another model"
        )
    _reject_no_validation(config, data)
    scored, present = config.evaluation.clients, num_clients(config, data)
    if scored is not None and scored > present:
        raise UserError(f"evaluation.clients: got {scored}, expected at most {present}, the number of clients; lower it")
    weights, names = config.training.class_weights, data.label_names or ()
    if isinstance(weights, tuple) and len(weights) != len(names):
        raise UserError(
            f"training.class_weights: got {len(weights)}, expected {len(names)}, one for each of {', '.join(names[:10])}; fix it"
        )
    for name in ("speeds", "links"):
        factors = getattr(config.federation, name).factors
        if factors is not None and len(factors) != present:
            raise UserError(f"federation.{name}.factors: got {len(factors)}, expected {present}, one for each client; fix the list")
    asked, present = config.federation.clients_per_round, num_clients(config, data)
    if asked is not None and asked > present:
        raise UserError(f"federation.clients_per_round: got {asked}, expected at most {present}, the number of clients; lower it")
    layers, has = getattr(config.method, "layers", None), num_layers(model_config)
    depth, blocks = getattr(config.method, "depth", None), config.model.layers_to_transform
    if has and blocks is not None and max(blocks) >= has:
        raise UserError(f"model.layers_to_transform: got {max(blocks)}, expected 0 to {has - 1}, the model's blocks; remove it")
    if has and isinstance(depth, int) and depth > has:
        raise UserError(f"method.depth: got {depth} blocks, expected at most {has}, the model's number of blocks; lower it")
    if has and isinstance(layers, LayerOptions) and layers.rule in ("count", "last", "first", "random") and (layers.value or 0) > has:
        raise UserError(f"method.layers.value: got {layers.value:g} layers, expected at most {has}, the model's number of layers; lower it")


def _reject_no_validation(config: Config, data: FederatedData) -> None:
    """A client across machines may have none where others have some."""
    if len(data.validation) or config.federation.partition == "machines":
        return
    none = f"data.validation_fraction: got {config.data.validation_fraction}, which leaves no validation example of {len(data.train)}"
    if config.evaluation.save == "best":
        raise UserError(f'{none} to choose the best round by with `evaluation.save` = "best"; raise it, or set `evaluation.save` = "last"')
    if config.evaluation.patience is not None:
        raise UserError(
            f"{none} to tell by when training is to end with `evaluation.patience` = {config.evaluation.patience}; raise it, or remove "
            "`evaluation.patience`"
        )


def num_clients(config: Config, data: FederatedData) -> int:
    """K. A client of a federation across machines knows only itself, and takes the number from the configuration."""
    return config.federation.clients if config.federation.partition == "machines" else len(data.clients)
