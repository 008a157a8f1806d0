"""docs/from-sentence-transformers.md: their names are those of the version that is installed, and none is left out."""

import dataclasses
import re

import pages
import pytest

theirs = pytest.importorskip("sentence_transformers.sentence_transformer")
PAGE = (pages.ROOT / "docs" / "from-sentence-transformers.md").read_text(encoding="utf-8")


def column(section, number):
    """The names in backticks of a column of the table below a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {name for cells in lines for name in re.findall(r"`([\w.]+)`", cells[number])}


def test_arguments():
    from sentence_transformers import SentenceTransformerTrainingArguments

    fields = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    assert len(column("Arguments of the trainer", 0)) > 25
    assert column("Arguments of the trainer", 0) <= fields


def test_losses():
    from sentence_transformers.sentence_transformer import losses

    from acge_lightning import losses as ours

    named = {name for name in column("Losses", 0) if name.endswith(("Loss", "Negatives"))}
    assert named == {name for name in losses.__all__ if name.endswith(("Loss", "Negatives"))}
    classes = {name for name in column("Losses", 1) if name[0].isupper()}
    assert classes
    assert classes <= set(ours.__all__)


def test_samplers():
    from sentence_transformers.base.sampler import BatchSamplers, MultiDatasetBatchSamplers

    members = {f"{kind.__name__}.{member.name}" for kind in (BatchSamplers, MultiDatasetBatchSamplers) for member in kind}
    named = column("Samplers", 0)
    assert {name if "." in name else f"BatchSamplers.{name}" for name in named} == members


def test_evaluators():
    from sentence_transformers.sentence_transformer import evaluation

    bases = {"BaseEvaluator", "SentenceEvaluator"}
    assert column("Evaluators", 0) == {name for name in evaluation.__all__ if "Evaluator" in name} - bases
