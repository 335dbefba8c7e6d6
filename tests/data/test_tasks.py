from __future__ import annotations

from fibecfed.data.tasks import TASKS


def test_the_ten_tasks_and_the_packaged_one_are_there():
    ten = {"sst2", "mr", "mpqa", "subj", "cola", "trec", "mrpc", "rte", "qnli", "boolq"}
    assert set(TASKS) == ten | {"movie-reviews"}
    assert all(TASKS[name].hub for name in ten)


def test_every_row_is_complete_and_pairs_have_two_text_columns():
    for name, task in TASKS.items():
        assert task.name == name
        assert len(set(task.labels)) == len(task.labels) >= 2
        assert (task.hub_columns[1] is not None) == task.pair
        assert task.hub is not None or task.package is not None
        assert task.terms.endswith(".") and task.title and task.source


def test_f1_and_matthews_stand_where_they_are_customary():
    assert {name: task.metric for name, task in TASKS.items() if task.metric} == {"cola": "matthews", "mrpc": "f1"}
    assert TASKS["mrpc"].labels[1] == "equivalent"
