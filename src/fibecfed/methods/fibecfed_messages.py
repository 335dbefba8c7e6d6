"""What passes between FibecFed's server and its clients in tuning, and what the server keeps."""

from __future__ import annotations

from dataclasses import field

from torch import Tensor

from ..core.wire import Tensors, message


@message
class GlobalLayers:
    """Server to client: the global aggregation layers (GAL), their tensors and the head's, and by weight what is added to the frozen ones
    (exact aggregation alone). `trained`: the blocks that are trained, where not all are. `rest`: means of the layers that
    clients keep, where there are any, for those without a copy of their own; `all_sent`: every layer is to be sent back."""

    layers: tuple[int, ...]
    shared: Tensors
    residual: Tensors = field(default_factory=dict[str, Tensor])
    trained: tuple[int, ...] = ()
    rest: Tensors = field(default_factory=dict[str, Tensor])
    all_sent: bool = False


@message
class LocalLayers:
    """Client to server: the tensors of the global layers and the head after local training, and n_k; "layers" = I_k in the round in
    which it is measured, if that is a tuning round. `halves`: how reliable its gradients in each layer are, two numbers per layer (rule
    "agreement" alone)."""

    shared: Tensors
    num_samples: int
    importance: Tensors = field(default_factory=dict[str, Tensor])
    halves: Tensors = field(default_factory=dict[str, Tensor])


@message
class AllLayers:
    """Client to server, in the closing round only: every tensor that is trained, and n_k."""

    shared: Tensors
    num_samples: int


@message
class Server:
    """The server's state. `importance` is 0 until measured; `ratio` is 1 where no rule asks for it.

    tensor_layers: the layer of each tensor of `params` in sorted order, -1 for the head. extra, maps, scaling: of the aggregation, as in
    `ServerModel`. trained: blocks that are trained, none where all are or they are not chosen yet. information: "blocks" = Fisher
    information of each, where it was measured. shares_head: False once the rule "agreement" leaves the head to the clients; agreement:
    what that rule remembers. has_mean: the layers that clients keep have been sent and averaged.
    """

    params: Tensors
    tensor_layers: tuple[int, ...]
    importance: Tensor
    ratio: float
    layers: tuple[int, ...]
    extra: Tensors = field(default_factory=dict[str, Tensor])
    maps: tuple[str, ...] = ()
    scaling: float = 1.0
    trained: tuple[int, ...] = ()
    information: Tensors = field(default_factory=dict[str, Tensor])
    shares_head: bool = True
    agreement: Tensors = field(default_factory=dict[str, Tensor])
    has_mean: bool = False
