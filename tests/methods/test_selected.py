"""What a method chose, in words."""

from __future__ import annotations

from fibecfed.methods.selected import in_words


def test_what_a_method_chose_is_said_in_words_and_long_lists_are_shortened():
    long = in_words({"global_layers": [*range(10, 25), 29], "num_layers": 30, "importance": [0.01 * n for n in range(30)], "ratio": None})
    assert long == {
        "layers shared with all clients": "10 to 24, 29 of 30 (the first is 0)",
        "importance of each layer": "from 0 (layer 0) to 0.29 (layer 29)",
    }
    assert in_words({"agreement_between": [0.1], "left_after_round": {"3": 4, "head": 5}}) == {
        "kept by each client": "layer 3 after round 4, the head after round 5"
    }
    assert in_words({"left_after_round": {}}) == {"kept by each client": "nothing"}
    assert in_words({"global_layers": [], "num_layers": 6})["layers shared with all clients"] == "none of 6"
    assert in_words({"score_after": 1}) == {"examples ranked by difficulty": "after 1 round of training"}
    assert in_words({"ranks": {"a": 4, "b": 8}}) == {"LoRA rank": "a 4, b 8"}
    assert in_words({"ranks": {str(n): n % 5 + 2 for n in range(20)}}) == {"LoRA rank": "2 to 6 over 20 clients"}
    assert in_words({"new_key": list(range(20))})["new key"] == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
