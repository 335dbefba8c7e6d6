"""What a finished run left, looked at with nothing but transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fibecfed.build import read_inputs
from fibecfed.config import Config


def counted_by_plain_peft(config: Config, inputs: Path, out: Path) -> tuple[list[list[int]], dict[str, list[list[int]]]]:
    """Confusion matrices on test examples: of the global adapter on all of them, and of each client's model on its own."""
    data = read_inputs(config).data

    def counted(adapter: Path, examples: Any) -> list[list[int]]:
        base = AutoModelForSequenceClassification.from_pretrained(inputs / "backbone", num_labels=2)
        model = PeftModel.from_pretrained(base, str(adapter)).eval()
        batch = dict(examples.batch(list(range(len(examples)))))
        labels = batch.pop("labels")
        with torch.no_grad():
            predicted = model(**batch).logits.argmax(-1)
        return torch.bincount(2 * labels + predicted, minlength=4).view(2, 2).tolist()

    own = {client: out / "clients" / client for client in data.clients}
    folders = {client: folder if folder.exists() else out / "global" for client, folder in own.items()}
    return counted(out / "global", data.test), {client: counted(folders[client], data.client(client).test) for client in data.clients}
