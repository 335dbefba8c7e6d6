# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Write a method
#
# A federated method is a frozen dataclass with a table of phases. This one is FedAvg with a twist: the server takes the coordinate-wise *median* of the clients' tensors in place of their mean, so that one broken client moves
# nothing far. Then it is put under the laws that all methods keep, and run.

# %% [markdown]
# ## Messages
#
# What is sent, and what each side remembers. Their encoded bytes are what a run counts.

# %%
from dataclasses import dataclass

import torch

import fibecfed as ff


@ff.message
class Model:
    """What the server sends, and its state."""

    params: ff.Tensors


@ff.message
class Trained:
    """What a client answers. A field `num_samples` is checked by the server."""

    params: ff.Tensors
    num_samples: int


@ff.message
class Nothing:
    """What a client keeps between rounds."""


# %% [markdown]
# ## The method
#
# `phases` is the algorithm's outline: how many rounds, which clients, a message down, an answer, and what becomes of the answers.


# %%
@dataclass(frozen=True)
class Median(ff.Defaults):
    """FedAvg with the coordinate-wise median for the mean."""

    training: ff.TrainingOptions
    num_rounds: int

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
        epochs = ff.plain_epochs(client.data.train, self.training, client.key, self.training.local_epochs)
        result = ff.fit(client.task, sent.params, epochs, self.training, client.key.fold("dropout"))
        return ff.Update(Trained(result.params, len(client.data.train)), client.state, ff.Work(result.steps, result.examples, result.loss))

    def aggregate(self, server, received, now):
        answers = [one.message.params for one in received]
        return Model({name: torch.stack([params[name] for params in answers]).median(dim=0).values for name in server.params})

    def personalise(self, sent, state):
        return sent.params

    def server_params(self, server):
        return server.params

    def load(self, size, now, chance):
        return ff.Load(steps=self.training.local_epochs * -(-size // self.training.batch_size))


# %% [markdown]
# ## The laws
#
# `check_method` runs it on a tiny model and checks what every method here satisfies: the same seed gives the same bits, a run resumed after any round ends with them, the order of answers changes nothing,
# inputs are not modified, and more. It returns quietly, or raises `BrokenLaw`.

# %%
from fibecfed.testing import check_method

training = ff.TrainingOptions(batch_size=3, learning_rate=0.01)
check_method(Median(training, num_rounds=3))
print("all laws hold")

# %% [markdown]
# What a broken one looks like: a server whose noise comes from torch's global generator, so that no run can be repeated.


# %%
from fibecfed.testing import BrokenLaw


class Noisy(Median):
    def aggregate(self, server, received, now):
        median = super().aggregate(server, received, now)
        return Model({name: value + 0.01 * torch.randn(value.shape) for name, value in median.params.items()})


try:
    check_method(Noisy(training, num_rounds=3))
except BrokenLaw as broken:
    print(broken)

# %% [markdown]
# ## Run it
#
# On the packaged model and reviews, a few rounds. `method=` takes a function that makes the method from what the configuration says.

# %%
config = {
    "model": {"name": "minilm"},
    "data": {"task": "movie-reviews", "max_train": 160, "max_test": 60, "max_length": 24},
    "federation": {"clients": 4, "clients_per_round": 3, "rounds": 2, "partition": "iid"},
    "training": {"local_epochs": 1},
    "evaluation": {"every": 2},
}
summary = ff.run(config, "runs/median", method=lambda context: Median(context.training, context.num_rounds))
print({name: round(100 * value, 1) for name, value in summary["scores"].items() if isinstance(value, float)})

# %% [markdown]
# ## Next
#
# Give it a name by an entry point, so that configurations, `fibecfed compare` and the report know it: [write your own method](../own-method.md), with a complete package beside it.
