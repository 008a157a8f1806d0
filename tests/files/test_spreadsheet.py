"""Tables that a spreadsheet opens: no cell is a formula, and numbers stay numbers."""

import csv
import math

import pytest

from acge_lightning.evaluation import results
from acge_lightning.files.spreadsheet import cell, write_csv
from acge_lightning.report.tables import summarise

FORMULAS = (
    "=cmd()",
    "=1+1",
    "+1+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\r=1",
    "\n=1",
    "＝1",
    "\ufeff=1",
    "-",
    "+x=1",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.5", "+1e-7", "12", "-.5", "a=b", "a-b", "", -0.5, 3, None, math.nan, True, "退货"])
def test_numbers_and_other_texts_stay(value):
    assert cell(value) is value


def test_heads_and_rows_are_safe(tmp_path):
    write_csv(tmp_path / "a.csv", ["=a", "n"], [["=b", -0.5]])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as lines:
        assert list(csv.reader(lines)) == [["'=a", "n"], ["'=b", "-0.5"]]


def test_names_of_data_sets_and_errors_are_no_formulas(tmp_path):
    row = {
        "encoder": "@e",
        "family": "sts",
        "dataset": "=cmd()",
        "dim": 8,
        "metric": "m",
        "value": -0.25,
        "error": "+1+1",
        "x": 1,
    }
    results.write_csv(tmp_path / "results.csv", [row])
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as lines:
        (found,) = csv.DictReader(lines)
    assert (found["encoder"], found["dataset"], found["error"], found["value"]) == ("'@e", "'=cmd()", "'+1+1", "-0.25")
    assert found["note"] == ""
    assert "x" not in found


def test_the_summary_of_a_multirun(tmp_path):
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- =cmd()\n")
    summarise(tmp_path)
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as lines:
        assert list(csv.reader(lines))[1] == ["0", "'=cmd()", "nan"]
