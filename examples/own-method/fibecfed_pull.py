"""A federated method of one's own, from nothing: FedAvg whose clients are pulled towards the model that they were sent, as in FedProx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

import fibecfed as ff


@ff.message
class Model:
    """What the server sends, and its state."""

    params: ff.Tensors


@ff.message
class Trained:
    """What a client answers. A field `num_samples` is checked by the server, and is the weight of a mean."""

    params: ff.Tensors
    num_samples: int


@ff.message
class Nothing:
    """What a client keeps between rounds."""


@dataclass(frozen=True)
class Pull(ff.Defaults):
    """Each phase is a row: a message down, an answer of each client, and what the server makes of the answers."""

    training: ff.TrainingOptions
    num_rounds: int
    mu: float

    server_state = Model
    client_state = Nothing

    @property
    def phases(self):
        return (ff.Phase("tune", self.num_rounds, "sampled", Model, Trained, lambda server, now: server, self.update, self.aggregate),)

    def init(self, task, key):
        return Model(task.init_params(key))

    def init_client(self, task, client, key):
        return Nothing()

    def update(self, client, sent, now):
        def pull(params):
            away = [(params[name] - value.to(params[name])).square().sum() for name, value in sent.params.items()]
            return self.mu / 2 * torch.stack(away).sum()

        epochs = ff.plain_epochs(client.data.train, self.training, client.key, self.training.local_epochs)
        result = ff.fit(client.task, sent.params, epochs, self.training, client.key.fold("dropout"), penalty=pull)
        return ff.Update(Trained(result.params, len(client.data.train)), client.state, ff.Work(result.steps, result.examples, result.loss))

    def aggregate(self, server, received, now):
        return Model(ff.mean_by_size(received, "params"))

    def personalise(self, sent, state):
        return sent.params

    def server_params(self, server):
        return server.params

    def load(self, size, now, chance):
        return ff.Load(steps=self.training.local_epochs * -(-size // self.training.batch_size))


class PullOptions(ff.MethodOptions):
    """FedAvg with a pull towards the model that a client was sent."""

    kind: Literal["pull"] = Field(default="pull", description="The method.")
    mu: float = Field(default=0.01, ge=0, description="[C] Weight of half the squared distance to that model.")


def build(options: PullOptions, context: ff.MethodContext) -> Pull:
    return Pull(context.training, context.num_rounds, options.mu)


ROW = ff.Row(PullOptions, build, "docs/own-method.md", learning_rate=5e-4, rate_source="as for lora")
