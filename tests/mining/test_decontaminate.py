"""Leaks of evaluation sets: planted ones, real ones, and what is none."""

import numpy as np
import pytest
from planted import DATA, confusion, leaks, own_texts, real_texts
from rapidfuzz.distance import Levenshtein
from rapidfuzz.fuzz import partial_ratio

from acge_lightning.data.readers import rows
from acge_lightning.errors import InputError
from acge_lightning.mining.cleaning import decontaminate
from acge_lightning.mining.cleaning.decontaminate import leak_index
from acge_lightning.mining.normalise import duplicate_keys, row_keys

SIDES, SPLITS = ("text1", "text2"), ("train", "test")


def found(texts, evaluation, **options):
    return decontaminate.leaks(duplicate_keys(texts), leak_index(duplicate_keys(evaluation)), **options)


def table(findings):
    return {leak.reason: list(zip(leak.rows.tolist(), leak.others.tolist(), strict=True)) for leak in findings}


def check_planted(texts, evaluation, count):
    planted, truth = leaks(texts, evaluation, count)
    index = leak_index(duplicate_keys(evaluation))
    findings = decontaminate.leaks(duplicate_keys(planted), index)
    named = {row: other for pairs in table(findings).values() for row, other in pairs}
    before = {row for leak in decontaminate.leaks(duplicate_keys(texts), index) for row in leak.rows.tolist()}
    kinds = confusion(truth, named, lambda row: truth[row][1])
    precision = len(named.keys() & truth.keys()) / len(named.keys() - before)
    print(f"{len(planted)} rows, {len(evaluation)} evaluation texts; found of planted {kinds}")
    print(f"precision {precision:.3f}; rows flagged before planting {len(before)}")
    recall = {kind: hits / total for kind, (hits, total) in kinds.items()}
    assert all(recall[kind] >= 0.99 for kind in ("exact", "edit 5%", "edit 10%", "edit 15%"))
    assert min(recall["embedded"], recall["embedded 5%"]) >= 0.93
    assert precision >= 0.95
    assert sum(named.get(row) == source for row, (source, _) in truth.items()) >= 0.97 * len(truth)
    return findings, planted


def test_planted_leaks_among_our_own_texts_are_found():
    texts = own_texts(3000, seed=7)
    findings, planted = check_planted(texts[:2000], texts[2000:], 420)
    keys, evaluation = duplicate_keys(planted).to_pylist(), duplicate_keys(texts[2000:]).to_pylist()
    for leak in findings:  # each value is what rapidfuzz says
        for row, other, value in zip(leak.rows.tolist(), leak.others.tolist(), leak.values.tolist(), strict=True):
            pair = evaluation[other], keys[row]
            is_within = leak.reason == "leak, embedded"
            assert value == pytest.approx(partial_ratio(*pair) / 100 if is_within else Levenshtein.normalized_similarity(*pair))


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
def test_planted_leaks_among_real_texts_are_found():
    texts = real_texts(40_000)
    check_planted(texts[:20_000], texts[20_000:], 1400)


def test_kinds_of_leaks_are_told_apart_and_the_first_row_is_named():
    long = "北京到上海的高铁最快需要多长时间才能到达"
    evaluation = ["你好", long, "无关的一行评测文本，讲的是别的事情", long + "！"]
    texts = [
        f"{long}？",
        f"客服您好，{long[:-2]}呢？谢谢，盼回复，急",
        long.replace("上海", "苏州"),
        "你好",
        "完全不同的训练文本",
        long[:9],
    ]
    expected = {"leak, exact": [(0, 1), (3, 0)], "leak, edited": [(2, 1)], "leak, embedded": [(1, 1)]}
    assert table(found(texts, evaluation)) == expected
    assert table(found(texts, evaluation, embedded=False)) == {key: expected[key] for key in ("leak, exact", "leak, edited")}


def test_a_short_evaluation_text_within_a_long_one_is_no_leak():
    assert found(["花呗还款失败是怎么回事，我已经试了很多次了"], ["花呗还款失败"]) == []


def test_pairs_leak_with_both_sides_only():
    one, two = "怎样才能提高花呗的使用额度，有没有办法", "提高花呗额度有哪些条件，需要怎么操作"
    evaluation = row_keys({"text1": [one], "text2": [two]}, "sts")
    training = {
        "text1": [two, one + "呢", one, two[:-1], "毫不相干的问题一个"],
        "text2": [one + "！", two, "毫不相干的问题一个", one[1:], one + two],
    }
    findings = decontaminate.leaks(row_keys(training, "sts"), leak_index(evaluation), unordered=True)
    assert table(findings) == {"leak, exact": [(0, 0)], "leak, edited": [(1, 0), (3, 0)]}
    stricter = decontaminate.leaks(row_keys(training, "sts"), leak_index(evaluation), unordered=True, near=0.943)
    assert table(stricter) == {"leak, exact": [(0, 0)], "leak, edited": [(1, 0)]}
    with pytest.raises(InputError, match=r"near=0.5 is not between 0.8 and 1"):
        decontaminate.leaks(evaluation, leak_index(evaluation), near=0.5)


