"""One HTML page that compares runs and evaluations, with nothing beside it: no script, no network. Needs matplotlib, Jinja."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from acge_lightning.errors import InputError
from acge_lightning.runs import Run, read_runs
from acge_lightning.sections import sections

try:
    from jinja2 import Environment, StrictUndefined
except ModuleNotFoundError as error:
    raise InputError("a report needs matplotlib and Jinja: pip install 'acge-lightning[report]'") from error


def report(paths: str | Sequence[str] | Mapping[str, str], out: str | Path) -> list[Run]:
    """Write the page.

    Args:
        paths: folders of runs and `results.json` files, as in `read_runs`.
        out: the HTML file.

    Returns:
        The runs, with a remark on each file that was missing or damaged.

    Raises:
        InputError: nothing to compare, or nowhere to write.
    """
    runs = read_runs(paths)
    out = Path(out).expanduser()
    text = page(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error.strerror}") from error
    return runs


def page(runs: Sequence[Run]) -> str:
    """The text of the page; a section for whatever there is data for."""
    parts = {re.sub(r"\W+", "-", title.lower()): (title, found) for title, found in sections(runs).items() if found}
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(title=", ".join(run.name for run in runs), sections=parts)
    sections = {re.sub(r"\W+", "-", title.lower()): (title, part) for title, part in parts.items() if part}
    return environment.from_string(template).render(title=", ".join(run.name for run in runs), sections=sections)


# ---- parts


def _text(text: str, kind: str = "text") -> Part:
    return {"kind": kind, "text": text}


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Part:
    """Cells are texts, or pairs of a text and what it is: `best`, `bad`, `mean`."""
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    return {"kind": "table", "caption": caption, "head": head, "rows": cells}


def _fold(title: str, parts: Sequence[Part]) -> Part:
    return {"kind": "fold", "title": title, "parts": parts}


def _gallery(drawn: Pictures, prefix: str, text: str, shared: bool = True) -> list[Part]:
    """The figures whose names begin so; a shared legend stands once above them."""
    chosen = [figure for name, figure in drawn.items() if name.startswith(prefix)]
    legends = [_legend(figure) for figure in chosen]
    together = list(dict.fromkeys(item for legend in legends for item in legend)) if shared else []
    pictures = [(svg(figure), [] if shared else legend) for figure, legend in zip(chosen, legends, strict=True)]
    return [_text(text), {"kind": "pictures", "pictures": pictures, "legend": together}] if chosen else []


def _legend(figure: Figure) -> list[tuple[str, str, str, str]]:
    """Name, colour, dashes and dot of each line of the legend."""
    dots, dashes = dict(zip("os^Dv", "●■▲◆▼", strict=True)), {"-": "", "--": "6 3", "-.": "7 3 1 3", ":": "2 2"}
    return [
        (text.get_text(), line.get_color(), dashes.get(line.get_linestyle(), ""), dots.get(line.get_marker(), ""))
        for legend in figure.legends
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    ]


def svg(figure: Figure) -> Markup:
    """A figure as inline SVG: real text, the colour of the page's ink, the figure's label for screen readers, no legend."""
    for legend in list(figure.legends):
        legend.remove()
    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has one
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z]\w*_\d+"', "", text).replace(INK, "currentColor")
    width, height = figure.get_size_inches() * 72
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(figure.get_label())}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1))  # matplotlib has escaped its texts


def _number(value: float | None, form: str = ".4f") -> str:
    return _NONE if value is None else format(value, form)


# ---- sections


def _overview(runs: Sequence[Run]) -> list[Part]:
    lines: dict[str, Callable[[Run], str]] = {
        "path": lambda run: str(run.path),
        "val/mean before": lambda run: _number(run.before.get("val/mean")),
        "val/mean after": lambda run: _number(run.after.get("val/mean")),
        "test/mean after": lambda run: _number(run.after.get("test/mean")),
        "last train/loss": lambda run: _number(run.curves["train/loss"][-1][1]) if run.curves.get("train/loss") else _NONE,
        "steps": lambda run: _number(run.training.get("steps"), ",.0f"),
        "seed": lambda run: str(run.config.get("seed", _NONE)),
        "encoder": lambda run: _encoder(run.config.get("encoder")),
        "training tasks": lambda run: _number(len(_train_rows(run)) or None, "d"),
        "training rows": lambda run: _number(sum(_train_rows(run)) or None, ",.0f"),
        "versions": lambda run: ", ".join(f"{k} {v}" for k, v in run.training.get("versions", {}).items()) or _NONE,
        "evaluated encoders": lambda run: ", ".join(card["name"] for card in run.evaluation.get("encoders", [])) or _NONE,
    }
    rows = [[name, *(told(run) for run in runs)] for name, told in lines.items()]
    table = _table("Runs", ["", *(run.name for run in runs)], [row for row in rows if set(row[1:]) != {_NONE}])
    return [*(_text(f"{run.name}: {remark}.", "warning") for run in runs for remark in run.remarks), table]


def _encoder(settings: Any) -> str:
    if not isinstance(settings, dict):
        return _NONE
    name = str(settings.get("_target_", "")).rpartition(".")[2]
    return " ".join(str(part) for part in (name, settings.get("path"), settings.get("dim")) if part) or _NONE


def _train_rows(run: Run) -> list[float]:
    return [roles["train"] for roles in run.training.get("data", {}).values() if "train" in roles]


def _leaks(found: Mapping[str, Any]) -> list[Part]:
    """Which evaluated rows an encoder was trained on; and who does not say what it was trained on."""
    bad = [row for row in found["leaks"] if row["found"]]
    clean = [name for name in dict.fromkeys(r["encoder"] for r in found["leaks"]) if name not in {r["encoder"] for r in bad}]
    known = {row["encoder"] for row in found["leaks"]}
    silent = [card["name"] for card in found["encoders"] if card["dim"] is not None and card["name"] not in known]
    parts = []
    if bad:
        rows = [[r["encoder"], told_dataset(r), f"{r['rows']:,}", (f"{r['found']:,}", "bad"), _share(r)] for r in bad]
        head = ["encoder", "data set", "evaluated", "of them trained on", "share"]
        parts.append(_text("Some evaluated rows are training data: the scores of these data sets are too high.", "warning"))
        parts.append(_table("Leaks", head, rows))
    if clean:
        parts.append(_text(f"No evaluated row is among the recorded training data of {', '.join(clean)}."))
    if silent:
        parts.append(_text(f"Leaks are not known, for want of a record of training data: {', '.join(silent)}.", "warning"))
    return parts


def _share(row: Row) -> str:
    return f"{row['found'] / row['rows']:.4f}" if row["rows"] else _NONE


def _training_data(runs: Sequence[Run], found: Mapping[str, Any]) -> list[Part]:
    runs = [run for run in runs if run.training.get("data")]
    tasks = dict.fromkeys(task for run in runs for task in run.training["data"])
    rows = [[task, *(_roles(run.training["data"].get(task)) for run in runs)] for task in tasks]
    parts = [_table("Rows of each task: train / dev / test", ["task", *(run.name for run in runs)], rows)] if rows else []
    records = {card["name"]: card["trained_on"] for card in found["encoders"] if card.get("trained_on")}
    return [*parts, *(_fold(f"{name} was trained on", [_text(_yaml(record), "pre")]) for name, record in records.items())]


def _roles(roles: Mapping[str, float] | None) -> str:
    return _NONE if roles is None else " / ".join(_number(roles.get(role), ",.0f") for role in ("train", "dev", "test"))


def _training_scores(runs: Sequence[Run], drawn: Pictures) -> list[Part]:
    runs = [run for run in runs if run.after or run.before]
    keys = sorted({key for run in runs for key in (*run.after, *run.before)}, key=lambda k: (not k.endswith("/mean"), k))
    head = ["score", *(run.name for run in runs)]
    means = _table("Before → after", head, [_before_after(key, runs) for key in keys if key.count("/") == 1])
    tasks = _table("Before → after", head, [_before_after(key, runs) for key in keys if key.count("/") > 1])
    folded = [_fold("Scores of single tasks", [tasks])] if tasks["rows"] else []
    return [means, *_gallery(drawn, "scores", ""), *folded] if keys else []


def _before_after(key: str, runs: Sequence[Run]) -> list[Any]:
    best = _best([run.after.get(key) for run in runs])
    cells: list[Any] = [key]
    for run in runs:
        old, new = run.before.get(key), run.after.get(key)
        change = "" if old is None or new is None else f" ({new - old:+.4f})"
        text = f"{_number(old)} → {_number(new)}{change}" if old is not None else _number(new)
        cells.append((text, "best" if new is not None and new == best else ""))
    return cells


def _best(values: Sequence[float | None]) -> float | None:
    """The largest, where there is something to choose."""
    there = [value for value in values if value is not None and value == value]
    return max(there) if len(there) > 1 else None


def _evaluation_scores(found: Mapping[str, Any]) -> list[Part]:
    """A line a data set and a column an encoder, at full size; means of families; what failed, in words."""
    names = [card["name"] for card in found["encoders"]]
    full = {name: full_dim(found, name) for name in names}
    means = {name: family_means(found, name, full[name]) for name in names}
    cells = {(r["encoder"], r["family"], r["dataset"]): r for r in found["rows"] if r["error"]}
    cells |= {(r["encoder"], r["family"], r["dataset"]): r for r in found["rows"] if r["dim"] == full[r["encoder"]]}
    datasets = sorted({(row["family"], row["dataset"], row["metric"]) for row in found["rows"]})
    rows = []
    for family, group in groupby(datasets, key=lambda dataset: dataset[0]):
        sets = list(group)
        rows += [[f"{family}/{name}, {metric}", *_scores_of(names, cells, (family, name))] for _, name, metric in sets]
        rows.append(_mean_line(family, means, {n: _count(cells, n, sets) for n in names}, len(sets)))
    rows.append(_mean_line("families", means, {n: _count(cells, n, datasets) for n in names}, len(datasets)))
    told = [_text(f"{r['encoder']} on {told_dataset(r)}: {r['error']}", "warning") for r in cells.values() if r["error"]]
    told += [_text(f"* {r['encoder']} on {told_dataset(r)}: {r['note']}") for r in cells.values() if r["note"]]
    intro = _text("Each encoder at its full size; the best of a line is bold.")
    return [intro, _table("Scores", ["data set", *_headings(found, full)], rows), *told]


def _headings(found: Mapping[str, Any], full: Mapping[str, float | None]) -> list[str]:
    return [card["name"] + (f" ({full[card['name']]:g})" if full[card["name"]] else "") for card in found["encoders"]]


def _scores_of(names: Sequence[str], cells: Mapping[tuple[str, ...], Row], dataset: tuple[str, str]) -> list[Any]:
    found = [cells.get((name, *dataset)) or {"value": None, "error": None, "note": None} for name in names]
    best = _best([row["value"] for row in found])
    shown = []
    for row in found:
        kind = "bad" if row["error"] else "best" if row["value"] is not None and row["value"] == best else ""
        shown.append(("error" if row["error"] else _number(row["value"]) + ("*" if row["note"] else ""), kind))
    return shown


def _count(cells: Mapping[tuple[str, ...], Row], encoder: str, datasets: Sequence[tuple[str, ...]]) -> int:
    """On how many of the data sets an encoder has a score."""
    return sum(cells.get((encoder, family, name), {}).get("value") is not None for family, name, _ in datasets)


def _mean_line(of: str, means: Mapping[str, Mapping[str, float]], counts: Mapping[str, int], total: int) -> list[Any]:
    """Means; one that lacks some of the data sets says so, and is not the best."""
    values = {name: found.get("mean" if of == "families" else of) for name, found in means.items()}
    best = _best([value for name, value in values.items() if counts[name] == total])
    cells: list[Any] = [(f"mean of {of}", "mean")]
    for name, value in values.items():
        short = "" if value is None or counts[name] == total else f" ({counts[name]} of {total})"
        cells.append((_number(value) + short, "mean best" if value is not None and value == best and not short else "mean"))
    return cells


def _differences(rows: Sequence[Row], drawn: Pictures) -> list[Part]:
    text = "An interval in colour does not hold 0: better is blue, worse is orange."
    cells = [
        [r["encoder"], r["against"], told_dataset(r), f"{r['difference']:+.4f}", f"{r['low']:+.4f}", f"{r['high']:+.4f}"]
        for r in rows
    ]
    head = ["encoder", "less", "data set", "difference", "from", "to"]
    return [*_gallery(drawn, "differences/", text), _fold("As a table", [_table("Differences", head, cells)])] if rows else []


def _curves(drawn: Pictures) -> list[Part]:
    first = {name: figure for name, figure in drawn.items() if name in ("curves/train/loss", "curves/val/mean")}
    others = {name: figure for name, figure in drawn.items() if name not in first}
    folded = _gallery(others, "curves/", "")
    text = "Long curves are shown as means of neighbouring points."
    return [*_gallery(first, "curves/", text), *([_fold("Single tasks and families", folded)] if folded else [])]


def _forgetting(runs: Sequence[Run], drawn: Pictures) -> list[Part]:
    tables = []
    for run in runs:
        if run.forgetting:
            tasks, matrix = run.forgetting["tasks"], run.forgetting["matrix"]
            rows = [[task, *map(_number, row)] for task, row in zip(tasks, matrix, strict=True)]
            tables.append(_table(f"{run.name}: after training on (line), score of (column)", ["", *tasks], rows))
    text = "Line: after training on this task; column: the score of that task. Down a column is what was kept."
    trade = _gallery(drawn, "gain", "Down is less forgotten, to the right is more learnt; a line a strategy.")
    layers = _gallery(drawn, "layers/", "How much each layer mattered for earlier tasks, and how far it moved.")
    return [*trade, *_gallery(drawn, "forgetting/", text), _fold("As tables", tables), *layers] if tables else layers


def _examples(examples: Mapping[str, Any], key: str, show: Callable[[Any], list[Part]]) -> list[Part]:
    """A fold for each data set, in it the encoders side by side."""
    datasets = dict.fromkeys(name for sets in examples.values() for name, part in sets.items() if part[key])
    folds = []
    for dataset in datasets:
        there = {encoder: sets[dataset][key] for encoder, sets in examples.items() if sets.get(dataset, {}).get(key)}
        folds.append(_fold(dataset, [{"kind": "cards", "cards": {encoder: show(part) for encoder, part in there.items()}}]))
    return folds


def _neighbours(found: Sequence[Row]) -> list[Part]:
    return [{"kind": "hits", "query": row["query"], "hits": row["hits"]} for row in found]


def _errors(found: Sequence[Row]) -> list[Part]:
    head = ["text", "expected", "found"]
    return [_table("Errors", head, [[row[key] for key in head] for row in found])]


def _settings(runs: Sequence[Run]) -> list[Part]:
    """What differs between the runs, then everything."""
    runs = [run for run in runs if run.config]
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(settings.get(key, _NONE) for settings in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    parts = [_fold(f"All of {run.name}", [_text(_yaml(run.config), "pre")]) for run in runs]
    if len(runs) > 1:
        same = _text("The settings of the runs are the same.")
        parts.insert(0, _table("What differs", ["key", *(run.name for run in runs)], rows) if rows else same)
    return parts


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as text."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
