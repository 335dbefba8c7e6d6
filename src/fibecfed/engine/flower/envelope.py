"""What is sent between a server and a resident client: the method's message, and around it whom, which run, which round it is for."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.types import Round
from ...core.wire import WireError, message


@message
class Request:
    """Server to client.

    Attributes:
        action: "hello" (who are you), "start" (take these initial tensors), "train", "evaluate", "evaluate_both",
            "evaluate_global" or "finish".
        run: name of the run; a client keeps the states of different runs apart.
        client: whom it is for; empty in a hello, which is for whoever sits there.
        config: hash of the configuration that server and clients must have in common.
        phase, index, num_rounds, number: the round.
        payload: uint8; of "train" and an evaluation the encoded message of the method, whose length is what is recorded as sent.
    """

    action: str
    run: str
    client: str
    config: str
    phase: str
    index: int
    num_rounds: int
    number: int
    payload: Tensor

    @property
    def round(self) -> Round:
        return Round(self.phase, self.index, self.num_rounds, self.number)


@message
class Reply:
    """Client to server.

    Attributes:
        status: "done", "failed" (it tried) or "refused" (the request is not for it, or it has another configuration).
        reason: a sentence, where it is not done.
        action, run, client, number: of the request that is answered.
        payload: uint8; where it is done, what the action asks for; where it is rejected, the client's configuration as JSON.
    """

    status: str
    reason: str
    action: str
    run: str
    client: str
    number: int
    payload: Tensor


@message
class Hello:
    """A client introduces itself.

    Attributes:
        name: its stable name.
        identity: drawn once for its folder, to distinguish two machines of one name.
        config: what it has in common with the server, as JSON.
        initial: checksum of its trainable tensors at the start; "" where it has none, as the helper.
        versions: of what computes its numbers, as JSON.
    """

    name: str
    identity: str
    config: str
    initial: str
    versions: str


@message
class Finish:
    """The last broadcast, and what a client's model card says about the run.

    Attributes:
        shared: checksum of the global adapter.
        summary, header: JSON.
    """

    broadcast: Tensor
    shared: str
    summary: str
    header: str


def packed(blob: bytes) -> Tensor:
    """Bytes as a tensor, uint8."""
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8) if blob else torch.empty(0, dtype=torch.uint8)


def unpacked(tensor: Tensor) -> bytes:
    """The bytes that `packed` made a tensor of.

    Raises:
        WireError: another tensor.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise WireError(f"got a payload of dtype {tensor.dtype} and shape {tuple(tensor.shape)}, expected bytes")
    return tensor.numpy().tobytes()
