"""The long-tail protocol against plain loops over scikit-learn, and its tables and pictures."""

import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SAMPLE
from sklearn.linear_model import LogisticRegression

from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.evaluation.datasets import Dataset, find
from acge_lightning.evaluation.longtail import Protocol, Texts, draw, longtail
from acge_lightning.evaluation.models import Model
from acge_lightning.evaluation.perturb import perturb
from acge_lightning.report.longtail import save_figures, tables

QUICK = {"shots": (1, 3), "seeds": 2, "head": 0.3, "head_shots": 8, "perturbations": ("clean", "typos")}


@pytest.fixture(scope="module")
def encoder():
    """Knows the characters of the sample, so that few of its texts are equal."""
    with gzip.open(SAMPLE / "classification" / "sample_zh" / "train.jsonl.gz", "rt", encoding="utf-8") as handle:
        texts = [json.loads(line)["text"] for line in handle]
    torch.manual_seed(0)
    return static(train_vocabulary(texts, "bpe", 1500), dim=16)


@pytest.fixture(scope="module")
def dataset():
    return find(SAMPLE, ["classification"])[0]


@pytest.fixture(scope="module")
def result(encoder, dataset, cache):
    models = [Model("one", "one", encoder), Model("two", "two", encoder)]
    return longtail(models, [dataset], Protocol(**QUICK), [8], pca="one", cache_dir=cache)


def cut(vectors, dim):
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True).clip(1e-12)


def test_draws_hold_what_they_should():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [40] * 5 + [20] * 5))
    for seed in range(3):
        rows, heads = draw(labels, 2, 0.3, 30, seed)
        counts = np.bincount(labels[rows])
        assert len(heads) == 3
        assert (heads < 5).all()  # the others have too few texts
        assert counts.tolist() == [30 if label in heads else 2 for label in range(10)]
        more, same = draw(labels, 5, 0.3, 30, seed)
        assert set(rows) < set(more)
        np.testing.assert_array_equal(heads, same)
    assert len({tuple(draw(labels, 2, 0.3, 30, seed)[1]) for seed in range(9)}) > 3
    with pytest.raises(InputError, match="10 classes need 30 training texts, 5 have them: lower head_shots or head"):
        draw(labels, 2, 0.99, 30, 0)


@pytest.mark.parametrize(("dim", "kind", "shots"), [(8, "clean", 1), (16, "typos", 3)])
@pytest.mark.parametrize("probe", ["logistic", "centroid"])
def test_scores_equal_a_loop(encoder, dataset, cache, dim, kind, shots, probe):
    settings = Protocol(**QUICK, probe=probe, adaptive=False)
    rows = longtail([Model("one", "one", encoder)], [dataset], settings, [8], cache_dir=cache)["rows"]
    row = next(r for r in rows if (r["dim"], r["perturbation"], r["shots"]) == (dim, kind, shots))
    texts = Texts.from_dataset(dataset, cache)
    known = encoder.encode(texts.train).numpy()
    tested = encoder.encode(perturb(texts.test, kind)).numpy()
    accuracies = {"all": [], "head": [], "tail": []}
    for seed in range(2):
        drawn, heads = draw(texts.train_labels, shots, 0.3, 8, seed)
        learn, labels = cut(known[drawn], dim), texts.train_labels[drawn]
        if probe == "logistic":
            told = LogisticRegression(max_iter=100, class_weight="balanced").fit(learn, labels).predict(cut(tested, dim))
        else:
            means = {label: learn[labels == label].mean(axis=0) for label in sorted(set(labels))}
            told = [max(means, key=lambda c, x=x: x @ means[c] / np.linalg.norm(means[c])) for x in cut(tested, dim)]
        right = {"all": [], "head": [], "tail": []}
        for answer, truth in zip(told, texts.test_labels, strict=True):
            right["all"].append(answer == truth)
            right["head" if truth in heads else "tail"].append(answer == truth)
        for part, values in right.items():
            accuracies[part].append(np.mean(values))
    for part, values in accuracies.items():
        assert row["each"][part] == pytest.approx(values, abs=0.004)  # a text or so: equal confidences
        assert row["values"][part] == pytest.approx(np.mean(row["each"][part]))
        assert row["spread"][part] == pytest.approx(np.std(row["each"][part], ddof=1))
    assert row["value"] == row["values"]["all"]


def test_each_encoder_dim_shots_and_perturbation_has_a_row(result):
    keys = [(r["encoder"], r["dim"], r["shots"], r["perturbation"]) for r in result["rows"]]
    assert len(keys) == len(set(keys)) == 3 * 3 * 2 * 2
    assert {r["dim"] for r in result["rows"]} == {16, 8, None}
    for row in result["rows"]:
        assert row["mean_dim"] == row["dim"] if row["dim"] else 8 <= row["mean_dim"] <= 16
        assert row["n"] > 20
        assert 0 < row["value"] < 1


