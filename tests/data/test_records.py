"""Rows to records: what each record takes, and what every bad value is told."""

import hashlib
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acge_lightning.data.records import (
    DocumentRecord,
    LabelledRecord,
    PairRecord,
    RowError,
    ScoredPairRecord,
    TextRecord,
    TripletRecord,
    text_id,
)

NAN, INF = float("nan"), float("inf")
SURROGATE = json.loads(r'"好\ud800"')

GOOD = [
    (TextRecord, {"text": " 今天\n"}, TextRecord("今天")),
    (TextRecord, {"text": "a", "other": None}, TextRecord("a")),
    (LabelledRecord, {"text": "a", "label": "退款 "}, LabelledRecord("a", "退款")),
    (LabelledRecord, {"text": "a", "label": 3}, LabelledRecord("a", "3")),
    (LabelledRecord, {"text": "a", "label": "0"}, LabelledRecord("a", "0")),
    (LabelledRecord, {"text": "a", "label": 1.0}, LabelledRecord("a", "1")),  # as pandas writes a column with a gap
    (LabelledRecord, {"text": "a", "label": " 1.0"}, LabelledRecord("a", "1")),
    (LabelledRecord, {"text": "a", "label": "-2.00"}, LabelledRecord("a", "-2")),
    (LabelledRecord, {"text": "a", "label": "v1.0"}, LabelledRecord("a", "v1.0")),
    (LabelledRecord, {"text": "a", "label": "1.5"}, LabelledRecord("a", "1.5")),
    (PairRecord, {"text1": "a", "text2": " b", "label": 1}, PairRecord("a", "b", 1)),
    (PairRecord, {"text1": "a", "text2": "b", "label": "0"}, PairRecord("a", "b", 0)),
    (PairRecord, {"text1": "a", "text2": "b", "label": 1.0}, PairRecord("a", "b", 1)),
    (PairRecord, {"text1": "a", "text2": "b", "label": "1.0"}, PairRecord("a", "b", 1)),
    (PairRecord, {"text1": "a", "text2": "b", "label": "0.0 "}, PairRecord("a", "b", 0)),
    (PairRecord, {"text1": "a", "text2": "b", "label": False}, PairRecord("a", "b", 0)),
    (PairRecord, {"text1": "a", "text2": "b", "label": "Entailment"}, PairRecord("a", "b", 1)),
    (PairRecord, {"text1": "a", "text2": "b", "label": " contradiction "}, PairRecord("a", "b", 0)),
    (PairRecord, {"text1": "a", "text2": "b", "label": "neutral"}, None),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "score": 3.8}, ScoredPairRecord("a", "b", 3.8)),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "score": "-2"}, ScoredPairRecord("a", "b", -2.0)),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "score": 5, "label": 0}, ScoredPairRecord("a", "b", 5.0)),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "label": "entailment"}, ScoredPairRecord("a", "b", 1.0)),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "label": "NEUTRAL"}, None),
    (TripletRecord, {"query": "q", "positive": "p"}, TripletRecord("q", ("p",))),
    (TripletRecord, {"query": "q", "positive": ["p", " r "], "negative": "n"}, TripletRecord("q", ("p", "r"), ("n",))),
    (TripletRecord, {"query": "q", "positive": ("p",), "negative": ["n", "m"]}, TripletRecord("q", ("p",), ("n", "m"))),
    (TripletRecord, {"query": "q", "positive": "p", "negative": None}, TripletRecord("q", ("p",))),
    (TripletRecord, {"query": "q", "positive": "p", "negative": []}, TripletRecord("q", ("p",))),
    (TripletRecord, {"query": "q", "positive": "p", "negative": " "}, TripletRecord("q", ("p",))),
    (DocumentRecord, {"_id": "d7", "text": "b", "title": "A"}, DocumentRecord("d7", "A b")),
    (DocumentRecord, {"_id": 7, "text": "b"}, DocumentRecord("7", "b")),
    (DocumentRecord, {"_id": " d7\t", "text": "b"}, DocumentRecord("d7", "b")),
    (DocumentRecord, {"_id": 7.0, "text": "b"}, DocumentRecord("7", "b")),
    (DocumentRecord, {"_id": "d", "text": "", "title": "A"}, DocumentRecord("d", "A")),
    (DocumentRecord, {"_id": "d", "text": None, "title": "A"}, DocumentRecord("d", "A")),
    (DocumentRecord, {"_id": "d", "text": ""}, DocumentRecord("d", "")),
    (DocumentRecord, {"_id": "d", "text": " \n\u3000", "title": " "}, DocumentRecord("d", "")),
    (DocumentRecord, {"_id": "d", "text": "b", "title": None}, DocumentRecord("d", "b")),
]


