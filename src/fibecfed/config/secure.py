"""What goes with secure aggregation and what does not. Each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..engine.options import CLIENT_NAME, FederationOptions, LinkOptions, SpeedOptions
from ..privacy.options import HELPER, PrivacyOptions
from .kinds import Tables

KEYS = ("range", "min_clients", "colluders", "dropouts", "keys")
"""Of [privacy], which only secure aggregation looks at."""

_WITH = "with `privacy.secure_aggregation`"
_NOT_USED = {
    "quorum": "whose rounds need all clients but `privacy.dropouts`",
    "round_attempts": "since a client joins one sum in a round",
    "exclude_after": "since no single update can be rejected",
    "max_update_norm": "since the server sees no single update; clients cut theirs off at `privacy.range`",
    "aggregation": "since the server has a sum and nothing else",
}


def secure(config: Tables) -> Iterator[str]:
    """Contradictions of `privacy.secure_aggregation` with the other keys, as sentences."""
    options, federation = config.privacy, config.federation
    if not options.summed:
        for name in KEYS:
            if (got := getattr(options, name)) != PrivacyOptions.model_fields[name].default:
                yield (
                    f"privacy.{name}: got {got!r} without `privacy.secure_aggregation`, which alone uses it; set "
                    '`privacy.secure_aggregation` = "pairs" or "helper", or remove it'
                )
        return
    yield from _pinned(options, federation)
    if federation.partition == "machines" and (every := config.resources.checkpoint_every) > 1:
        yield (
            f"resources.checkpoint_every: got {every} {_WITH} across machines, where a round that is repeated must be of the same clients "
            "with the same numbers, which a client keeps of its last round alone; set 1"
        )
    if options.unit == "client":
        return  # whose own rules say the rest
    for name, why in _NOT_USED.items():
        if (got := getattr(federation, name)) != FederationOptions.model_fields[name].default:
            yield f"federation.{name}: got {got if not isinstance(got, str) else repr(got)} {_WITH}, {why}; remove it"
    if not federation.max_samples:
        yield (
            f"federation.max_samples: got 0 {_WITH}, expected the number of training examples from which on clients weigh the same: "
            "weights are whole parts of it; set it"
        )
    if federation.schedule != "synchronous":
        yield f'federation.schedule: got "{federation.schedule}" {_WITH}, whose cohort is fixed before a round; set "synchronous"'
    for name, default in (("speeds", SpeedOptions()), ("links", LinkOptions())):
        if getattr(federation, name) != default:
            yield f"federation.{name}: got a model of time {_WITH}, whose records have none of single clients; remove it"
    if config.evaluation.save == "best" and options.evaluation == "off":
        yield f'evaluation.save: got "best" {_WITH}, where nothing is scored; set `privacy.evaluation` = "exact", or "last"'
    if (patience := config.evaluation.patience) is not None and options.evaluation == "off":
        yield f'evaluation.patience: got {patience} {_WITH}, where nothing is scored; set `privacy.evaluation` = "exact", or remove it'
    if config.tracking_by_client:
        yield f"tracking_by_client: got true {_WITH}, which lets nothing be known of single clients; remove it"


def _pinned(options: PrivacyOptions, federation: FederationOptions) -> Iterator[str]:
    """Keys that no client across machines could check others by."""
    for name, key in options.keys_by_name.items():
        if not re.fullmatch(CLIENT_NAME, name) or not re.fullmatch("[0-9a-f]{64}", key):
            yield (
                f"privacy.keys: got {name[:80]!r} = {key[:80]!r}, expected a client's name and 64 hexadecimal digits; copy the line that "
                f"`fibecfed {'helper' if name == HELPER else 'client'} --show-key` prints there"
            )
    if len(set(options.keys_by_name.values())) < len(options.keys_by_name):
        yield "privacy.keys: got one key for two names, expected one for each client; have each make its own"
    if options.helped and HELPER in (federation.client_names or ()):
        yield (
            f'federation.client_names: got "{HELPER}" {_WITH} = "helper", where that is the name of the helper, which holds no data; give '
            "the client another one"
        )
    if federation.partition != "machines":
        return
    if options.helped and options.helper_key is None:
        yield (
            f'privacy.keys: got no key of the helper, expected an entry "{HELPER}"; add the line that `fibecfed helper --show-key` prints '
            "there"
        )
    if lacking := sorted(set(federation.client_names or ()) - options.pinned.keys()):
        yield (
            f"privacy.keys: got no key of client {lacking[0]}, expected one for each of federation.client_names; add the line that "
            "`fibecfed client --show-key` prints there"
        )
    elif len(options.pinned) < federation.clients or (federation.client_names is None and len(options.pinned) != federation.clients):
        yield (
            f"privacy.keys: got {len(options.pinned)} keys for {federation.clients} clients (federation.clients), expected one for each; "
            "add the lines that `fibecfed client --show-key` prints there"
        )