def test_equal_encoders_do_not_differ_and_others_by_their_difference(result):
    rows = {(r["encoder"], r["dim"], r["shots"], r["perturbation"]): r for r in result["rows"]}
    assert {(d["encoder"], d["against"]) for d in result["differences"]} == {("two", "one"), ("one PCA", "one")}
    for d in result["differences"]:
        mine, other = (rows[name, d["dim"], d["shots"], d["perturbation"]] for name in (d["encoder"], "one"))
        for part, value in d["values"].items():
            assert value == pytest.approx(mine["values"][part] - other["values"][part], abs=1e-9)
            assert d["encoder"] != "two" or value == d["spread"][part] == 0
    assert any(d["values"]["all"] for d in result["differences"] if d["encoder"] == "one PCA")


def test_principal_components_are_those_of_the_training_texts(encoder, dataset, cache, result):
    texts = Texts.from_dataset(dataset, cache)
    known, tested = (encoder.encode(t).numpy().astype(float) for t in (texts.train, texts.test))
    axes = np.linalg.svd(known - known.mean(0), full_matrices=False)[2].T
    drawn, _ = draw(texts.train_labels, 3, 0.3, 8, 0)
    fitted = LogisticRegression(max_iter=100, class_weight="balanced")
    fitted.fit(cut((known - known.mean(0)) @ axes, 8)[drawn], texts.train_labels[drawn])
    value = (fitted.predict(cut((tested - known.mean(0)) @ axes, 8)) == texts.test_labels).mean()
    row = next(r for r in result["rows"] if (r["encoder"], r["dim"], r["shots"]) == ("one PCA", 8, 3))
    assert row["each"]["all"][0] == pytest.approx(value, abs=0.01)


def test_training_texts_that_are_tested_are_left_out(tmp_path):
    known = [("一", "a"), ("二", "a"), ("三", "b")]
    for split, rows in (("train", known), ("test", [("二", "a"), ("四", "b"), ("五", "c")])):
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = Texts.from_dataset(Dataset("classification", tmp_path, "test"), tmp_path / "cache")
    assert found.train == ["一", "三"]
    assert found.test == ["二", "四"]  # no training text has the class of 五
    assert found.train_labels.tolist() == found.test_labels.tolist() == [0, 1]


def test_a_set_that_fails_has_its_reason_and_the_others_go_on(encoder, dataset, cache, tmp_path):
    models, out = [Model("one", "one", encoder)], tmp_path / "found" / "longtail.json"
    alone = tmp_path / "classification" / "alone"
    alone.mkdir(parents=True)
    shutil.copy(dataset.path / "test.jsonl.gz", alone)
    sets = [find(SAMPLE, ["sts"])[0], Dataset("classification", alone, "test"), dataset]
    settings = Protocol(**QUICK | {"adaptive": False})
    found = longtail(models, sets, settings, cache_dir=cache, out=out)
    errors = [row["error"] for row in found["rows"] if row["error"]]
    assert len(errors) == 2
    assert "family sts" in errors[0]
    assert "no train split" in errors[1]
    assert {row["dataset"] for row in found["rows"] if not row["error"]} == {dataset.name}
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert tables(found)[-1].title == "Not scored"


def test_tables_and_pictures_show_every_encoder(result, tmp_path):
    titles = [table.title for table in tables(result)]
    assert sum("by training texts" in title for title in titles) == 3
    assert any("seed by seed" in title for title in titles)
    assert next(iter(tables(result)[0].columns[0].cells)) == "one"
    files = save_figures(result, tmp_path / "found.json")
    assert [file.name for file in files] == ["found-sample_zh.png", "found-sample_zh-perturbed.png"]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)


def test_the_picture_of_perturbed_texts_says_of_how_many_shots(result, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("acge_lightning.report.style.save_figure", lambda figure, *_: titles.append(figure.get_suptitle()))
    save_figures(result, tmp_path / "found.json")
    most = max(row["shots"] for row in result["rows"])
    assert titles == ["sample_zh", f"sample_zh, perturbed texts, {most} shots a tail class"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"probe": "tree"}, "choose from logistic, centroid"),
        ({"probe": "centroid"}, "adaptive=false"),
        ({"shots": []}, "shots"),
        ({"shots": [50]}, "head_shots=30"),
        ({"seeds": 0}, "seeds=0"),
        ({"head": 1.0}, "head=1.0"),
        ({"perturbations": ["noise"]}, "choose from clean"),
    ],
)
def test_wrong_settings_are_told(given, said):
    with pytest.raises(InputError, match=said):
        Protocol(**given)


def test_models_that_do_not_fit_are_told(encoder, dataset, cache):
    with pytest.raises(InputError, match="no encoder"):
        longtail([Model("bm25", "bm25")], [dataset], cache_dir=cache)
    with pytest.raises(InputError, match="pca=two is none of the models"):
        longtail([Model("one", "one", encoder)], [dataset], pca="two", cache_dir=cache)