@pytest.mark.parametrize(("record", "row", "expected"), GOOD)
def test_good_rows(record, row, expected):
    assert record.parse(row) == expected


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (TextRecord("a"), ("a",)),
        (LabelledRecord("a", "x"), ("a",)),
        (PairRecord("a", "b", 1), ("a", "b")),
        (ScoredPairRecord("a", "b", 1.0), ("a", "b")),
        (TripletRecord("q", ("p", "r"), ("n",)), ("q", "p", "r", "n")),
        (DocumentRecord("d", "a"), ("a",)),
    ],
)
def test_texts_of_a_record(record, texts):
    assert record.texts == texts


# ---- bad values

TEXT_FIELDS = [
    (TextRecord, {"text": "a"}, "text"),
    (LabelledRecord, {"text": "a", "label": "x"}, "text"),
    (PairRecord, {"text1": "a", "text2": "b", "label": 1}, "text1"),
    (PairRecord, {"text1": "a", "text2": "b", "label": 1}, "text2"),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "score": 1}, "text1"),
    (ScoredPairRecord, {"text1": "a", "text2": "b", "score": 1}, "text2"),
    (TripletRecord, {"query": "q", "positive": "p"}, "query"),
    (DocumentRecord, {"_id": "d", "text": "a"}, "text"),
    (DocumentRecord, {"_id": "d", "text": "a"}, "title"),
]
BAD_TEXTS = [
    ("", "is empty: give a text, or on_bad_row=skip"),
    (" \t\n　", "is empty: give a text, or on_bad_row=skip"),
    (None, "is None"),
    (7, "is 7"),
    (NAN, "is nan"),
    (["a"], "is ['a']"),
    ({"a": 1}, "is {'a': 1}"),
    (b"a", "is b'a'"),
    (SURROGATE, "is not valid UTF-8: mend its encoding, or on_bad_row=skip"),
]


@pytest.mark.parametrize(("value", "reason"), BAD_TEXTS)
@pytest.mark.parametrize(("record", "row", "field"), TEXT_FIELDS)
def test_bad_texts(record, row, field, value, reason):
    if record is DocumentRecord and not (value and str(value).strip()):
        return  # may be empty
    with pytest.raises(RowError) as caught:
        record.parse({**row, field: value})
    message = str(caught.value)
    assert message.startswith(f"field {field!r} {reason}")
    if not isinstance(value, str):
        assert message.endswith("not a text")
    message.encode()  # can be printed


@pytest.mark.parametrize(("value", "reason"), BAD_TEXTS)
@pytest.mark.parametrize("field", ["positive", "negative"])
def test_bad_texts_within_a_list(field, value, reason):
    with pytest.raises(RowError) as caught:
        TripletRecord.parse({"query": "q", "positive": ["p"], field: ["a", value]})
    assert str(caught.value).startswith(f"field {field!r} {reason}")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("positive", [], "is an empty list"),
        ("positive", None, "is None, not a text or a list of texts"),
        ("positive", "", "is empty"),
        ("positive", 3, "is 3, not a text or a list of texts"),
        ("positive", {"a": "b"}, "is {'a': 'b'}, not a text or a list"),
        ("negative", 3, "is 3, not a text or a list of texts"),
        ("negative", b"n", "is 110, not a text"),
    ],
)
def test_bad_lists(field, value, reason):
    with pytest.raises(RowError) as caught:
        TripletRecord.parse({"query": "q", "positive": ["p"], field: value})
    assert str(caught.value).startswith(f"field {field!r} {reason}")


@pytest.mark.parametrize("value", [NAN, INF, -INF, "nan", "inf", "1e999"])
def test_scores_that_are_not_finite(value):
    with pytest.raises(RowError, match=r"^field 'score' is .*, not a finite number$"):
        ScoredPairRecord.parse({"text1": "a", "text2": "b", "score": value})


@pytest.mark.parametrize("value", ["two", "", None, [1], {}, "1_0", 10**400])
def test_scores_that_are_no_number(value):
    with pytest.raises(RowError, match=r"^field 'score' is .*, not a number: write one, such as 0\.8, or on_bad_row=skip$"):
        ScoredPairRecord.parse({"text1": "a", "text2": "b", "score": value})


