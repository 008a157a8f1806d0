"""`acge clean quality=…`: a score a row, of what the steps measured; and an encoder that ranks pairs."""

import gzip
import json

import numpy as np
import pytest
from test_conf import composed

from acge_lightning.commands import clean
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.data import ClassificationDataset
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.mining import label_confidence, positive_ranks, text_keys

WORDS = ["退货", "物流", "发票", "换货", "优惠", "会员", "支付", "地址", "保修", "安装"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(*words):
    clean.run(with_names(composed(arguments(words), "clean")))


def rows_of(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"text": f"{word}的事{''.join(rng.choice(list('今天想问一下'), 3))}{i}", "label": word}
        for i in range(12)
        for word in WORDS[:4]
    ]
    rows[5]["label"] = WORDS[0]  # a wrong one
    write(tmp_path / "texts.jsonl", rows)
    return tmp_path / "texts.jsonl"


def test_labels_that_a_probe_doubts_score_low_and_the_column_is_one_of_weights(texts, tmp_path):
    out = tmp_path / "out"
    run(f"source={texts}", "family=classification", f"out={out}", "steps.labels={share: 0}", "quality=quality")
    rows = rows_of(out / "train.jsonl.gz")
    assert len(rows) == 48
    keys = text_keys([row["text"] for row in rows])
    confidence = label_confidence([row["text"] for row in rows], [row["label"] for row in rows], keys)
    expected = np.maximum(0.001, confidence.given / confidence.largest)
    assert [row["quality"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    assert int(np.argmin(expected)) == 5
    data = ClassificationDataset(out / "train.jsonl.gz", weight_column="quality", holdout=0.0, cache_dir=tmp_path / "cache")
    assert data.weights.tolist() == [row["quality"] for row in rows]


def test_near_copies_that_are_reported_count_half(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": text} for text in ("英文版说明书在哪里", "中文版说明书在哪里", "完全不同的一句")])
    run(f"source={tmp_path / 'a.jsonl'}", "family=unlabelled", f"out={tmp_path / 'out'}", "quality=score")
    scores = {row["text"]: row["score"] for row in rows_of(tmp_path / "out/train.jsonl.gz")}
    assert sorted(scores.values()) == [0.5, 1, 1]
    assert scores["完全不同的一句"] == 1


def test_pairs_score_by_the_rank_of_their_positive(tmp_path):
    rows = [{"query": f"{word}怎么办", "positive": [f"{word}请看说明第{i}条"]} for i, word in enumerate(WORDS)]
    rows[3]["positive"], rows[4]["positive"] = rows[4]["positive"], rows[3]["positive"]
    write(tmp_path / "a.jsonl", rows)
    step = "steps.consistency={share: 1}"
    run(f"source={tmp_path / 'a.jsonl'}", "family=triplet", f"out={tmp_path / 'out'}", step, "quality=quality")
    written = rows_of(tmp_path / "out/train.jsonl.gz")
    queries, positives = [row["query"] for row in rows], [row["positive"][0] for row in rows]
    ranks = positive_ranks(queries, positives, text_keys(positives), text_keys(queries))
    assert [row["quality"] for row in written] == pytest.approx((1 - (ranks.ranks - 1) / ranks.pool).round(4).tolist())
    assert written[3]["quality"] < 1 > written[4]["quality"]


def test_a_column_of_that_name_is_an_error_and_nothing_is_written(texts, tmp_path):
    with pytest.raises(InputError, match=r"texts.jsonl, line 1 has a column 'label' already: give quality another name"):
        run(f"source={texts}", "family=classification", f"out={tmp_path / 'out'}", "quality=label")
    assert not (tmp_path / "out").exists()


def test_an_encoder_keeps_pairs_that_share_no_word(tmp_path):
    """Its word vectors say that each question and its answer are the same, though they have no character in common."""
    words = [chr(0x4E00 + 2 * i) for i in range(40)], [chr(0x4E01 + 2 * i) for i in range(40)]
    rows = [{"query": one * 4, "positive": [other * 6]} for one, other in zip(*words, strict=True)]
    wrong = [*rows[:-2], rows[-2] | {"positive": rows[-1]["positive"]}, rows[-1] | {"positive": rows[-2]["positive"]}]
    write(tmp_path / "a.jsonl", wrong)
    letters = sorted({character for side in words for character in side})
    encoder = static(train_vocabulary(iter(letters * 20), kind="unigram", vocab_size=200), dim=64)
    vectors = np.random.default_rng(0).normal(size=(40, 64))
    weights = encoder.backbone.embedding.weight.data
    for side in words:
        for character, vector in zip(side, vectors, strict=True):
            for token in encoder.tokenize([character * 6]).ids.unique().tolist():
                weights[token] = weights.new_tensor(vector)
    export(encoder, tmp_path / "model")
    sizes = {}
    for tfidf in (True, False):
        step = f"steps.consistency={{share: 0.05, tfidf: {str(tfidf).lower()}, model: '{tmp_path / 'model'}'}}"
        out = tmp_path / f"out{tfidf}"
        run(f"source={tmp_path / 'a.jsonl'}", "family=triplet", f"out={out}", step)
        sizes[tfidf] = [row["query"] for row in rows_of(out / "train.jsonl.gz")]
    assert sizes[True] == sizes[False] == [row["query"] for row in rows[:-2]]
    step = f"steps.consistency={{model: '{tmp_path / 'model'}', prompts: {{query: ask}}}}"
    with pytest.raises(InputError, match=r"steps.consistency.prompts.query=ask is unknown: this encoder has no prompts"):
        run(f"source={tmp_path / 'a.jsonl'}", "family=triplet", f"out={tmp_path / 'no'}", step)
