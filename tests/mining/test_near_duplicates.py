"""Duplicates against planted truth and against all pairs compared by rapidfuzz."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from planted import DATA, confusion, duplicates, edited, own_texts, real_texts
from rapidfuzz.distance import Levenshtein

from acge_lightning.mining.cleaning.deduplicate import near_duplicates
from acge_lightning.mining.normalise import duplicate_keys, row_keys

SHORT = "near duplicate, short"


def rows_of(findings, without=()):
    return {row for found in findings if found.reason not in without for row in found.rows.tolist()}


def table(findings):
    return {found.reason: list(zip(found.rows.tolist(), found.others.tolist(), strict=True)) for found in findings}


def similarity(a, b):
    """As the rule is told in words: the higher of both similarities, 0 if they are not alike."""
    near = Levenshtein.normalized_similarity(a, b)
    ordered = Levenshtein.normalized_similarity(sorted(a), sorted(b))
    one, two = (Counter(x[i : i + 2] for i in range(len(x) - 1)) for x in (a, b))
    shared = (one & two).total() / max(one.total(), two.total(), 1)
    return max(near * (near >= 0.8), ordered * (ordered >= 0.97 and shared >= 0.6))


def check_against_all_pairs(texts):
    """No row is flagged that all pairs do not flag, each is alike to a row that stays, and few are missed."""
    keys = duplicate_keys(texts).to_pylist()
    findings = near_duplicates(duplicate_keys(texts))
    dropped, flagged = rows_of(findings, [SHORT]), rows_of(findings)
    for found in findings:
        for row, other, value in zip(found.rows.tolist(), found.others.tolist(), found.values.tolist(), strict=True):
            assert other not in dropped
            assert other < row
            expected = similarity(keys[row], keys[other])
            assert expected >= 0.8, (keys[row], keys[other])
            assert value <= expected + 1e-9
    stay = [row for row in range(len(keys)) if row not in flagged]
    pairs = [(a, b) for n, a in enumerate(stay) for b in stay[:n] if keys[a] and similarity(keys[a], keys[b])]
    return flagged, {a for a, _ in pairs}


def test_all_pairs_of_few_texts_say_the_same():
    planted, truth = duplicates(own_texts(110, seed=1), share=0.6)
    flagged, missed = check_against_all_pairs(planted)
    assert len(flagged) >= 0.95 * len(truth)
    assert len(missed) <= 0.03 * len(flagged)


def check_planted(texts, share):
    planted, truth = duplicates(texts, share)
    keys = duplicate_keys(planted)
    length = [len(key) for key in keys.to_pylist()]
    findings, before = near_duplicates(keys), rows_of(near_duplicates(duplicate_keys(texts)))
    flagged, dropped = rows_of(findings), rows_of(findings, [SHORT])
    by_length = confusion(truth, flagged, lambda row: "< 16" if length[row] < 16 else "16 … 49" if length[row] < 50 else "50 …")
    long = {row: kind for row, (source, kind) in truth.items() if length[source] >= 16}
    by_kind = confusion(long, dropped, lambda row: long[row])
    precision = len(flagged & truth.keys()) / len(flagged - before)
    print(f"{len(planted)} rows; found of planted by length {by_length}; from 16 characters, by kind {by_kind}")
    print(f"precision {precision:.3f}; rows flagged before planting {len(before)}")
    assert min(hits / total for hits, total in by_length.values() if total >= 100) >= 0.95
    assert by_kind["all"][0] / by_kind["all"][1] >= 0.97
    assert precision >= 0.95
    assert by_kind["width"][0] == by_kind["width"][1]
    return truth, findings


def test_planted_duplicates_of_our_own_texts_are_found():
    truth, findings = check_planted(own_texts(4000), 0.15)
    sources = {row: source for row, (source, _) in truth.items()}
    pairs = [pair for pairs in table(findings).values() for pair in pairs if pair[0] in sources]
    assert sum(sources[row] == other for row, other in pairs) >= 0.98 * len(pairs)


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
def test_planted_duplicates_of_real_texts_are_found():
    check_planted(real_texts(40_000), 0.1)


@pytest.mark.heavy
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data")
def test_all_pairs_of_few_real_texts_say_the_same():
    planted, truth = duplicates([text for text in real_texts(2000) if len(text) < 60][:200], share=0.5)
    flagged, missed = check_against_all_pairs(planted)
    assert len(flagged) >= 0.95 * len(truth)
    assert len(missed) <= 0.03 * len(flagged)


def test_a_chain_of_edits_does_not_end_in_texts_that_have_nothing_in_common():
    base = own_texts(1, seed=5)[0] * 3
    texts = ["鬱" * (4 * step) + base[4 * step : 60] for step in range(15)]
    findings = near_duplicates(duplicate_keys(texts))
    pairs = table(findings)["near duplicate"]
    assert 5 <= len(pairs) < 14
    check_against_all_pairs(texts)


def test_the_row_of_the_highest_priority_stays():
    text = "今天天气很好，我们一起去公园散步吧，晚上再回家吃饭"
    texts = [text, text + "。", text.replace("公园", "花园"), "别的一行文字，与上面的没有什么关系"]
    assert table(near_duplicates(duplicate_keys(texts))) == {"exact duplicate": [(1, 0)], "near duplicate": [(2, 0)]}
    best = near_duplicates(duplicate_keys(texts), priority=np.array([0.0, 0.5, 1.0, 0.0]))
    assert table(best) == {"near duplicate": [(0, 2), (1, 2)]}  # the copy of a dropped row names the row that stays
    second = near_duplicates(duplicate_keys(texts), priority=np.array([0.0, 0.5, 0.0, 0.0]))
    assert table(second) == {"exact duplicate": [(0, 1)], "near duplicate": [(2, 1)]}


def test_short_texts_that_are_merely_near_are_reported_alone():
    texts = [
        "请帮我找一下英文版的",
        "请帮我找一下中文版的",
        "长江很长，黄河也长",
        "黄河也长，长江很长",
        "从北京到上海",
        "从上海到北京",
    ]
    assert table(near_duplicates(duplicate_keys(texts))) == {"re-ordered duplicate": [(3, 2)], SHORT: [(1, 0)]}


def test_rows_of_other_labels_are_no_duplicates():
    text = "今天天气很好，我们一起去公园散步吧，晚上再回家吃饭"
    keys = duplicate_keys([text, text, text + "哦", text + "啊", text])
    for labels in (["a", "b", "b", "a", None], pa.array(["a", "b", "b", "a", None])):
        assert table(near_duplicates(keys, labels=labels)) == {"near duplicate": [(2, 1), (3, 0)]}


def test_both_sides_of_a_pair_must_be_near():
    question, answer = "如何申请退款，需要多长时间才能到账呢", "退款申请提交之后，三到五个工作日内会原路退回到您的账户"
    others = ["怎样修改收货地址，订单已经发货了怎么办", "请联系快递公司改派，或者拒收之后重新下单即可"]
    sides = {
        "text1": [question, question, others[0], question + "啊", answer + "的", question],
        "text2": [answer, others[1], answer, answer, question, answer],
    }
    pairs = near_duplicates(row_keys(sides, "pair"), unordered=True)
    assert table(pairs) == {"exact duplicate": [(5, 0)], "near duplicate": [(3, 0), (4, 0)]}
    faq = {"query": [f"{text}?" for text in own_texts(100, seed=3)], "positive": [[answer]] * 100}
    assert near_duplicates(row_keys(faq, "retrieval")) == []


def test_planted_duplicates_of_pairs_are_found_in_either_order():
    rng = np.random.default_rng(2)
    texts = own_texts(1600, seed=9)
    one, two = texts[:800], texts[800:]
    sources = rng.permutation(800)[:200].tolist()
    copies = [tuple(edited(side[row], 0.1, rng, texts[0]) for side in (one, two)) for row in sources]
    half = [(edited(one[row], 0.1, rng, texts[0]), two[(row + 1) % 800]) for row in sources]  # no duplicates: one side only
    pairs = [*zip(one, two, strict=True), *(copy[::-1] if n % 2 else copy for n, copy in enumerate(copies)), *half]
    keys = row_keys({"text1": [a for a, _ in pairs], "text2": [b for _, b in pairs]}, "sts")
    named = {row: other for found in table(near_duplicates(keys, unordered=True)).values() for row, other in found}
    assert sum(named.get(800 + number) == source for number, source in enumerate(sources)) >= 0.97 * 200
    assert set(named) <= set(range(800, 1000))


def test_ten_thousand_rows_that_are_the_same_or_nearly():
    same = near_duplicates(duplicate_keys(["我们的退款会在三个工作日内到账"] * 10_000))
    assert table(same) == {"exact duplicate": [(row, 0) for row in range(1, 10_000)]}
    template = [f"您的订单{number:05d}已经发货，预计三天之内送达，请保持电话畅通，谢谢" for number in range(1_500)]
    assert len(rows_of(near_duplicates(duplicate_keys(template)))) == 1_499


def test_nothing_one_row_empty_texts_and_half_characters():
    assert near_duplicates(duplicate_keys([])) == near_duplicates([]) == []
    assert near_duplicates(duplicate_keys(["一"])) == []
    assert near_duplicates(duplicate_keys(["", "", " ", "一", "二", "\ud800"])) == []
    assert table(near_duplicates(duplicate_keys(["\ud800好的", "好的"]))) == {"exact duplicate": [(1, 0)]}


def test_a_megabyte_in_a_row():
    rng = np.random.default_rng(0)
    long = "".join(map(chr, rng.integers(0x4E00, 0x9000, 300_000)))
    middle = long[:100_000] + "".join(map(chr, rng.integers(0x4E00, 0x9000, 100_000))) + long[200_000:]
    texts = [long, long[:150_000] + "改" * 10 + long[150_010:], middle, "短", long[:5_000]]
    assert table(near_duplicates(duplicate_keys(texts))) == {"near duplicate": [(1, 0)]}