@pytest.mark.parametrize("value", [-1, 0.5, NAN, "很像", "", None, [1], "neutral-ish", 10**30, SURROGATE])
def test_labels_that_are_not_binary(value):
    with pytest.raises(
        RowError, match=r"^field 'label' is .* it must be 1, 0, or a word such as .* what others mean$"
    ) as caught:
        PairRecord.parse({"text1": "a", "text2": "b", "label": value})
    str(caught.value).encode()


@pytest.mark.parametrize("value", [True, False, 1.5, NAN, INF, None, ["x"], {}])
def test_classes_that_are_neither_word_nor_whole_number(value):
    with pytest.raises(RowError, match=r"^field 'label' is .*, not a class: give a word or a whole number$"):
        LabelledRecord.parse({"text": "a", "label": value})


@pytest.mark.parametrize(("value", "reason"), [(" ", "is empty"), (SURROGATE, "is not valid UTF-8")])
def test_classes_that_are_no_word(value, reason):
    with pytest.raises(RowError, match=f"^field 'label' {reason}"):
        LabelledRecord.parse({"text": "a", "label": value})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"_id": "", "text": "a"}, "field '_id' is empty"),
        ({"_id": None, "text": "a"}, "field '_id' is None, not a name"),
        ({"_id": 7.5, "text": "a"}, "field '_id' is 7.5, not a name"),
        ({"_id": SURROGATE, "text": "a"}, "field '_id' is not valid UTF-8"),
        ({"_id": True, "text": "a"}, "field '_id' is True, not a name"),
        ({"_id": "d", "text": "a", "title": ["t"]}, r"field 'title' is \['t'\], not a text"),
    ],
)
def test_bad_documents(row, reason):
    with pytest.raises(RowError, match=f"^{reason}"):
        DocumentRecord.parse(row)


def test_a_neutral_row_is_checked_like_any_other():
    for record in (PairRecord, ScoredPairRecord):
        with pytest.raises(RowError, match="'text2' is empty"):
            record.parse({"text1": "a", "text2": "", "label": "neutral"})


@pytest.mark.parametrize(
    ("record", "row", "field"),
    [
        (TextRecord, {"content": "a", "x": 1}, "text"),
        (LabelledRecord, {"text": "a", "intent": "b"}, "label"),
        (PairRecord, {"text1": "a", "sentence2": "b", "label": 1}, "text2"),
        (ScoredPairRecord, {"text1": "a", "text2": "b", "gold": 1}, "score"),
        (TripletRecord, {"query": "a", "pos": "b"}, "positive"),
        (DocumentRecord, {"id": "a", "text": "b"}, "_id"),
        (TextRecord, {}, "text"),
    ],
)
def test_a_row_that_lacks_a_field_names_those_present_and_the_remedy(record, row, field):
    with pytest.raises(RowError) as caught:
        record.parse(row)
    assert str(caught.value) == (f"field {field!r} is missing; the row has {sorted(row)}: give it one, or on_bad_row=skip")


def test_a_long_bad_value_is_cut():
    with pytest.raises(RowError) as caught:
        TextRecord.parse({"text": ["x" * 10_000]})
    assert len(str(caught.value)) < 120


# ---- hashes


def test_text_id_is_this_number_for_ever():
    """Another value would make cached rows and judgements of older runs disagree."""
    assert text_id("今天天气很好 Ａbc") == 7546703217472756572
    assert text_id("a") == 3405396810240292928


@pytest.mark.parametrize(
    "variant", ["abc 天気 12", "ABC 天気 12", "ａＢｃ　天気　１２", "  abc \t\n天気  12 ", "Abc\u00a0天気\u200912"]
)
def test_text_id_ignores_case_width_and_white_space(variant):
    assert text_id(variant) == text_id("abc 天気 12")


@pytest.mark.parametrize("other", ["abc天気 12", "abc 天氣 12", "abc 天気 12.", "abc 天気 1２3", "12 abc 天気", ""])
def test_text_id_tells_other_texts_apart(other):
    assert text_id(other) != text_id("abc 天気 12")


def test_text_id_folds_more_than_lower_case():
    assert text_id("STRASSE") == text_id("straße")
    assert text_id("e\u0301") == text_id("é")


@given(st.text())
def test_text_id_is_a_64_bit_hash_of_the_folded_text(text):
    found = text_id(text)
    assert -(2**63) <= found < 2**63
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()
    digest = hashlib.blake2b(folded, digest_size=8).hexdigest()
    little = bytes.fromhex(digest)[::-1].hex()
    assert found % 2**64 == int(little, 16)


def test_text_ids_spread_over_both_signs():
    found = [text_id(str(i)) for i in range(1000)]
    assert len(set(found)) == 1000
    assert 400 < sum(i < 0 for i in found) < 600
