"""Tables of what a client or a federation holds."""

from __future__ import annotations

import io

from rich.console import Console

from fibecfed.inspection import as_table


def test_names_of_classes_and_columns_are_folded_on_a_narrow_terminal_and_never_cut() -> None:
    header = ("client", "train", "validation", "test", *(f"train: {name}" for name in ("Musculoskeletal", "Circulatory", "Respiratory")))
    console = Console(file=io.StringIO(), width=50)
    console.print(as_table(header, [("north", "1,200", "130", "300", "400", "400", "400")]))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "…" not in text
    left = "".join(text.split())
    assert all(letters in left for letters in ("1,200", "130", "400"))
    assert sum(map(str.isalpha, text)) == sum(map(str.isalpha, "".join(header))) + len("north")
