"""The page of a report: parsed, and opened in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from test_runs import a_row, a_run, an_evaluation, write

from acge_lightning.errors import InputError
from acge_lightning.report.page import report
from acge_lightning.report.tables import evaluation_tables

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert('甲')</script>&amp;\"' <img src=x onerror=alert(1)>"
VOID = {"meta", "img", "link", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Tags, tables (caption -> rows of cells) and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.sections, self.open, self.labels = [], {}, {}, [], []
        self.classes = {}
        self.feed(text)
        assert self.open == [], "each tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]
        given = dict(attrs)
        if tag == "section":
            self.section = given["id"]
            self.sections[self.section] = ""
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.kind = given.get("class", "")
        if tag == "svg" and "aria-label" in given:
            self.labels.append(given["aria-label"])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.classes[self.rows[-1][-1]] = self.kind
        if tag == "table":
            self.tables.setdefault(self.caption, []).append(self.rows)

    def handle_data(self, data):
        if "section" in self.open:
            self.sections[self.section] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "caption":
            self.caption = data


def an_example(text):
    hits = [{"text": text, "score": 0.91234, "right": False}, {"text": "对", "score": 0.5, "right": True}]
    return {
        "points": [[0, 1, text], [1, 0, "b"]],
        "neighbours": [{"query": f"问 {text}", "hits": hits}],
        "errors": [{"text": text, "expected": "好评", "found": "差评"}],
    }


@pytest.fixture
def paths(tmp_path):
    """Two runs and an evaluation with everything that a page can show."""
    one, two = a_run(tmp_path / "1", "one"), a_run(tmp_path / "2", EVIL, seed=1)
    write(one / "forgetting.json", {"tasks": ["a", EVIL], "matrix": [[0.81, None], [0.7, 0.75]]})
    write(one / "funnel.json", {"points": [{"label": EVIL, "recall": 0.98, "speedup": 9.1}]})
    (two / "export" / "training.json").unlink()
    write(two / "result.json", "{")
    rows = [a_row(dim=dim, value=value) for dim, value in ((64, 0.8), (16, 0.6))]
    rows += [a_row(dataset="bad", value=None, error=f"broken {EVIL}"), a_row("tfidf", "bad", dim=None, value=0.2)]
    rows += [a_row("tfidf", dim=None, value=0.5, note="3 rows left out"), a_row("other", value=0.3)]
    spread = {"difference": 0.3, "low": -0.1, "high": 0.4}
    result = an_evaluation(*rows)
    result["differences"] = [{"encoder": "mini", "against": "tfidf", "family": "sts", "dataset": "stsb"} | spread]
    result["differences"][0]["unseen"] = {"difference": 0.1, "low": -0.2, "high": 0.3}
    result["leaks"] = [{"encoder": "mini", "family": "sts", "dataset": "stsb", "rows": 1352, "found": 12, "unseen": 0.6}]
    result["encoders"][0]["trained_on"] = {"faq": {"train": 1000}, "note": EVIL}
    pair = {"errors": [{"text": "left", "text2": "right", "expected": "0.9", "found": "0.1"}]}
    result["examples"] = {"mini": {"stsb": an_example(EVIL), "sts/x": pair}, "tfidf": {"stsb": an_example("plain")}}
    return {"one": str(one), EVIL: str(two), "scores": str(write(tmp_path / "some.json", result))}


@pytest.fixture
def made(paths, tmp_path):
    report(paths, tmp_path / "sub" / "report.html")
    return (tmp_path / "sub" / "report.html").read_text(encoding="utf-8")


def test_tables(made):
    page = Page(made)
    [runs] = page.tables["Runs"]
    assert runs[0] == ["run", "val/mean before", "val/mean after", "steps", "training rows"]
    assert runs[1:] == [["one", "0.2500", "0.5000", "1,610", "1,000"], [EVIL, "–", "–", "–", "–"]]
    assert page.tables["Evaluations"] == [[["results", "encoders"], ["scores", "mini, tfidf, other"]]]
    assert page.tables["What differs"] == [[["key", "one", EVIL], ["name", "one", EVIL], ["seed", "0", "1"]]]
    assert page.tables["Rows of each task: train / dev / test"][0][1:] == [["faq", "1,000 / 150 / –"], ["sts", "– / 30 / 40"]]
    assert page.tables["Before → after"] == [[["score", "one"], ["val/mean", "0.2500 → 0.5000 (+0.2500)"]]]
    assert page.tables["Scores"] == [
        [
            ["data set", "mini (64)", "tfidf", "other (64)"],
            ["sts/bad, spearman", "error", "0.2000", "–"],
            ["sts/stsb, spearman", "0.8000 †0.9 % seen; 0.6000 on unseen rows", "0.5000*", "0.3000"],
            ["mean of sts", "0.8000 (1 of 2) †", "0.3500", "0.3000 (1 of 2)"],
            ["mean of families", "0.8000 (1 of 2) †", "0.3500", "0.3000 (1 of 2)"],
        ]
    ]
    assert (page.classes["error"], page.classes["0.2000"], page.classes["12"]) == ("bad", "", "bad")
    seen = "0.8000 †0.9 % seen; 0.6000 on unseen rows"
    assert (page.classes[seen], page.classes["0.5000*"]) == ("", "best"), "a score of rows seen in training is not the best"
    assert page.tables["Leaks"][0][1] == ["mini", "sts/stsb", "1,352", "12", "0.9 %"]
    assert page.tables["Differences"][0][1:] == [
        ["mini", "tfidf", "sts/stsb", "+0.3000 †", "-0.1000", "+0.4000"],
        ["mini", "tfidf", "sts/stsb, unseen rows", "+0.1000", "-0.2000", "+0.3000"],
    ]
    [matrix] = page.tables["one: after training on (line), score of (column)"]
    assert matrix == [["", "a", EVIL], ["a", "0.8100", "–"], [EVIL, "0.7000", "0.7500"]]
    errors = " ".join(page.sections["worst-errors"].split())
    assert f"{EVIL} expected 好评 found 差评" in errors
    assert "left right score in the file 0.9 cosine 0.1" in errors


def test_sections_in_order(made):
    page = Page(made)
    assert list(page.sections) == [
        "overview",
        "scores-of-training",
        "scores-of-evaluation",
        "differences",
        "leak-check",
        "matryoshka-dims",
        "forgetting",
        "curves",
        "search-in-steps",
        "worst-errors",
        "neighbours",
        "embeddings",
        "training-data",
        "settings",
    ]
    links = [given["href"] for tag, given in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in page.sections]
    overview = " ".join(page.sections["overview"].split())
    assert "result.json is damaged: Expecting" in overview
    assert "training.json is missing" in overview
    scores = page.sections["scores-of-evaluation"]
    assert f"mini on sts/bad at 64: broken {EVIL}" in scores
    assert "* tfidf on sts/stsb: 3 rows left out" in scores
    unknown = "Leaks are not known, for want of a record of training data: other."
    assert unknown in page.sections["leak-check"]
    assert "faq:\n  train: 1000" in page.sections["training-data"]
    neighbours = " ".join(page.sections["neighbours"].split())
    assert f"问 {EVIL} 0.9123 {EVIL} 0.5000 ✓ 对" in neighbours
    assert [text in page.sections["embeddings"] for text in (EVIL, "plain", "mini", "tfidf")] == [True] * 4


def test_no_text_becomes_a_tag_and_nothing_is_fetched(made):
    page = Page(made)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "b", "metadata", "image"}
    for _, given in page.tags:
        assert not [key for key in given if key.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            assert given.get(key, "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", made)
    policies = [given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_nothing_in_a_page_is_hidden_or_turned_around(tmp_path):
    name = '\u202e\x1b[2J\x00</script><svg onload=x>"'
    rows = [a_row(name, name, value=v, dim=dim) for v, dim in ((0.5, 8), (0.6, 16))]
    write(tmp_path / "results.json", an_evaluation(*rows))
    report({name: str(tmp_path)}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search("[\u202e\x1b\x00]", text)
    assert r"\u202e\x1b[2J\x00&lt;/script&gt;&lt;svg onload=x&gt;" in text
    assert "<svg onload" not in text


def test_each_picture_says_what_it_shows(made):
    page = Page(made)
    assert len(page.labels) == sum(given.get("role") == "img" for tag, given in page.tags if tag == "svg") == 10
    assert any(f"{EVIL} from 2.5000 to 1.5000 at step 10" in label for label in page.labels)
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert not [name for name in ids if re.fullmatch(r"(figure|axes|text|line2d|patch)_\d+", name)]


def test_an_encoder_that_lacks_a_data_set_is_not_the_best(tmp_path):
    rows = [a_row(name, dataset, value=v) for name, v in (("a", 0.5), ("b", 0.4)) for dataset in ("x", "y")]
    write(tmp_path / "results.json", an_evaluation(*rows, a_row("c", "x", value=0.9)))
    report(str(tmp_path), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tables["Scores"][0][-2] == ["mean of sts", "0.5000", "0.4000", "0.9000 (1 of 2)"]
    assert [page.classes[text] for text in ("0.5000", "0.4000", "0.9000 (1 of 2)")] == ["mean best", "mean", "mean"]
    assert page.classes["0.9000"] == "best", "of the data set that it has"


def test_a_run_alone_has_only_what_it_has(tmp_path):
    write(tmp_path / "result.json", {"before": {}, "after": {"val/mean": 0.125, "val/a/ap": 0.25}})
    [run] = report(tmp_path.as_posix(), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert list(page.sections) == ["overview", "scores-of-training", "settings"]
    assert page.tables["Before → after"][0][1] == ["val/mean", "0.1250"]
    assert len(run.remarks) == 3
    assert all(remark in page.sections["overview"] for remark in run.remarks)


def a_scored_run(folder, name, data, seen=0, **after):
    """A run whose scores come from the rows of this hash; `data` None: it has no record of them."""
    rows = {"faq": {"family": "sts", "rows": 100, "hash": data, "seen": seen}}
    scores = {key.replace("_", "/", 1): value for key, value in after.items()}
    content = {"before": dict.fromkeys(scores, 0.0), "after": scores}
    write(a_run(folder, name) / "result.json", content | ({"data": {"val": rows, "test": rows}} if data else {}))
    return str(folder)


def shown(paths, out):
    report(paths, out)
    return Page(out.read_text(encoding="utf-8"))


def test_the_best_is_the_lower_one_where_lower_is_better(tmp_path):
    scores = [("a", 0.0005, 0.6), ("b", 0.0015, 0.7)]
    paths = [a_scored_run(tmp_path / n, n, "h", test_forgetting=lost, test_gain=got) for n, lost, got in scores]
    page = shown(paths, tmp_path / "page.html")
    marked = [page.classes[f"0.0000 → {value:.4f} (+{value:.4f})"] for value in (0.0005, 0.0015, 0.6, 0.7)]
    assert marked == ["best", "", "", "best"]
    assert "Of forgetting less is better." in page.sections["scores-of-training"]


def test_no_best_among_different_rows(tmp_path):
    scores = [("a", "h1", 0.5), ("b", "h2", 0.9), ("c", None, 0.95), ("d", None, 0.6)]
    paths = [a_scored_run(tmp_path / n, n, digest, val_mean=value) for n, digest, value in scores]
    page = shown(paths, tmp_path / "page.html")
    assert [page.classes[f"{value:.4f}"] for _, _, value in scores] == [""] * 4
    words = "scored on different dev rows, so no best is marked between them. ?: not recorded; A: faq (100 rows); B: faq"
    assert words in page.sections["overview"]
    assert page.tables["Before → after"][0][1] == ["dev rows", "A", "B", "?", "?"]
    two_of_one = [*paths, a_scored_run(tmp_path / "e", "e", "h1", val_mean=0.55)]
    page = shown(two_of_one, tmp_path / "page.html")
    assert [page.classes[f"{value:.4f}"] for value in (0.5, 0.55, 0.9, 0.95)] == ["", "best", "", ""]
    page = shown([paths[0], two_of_one[-1]], tmp_path / "page.html")
    assert "different" not in page.sections["overview"]
    assert page.tables["Before → after"][0][1][0] == "val/mean"


def test_a_score_of_rows_seen_in_training_is_marked_and_not_the_best(tmp_path):
    paths = [
        a_scored_run(tmp_path / n, n, "h", seen, val_mean=v) for n, seen, v in (("a", 0, 0.5), ("b", 0, 0.4), ("c", 27, 0.9))
    ]
    page = shown(paths, tmp_path / "page.html")
    assert page.tables["Before → after"][0][1][3] == "0.0000 → 0.9000 (+0.9000) †27.0 % seen"
    marked = [page.classes[text] for text in ("0.5000", "0.4000", "0.9000 †27.0 % seen")]
    assert marked == ["best", "", ""]


def test_settings_are_folded(made):
    page = Page(made)
    settings = made[made.index('<section id="settings"') :]
    assert settings.index("<details>") < settings.index("<table>")
    assert "Folders and versions" in page.sections["settings"]


def test_it_is_the_same_each_time(paths, tmp_path):
    for name in ("1.html", "2.html"):
        report(paths, tmp_path / name)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_nowhere_to_write(tmp_path):
    write(tmp_path / "file", "")
    with pytest.raises(InputError, match=r"file.page\.html cannot be written"):
        report(str(a_run(tmp_path / "run")), tmp_path / "file" / "page.html")
    with pytest.raises(InputError, match="is not there"):
        report("nowhere", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


MEASURE = """<script>
const widths = [], wrong = [];
document.querySelectorAll("details").forEach(fold => fold.open = true);
for (const picture of document.querySelectorAll("figure > svg")) {
  const box = picture.getBoundingClientRect(), drawn = picture.querySelector("g").getBoundingClientRect();
  if (box.width < 200 || box.height < 60 || drawn.width < 150 || !picture.querySelector("path")) wrong.push(picture.ariaLabel);
}
document.title = JSON.stringify({pictures: document.querySelectorAll("figure > svg").length, wrong,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser(made, tmp_path):
    """No error on the console, and each picture is drawn; at the width of a phone nothing sticks out."""
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(made, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900"]
    done = subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert picture.stat().st_size > 5000
    assert "CONSOLE" not in done.stderr
    measured = made.replace("default-src 'none'; ", "").replace("</body>", MEASURE + "</body>")
    page.write_text(measured, encoding="utf-8")
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert found == {"pictures": 10, "wrong": [], "wide": 0}


def test_what_the_mean_of_families_leaves_out_is_said(tmp_path):
    rows = [a_row(value=0.2), a_row(dataset="faq", value=0.8) | {"family": "triplet", "metric": "ndcg"}]
    write(tmp_path / "results.json", an_evaluation(*rows, a_row("other", value=0.4)))
    report([tmp_path / "results.json"], tmp_path / "report.html")
    lines = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables["Scores"][0]
    assert lines[-1] == ["mean of families without triplet", "0.2000", "0.4000"], "triplets that one lacks take nothing from it"
    evaluation = json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) | {"differences": [], "leaks": []}
    by_family = evaluation_tables(evaluation)[1]
    assert [column.header for column in by_family.columns] == ["encoder", "dim", "sts", "triplet", "mean without triplet"]
