"""Out-of-fold confidence of labels: against a loop of scikit-learn, and labels flipped in real sets."""

import numpy as np
import pytest
from mining_data import DATA, rows, scores_of
from sklearn.linear_model import LogisticRegression

from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning.label_noise import LabelConfidence, doubtful_labels, label_confidence

TOPICS = {"物流": "快递 包裹 发货 运费 签收", "账户": "密码 登录 注册 验证码 邮箱", "售后": "退货 换货 维修 发票 退款"}


def labelled(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(TOPICS), n).tolist()
    return [" ".join(rng.choice(TOPICS[label].split(), 4)) + f" {i}" for i, label in enumerate(labels)], labels


def flipped(labels, share, seed=0):
    """Labels of which a share is another one, drawn evenly, and the rows of those."""
    rng = np.random.default_rng(seed)
    words, number = np.unique(labels, return_inverse=True)
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    number[chosen] = (number[chosen] + rng.integers(1, len(words), len(chosen))) % len(words)
    return words[number].tolist(), np.sort(chosen)


def test_flipped_labels_are_the_doubtful_ones():
    texts, labels = labelled(300)
    given, planted = flipped(labels, 0.05)
    confidence = label_confidence(texts, given, texts)
    findings = doubtful_labels(confidence, share=0.05)
    assert scores_of(findings.rows, planted)[2] > 0.95
    assert [confidence.suggested[row] for row in planted] == [labels[row] for row in planted]
    assert findings.others.tolist() == [-1] * len(findings)
    assert findings.values.tolist() == confidence.given[findings.rows].tolist()
    again = label_confidence(texts, given, texts)
    assert again.given.tolist() == confidence.given.tolist()
    assert label_confidence(texts, given, texts, seed=1).given.tolist() != confidence.given.tolist()


def test_clean_labels_lose_nothing_whatever_the_budget():
    texts, labels = labelled(300)
    assert len(doubtful_labels(label_confidence(texts, labels, texts), share=0.5)) == 0


def test_no_row_is_judged_by_a_probe_that_has_seen_its_text():
    """Each text twice, its copies with one label that is of no other text of its topic: only a copy could teach it."""
    texts, labels = labelled(60)
    given = [*labels, *labels]
    lonely = [3, 10, 24, 37]
    for row in lonely:
        given[row] = given[row + 60] = next(topic for topic in TOPICS if topic != labels[row])
    confidence = label_confidence(texts * 2, given, [hash(text) for text in texts] * 2)
    assert (confidence.given[lonely] < confidence.largest[lonely]).all()
    assert confidence.given[:60] == pytest.approx(confidence.given[60:])
    seen = label_confidence(texts * 2, given, [f"key {i}" for i in range(120)])  # copies in different folds hide them
    assert seen.given[lonely].mean() > 2 * confidence.given[lonely].mean()


def test_vectors_with_a_row_a_fold_are_leave_one_out():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 8)
    vectors = rng.normal(size=(24, 5)) + np.eye(3, 5)[labels]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    confidence = label_confidence(vectors, labels.tolist(), np.arange(24), folds=24, repeats=1)
    for row in range(24):
        others = np.delete(np.arange(24), row)
        probe = LogisticRegression(C=10, tol=1e-8, max_iter=1000).fit(vectors[others], labels[others])
        expected = probe.predict_proba(vectors[row : row + 1])[0]
        assert confidence.given[row] == pytest.approx(expected[labels[row]], abs=2e-3)
        assert confidence.largest[row] == pytest.approx(expected.max(), abs=2e-3)
        assert confidence.suggested[row] == expected.argmax()


def test_classes_of_few_texts_are_not_judged_and_counted():
    texts, labels = labelled(80)
    texts += ["罕见 一", "罕见 二", "罕见 三", *["副本"] * 50]
    labels += ["稀有"] * 3 + ["一样"] * 50
    confidence = label_confidence(texts, labels, texts)
    assert confidence.unjudged == 53
    assert np.isnan(confidence.given[80:]).all()
    assert np.isnan(confidence.largest[80:]).all()
    assert confidence.suggested[80:].tolist() == [None] * 53
    assert confidence.judged[:80].all()
    assert doubtful_labels(confidence, share=1.0).rows.max(initial=0) < 80


@pytest.mark.parametrize(
    ("texts", "labels"),
    [([], []), (["a"], [1]), (["a"] * 50, [1] * 50), (["a"] * 10_000, [1, 2] * 5000), (list("abcdefgh"), ["x"] * 8)],
)
def test_rows_that_no_probe_can_judge(texts, labels):
    confidence = label_confidence(texts, labels, texts)
    assert confidence.unjudged == len(texts)
    assert len(doubtful_labels(confidence, share=1.0)) == 0


def test_odd_texts_are_judged():
    texts, labels = labelled(40)
    texts[:3] = ["", "\ud800", "长" * 1_000_000]
    assert label_confidence(texts, labels, texts).unjudged == 0


def test_the_budget_is_a_share_of_those_judged_and_ties_go_by_row():
    given = np.array([0.1, np.nan, 0.1, 0.1, 0.6, 0.1])
    confidence = LabelConfidence(given, np.where(np.isnan(given), np.nan, 0.6), np.array(["x"] * 6, dtype=object))
    assert doubtful_labels(confidence, share=0.4).rows.tolist() == [0, 2]
    assert doubtful_labels(confidence, share=1.0).rows.tolist() == [0, 2, 3, 5]
    assert doubtful_labels(confidence, share=0.0).rows.tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_confidence(["a"], ["x", "y"], ["a"]), "there are 1 texts, 2 labels and 1 keys"),
        (lambda: label_confidence(["a", "b"], ["x", None], ["a", "b"]), "row 1 has no label"),
        (lambda: label_confidence(["a"], ["x"], ["a"], folds=1), "folds=1, repeats=2: give at least 2 folds"),
        (lambda: label_confidence(["a"], ["x"], ["a"], repeats=0), "repeats=0"),
        (lambda: label_confidence(np.full((8, 2), np.inf), list("aaaabbbb"), np.arange(8)), "vectors are not finite"),
        (lambda: doubtful_labels(LabelConfidence(np.ones(1), np.ones(1), np.ones(1)), 5), "share=5 is no share of the rows"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize(
    ("split", "least"),
    [("cic_intent/test", 0.8), ("cic_intent/train", 0.2), ("chnsenticorp/train", 0.5), ("tnews/train", 0.3)],
)
def test_labels_flipped_in_real_sets(split, least, capsys):
    """Best F1 over budgets, as others report it; all but cic_intent's test are noisy before a label is flipped."""
    read = rows(f"classification/{split}.jsonl.gz")
    texts, labels = [row["text"] for row in read], [str(row["label"]) for row in read]
    best = []
    for seed in range(1, 5 if least == 0.8 else 2):
        given, planted = flipped(labels, 0.05, seed)
        confidence = label_confidence(texts, given, texts)
        reached = {share: doubtful_labels(confidence, share).rows for share in np.arange(0.02, 0.151, 0.005).round(3)}
        best.append(max(scores_of(listed, planted)[2] for listed in reached.values()))
        with capsys.disabled():
            for share in (0.05, max(reached, key=lambda share: scores_of(reached[share], planted)[2])):
                shown = " / ".join(f"{value:.2f}" for value in scores_of(reached[share], planted))
                counts = f"{len(planted)} flipped, {len(reached[share])} listed of {len(texts)}, {confidence.unjudged} unjudged"
                print(f"\n{split:20} seed {seed}, budget {share:.3f}: P / R / F1 {shown}; {counts}", end="")
    assert np.mean(best) >= least
