"""Positives of unlabelled text, from what cutting a folder of texts gives."""

from itertools import pairwise

from acge_lightning import load
from acge_lightning.mining.negatives.positives import headings_and_sections, neighbouring_passages, titles_and_bodies
from acge_lightning.search.cutting import check_sizes, cut_documents
from acge_lightning.search.documents import read_documents
from acge_lightning.search.text_files import list_files

MARKDOWN = "# 售后\n\n## 退货\n\n七天内可以退货。\n\n## 退款\n\n三个工作日内原路退回。\n"


def test_headings_and_sections_of_a_markdown_file(tmp_path, small_encoder):
    (tmp_path / "a.md").write_text(MARKDOWN, encoding="utf-8")
    encoder = load(small_encoder)
    documents = read_documents(list_files(tmp_path), "text", "raise", 0.01)
    passages = list(cut_documents(documents, encoder.tokenize, *check_sizes(encoder, 16)))
    pairs = list(headings_and_sections((passage.place.path, passage.text) for passage in passages))
    assert len(pairs) == len(passages) >= 2
    assert ("售后 > 退货", "七天内可以退货。") in [(query, text.splitlines()[-1]) for query, text in pairs]
    following = list(neighbouring_passages([[passage.text for passage in passages]]))
    assert following == [(a.text.strip(), b.text.strip()) for a, b in pairwise(passages)]


def test_pairs_that_teach_nothing_are_none():
    assert list(titles_and_bodies([("a title", " a title "), ("", "x y"), ("t", "one letter"), ("two", "  ")])) == []
    assert list(neighbouring_passages([[], ["alone"], ["same", "same"], ["one", "", "two"]])) == []
    assert list(headings_and_sections([((), "text without a heading")])) == []