def test_ten_thousand_rows_of_one_evaluation_text_and_of_its_template():
    text = "您的订单已经发货，预计三天之内送达，请保持电话畅通"
    assert len(found([text] * 10_000, [text] * 10_000)[0]) == 10_000
    evaluation = [f"{text}，单号{number:06d}" for number in range(500)]
    training = [f"尊敬的客户，{text}，单号{number:06d}，祝您生活愉快，欢迎再次光临本店" for number in range(5_000, 5_300)]
    assert sum(map(len, found(training, evaluation))) == 300


def test_empty_sets_empty_texts_long_rows_and_half_characters():
    assert found([], []) == found(["一"], []) == found([], ["一"]) == []
    assert found(["", " ", "\ud800"], ["", "\ud800"])[0].rows.tolist() == [2]
    rng = np.random.default_rng(0)
    megabyte = "".join(map(chr, rng.integers(0x4E00, 0x9000, 330_000)))
    evaluation = own_texts(50, seed=11)
    source = max(range(50), key=lambda row: len(evaluation[row]))
    text = megabyte[:200_000] + evaluation[source] + megabyte[200_000:]
    assert table(found([megabyte, text], evaluation)) == {"leak, embedded": [(1, source)]}
    assert table(found([text], [megabyte[100_000:200_000], megabyte[::-1], "短"])) == {"leak, embedded": [(0, 0)]}


def column(path, *names):
    """Columns of a split of real data."""
    return [[row[name] for _, row in rows(DATA / f"{path}.jsonl.gz")] for name in names]


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
@pytest.mark.parametrize(("split", "count"), [("test", 528), ("dev", 319)])
def test_sentences_of_simclue_that_lcqmc_holds_are_found(split, count):
    query, positive, negative = column("triplet/simclue/train", "query", "positive", "negative")
    texts = query + [text for texts in positive + negative for text in texts]
    training = duplicate_keys(texts).unique()
    one, two = column(f"sts/lcqmc/{split}", *SIDES)
    findings = decontaminate.leaks(training, leak_index(duplicate_keys(one + two)), embedded=False)
    assert len(table(findings)["leak, exact"]) == count


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
def test_real_leaks_are_found():
    one, two = column("pair/snli_zh/train", "text1", "text2")
    query, positive, negative = column("triplet/snli_zh/dev", "query", "positive", "negative")
    others = [yes + no for yes, no in zip(positive, negative, strict=True)]
    queries = [text for text, texts in zip(query, others, strict=True) for _ in texts]
    index = leak_index(row_keys({"text1": queries, "text2": [text for texts in others for text in texts]}, "pair"))
    counts = {"snli_zh": decontaminate.leaks(row_keys({"text1": one, "text2": two}, "pair"), index, unordered=True)}
    shopping = leak_index(duplicate_keys(column("clustering/online_shopping_category/test", "text")[0]))
    for name in ("online_shopping", "chnsenticorp"):
        texts = column(f"classification/{name}/train", "text")[0]
        counts[name] = decontaminate.leaks(duplicate_keys(texts), shopping)
    virus = leak_index(duplicate_keys(column("classification/weibo_emotion_virus/test", "text")[0]))
    texts = column("classification/weibo_emotion_virus/train", "text")[0]
    counts["weibo_emotion_virus"] = decontaminate.leaks(duplicate_keys(texts), virus)
    sick = [row_keys(dict(zip(SIDES, column(f"sts/sick_en/{split}", *SIDES), strict=True)), "sts") for split in SPLITS]
    copies = decontaminate.leaks(sick[0], leak_index(sick[1]), unordered=True, near=0.9)
    exact = {name: len(table(findings)["leak, exact"]) for name, findings in counts.items()}
    print({name: {leak.reason: len(leak) for leak in findings} for name, findings in counts.items()})
    near = [leak.values >= 0.85 for leak in counts["weibo_emotion_virus"] if leak.reason != "leak, embedded"]
    print(f"weibo_emotion_virus: {np.concatenate(near).sum()} exact or edited of .85 or more")
    print("sick_en", {leak.reason: len(leak) for leak in copies})
    assert 460 <= sum(map(len, copies)) <= 480  # 473 by sentences with their blanks
    assert exact["snli_zh"] >= 5_390
    assert exact["online_shopping"] >= 4_537
    assert exact["chnsenticorp"] >= 719
    assert np.concatenate(near).sum() >= 434
