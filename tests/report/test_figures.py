"""Figures hold the values they are given, and go to loggers."""

import json
import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pytest
from test_runs import a_row, a_run, an_evaluation, write

from acge_lightning.errors import InputError
from acge_lightning.report.figures import _projection, figures, pareto
from acge_lightning.report.runs import read_runs
from acge_lightning.report.style import log_figures, save_figures


def lines(figure):
    return [tuple(np.asarray(part, dtype=float).tolist() for part in line.get_data()) for line in figure.axes[0].lines]


def legend(figure):
    return [text.get_text() for part in figure.legends for text in part.get_texts()]


@pytest.fixture
def shown(tmp_path):
    one, two = a_run(tmp_path / "1", "one"), a_run(tmp_path / "2", "_two $x^$", seed=1)
    write(one / "forgetting.json", {"tasks": ["a", "b"], "matrix": [[0.8, None], [0.7, 0.75]]})
    points = [(1, 1.0), (9, 0.98), (5, 0.97), (15, 0.9)]
    write(one / "funnel.json", {"points": [{"label": f"{s}", "recall": r, "speedup": s} for s, r in points]})
    rows = [a_row(dim=dim, value=value) for dim, value in ((64, 0.8), (16, 0.6))] + [a_row("tfidf", dim=None, value=0.5)]
    rows += [a_row(dataset="alone", value=0.1), a_row("tfidf", dataset="alone", dim=None, value=None, error="broken")]
    difference = {"encoder": "mini", "against": "tfidf", "family": "sts", "dataset": "stsb", "difference": 0.3}
    spread = {"low": 0.1, "high": 0.4}
    points = [[0, 1, "甲"], [2, 3, "<b>"], [4, 5, "甲"]]
    more = {"differences": [difference | spread], "examples": {"mini": {"stsb": {"points": points}}}}
    write(two / "results.json", an_evaluation(*rows, **more))
    return figures(read_runs([one, two]))


def test_values(shown):
    assert lines(shown["curves/train/loss"]) == [([5, 10], [2.5, 1.5])] * 2
    assert legend(shown["curves/train/loss"]) == ["one", "_two $x^$"]
    assert lines(shown["matryoshka/sts"]) == [([16, 64], [0.6, 0.8]), ([0, 1], [0.5, 0.5])], "of what all were scored on"
    assert lines(shown["differences/mini − tfidf"])[:2] == [([0.1, 0.4], [0, 0]), ([0.3], [0])]
    assert sorted(text.get_text() for text in shown["forgetting/one"].axes[0].texts) == ["0.7000", "0.7500", "0.8000"]
    assert lines(shown["projection/mini/stsb"]) == [([2], [3]), ([0, 4], [1, 5])]
    assert legend(shown["projection/mini/stsb"]) == ["<b>", "甲"]
    assert lines(shown["funnel"])[1] == ([1, 9, 15], [1.0, 0.98, 0.9])
    assert {tuple(line[0]) for line in lines(shown["scores"])} == {(0.5,), (0.25, 0.5), (0.25,), (1.5,), (0.25, 1.5)}
    assert "mini at 16 dims 0.6000" in shown["matryoshka/sts"].get_label()


def test_pareto_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    points = [{"recall": float(r), "speedup": float(s)} for r, s in rng.integers(0, 9, (60, 2))]
    kept = pareto(points)
    for p in points:
        beats = [q for q in points if q["recall"] >= p["recall"] and q["speedup"] >= p["speedup"] and q != p]
        assert (p in kept) == (not beats)


def test_long_and_infinite_curves(tmp_path):
    values = np.sin(np.arange(1001) / 50)
    rows = "\n".join(f"{i},{v},{'inf' if i == 3 else 'nan' if i == 4 else 1}" for i, v in enumerate(values))
    write(tmp_path / "csv" / "metrics.csv", f"step,train/loss,train/a/loss\n{rows}\n")
    found = figures(read_runs([tmp_path]))
    (steps, shown), (_, smooth) = lines(found["curves/train/loss"])
    assert len(steps) == 200
    np.testing.assert_allclose(shown, np.sin(np.array(steps) / 50), atol=0.01)
    oracle = [np.mean(shown[max(0, i - 10) : i + 11]) for i in range(200)]  # the window is cut off at both ends
    np.testing.assert_allclose(smooth, oracle)
    faint, strong = found["curves/train/loss"].axes[0].lines
    assert faint.get_alpha() < 0.5
    assert strong.get_alpha() is None


def test_what_is_not_finite_does_not_spread_in_a_smooth_curve(tmp_path):
    rows = "\n".join(f"{i},{'nan' if i == 7 else 'inf' if i == 30 else i % 2}" for i in range(40))
    write(tmp_path / "csv" / "metrics.csv", f"step,train/a/loss\n{rows}\n")
    smooth = lines(figures(read_runs([tmp_path]))["curves/train/a/loss"])[1][1]
    assert np.isfinite(smooth).all()
    assert 0.2 <= min(smooth) < max(smooth) <= 0.8, "of a line that hops from 0 to 1"


def scored_on(folder, name, digest, value):
    """A run whose scores come from the rows of this hash."""
    data = {"val": {"faq": {"family": "sts", "rows": 9, "hash": digest, "seen": 0}}}
    content = {"before": {"val/mean": 0.25}, "after": {"val/mean": value}, "data": data}
    write(a_run(folder, name) / "result.json", content)
    return folder


def test_scores_of_different_rows_are_not_in_one_figure(tmp_path):
    runs = [("one", "h1", 0.5), ("two", "h2", 0.75), ("three", "h1", 0.625)]
    found = figures(read_runs([scored_on(tmp_path / name, name, digest, value) for name, digest, value in runs]))
    assert {name for name in found if name.startswith("scores")} == {"scores, rows A", "scores, rows B"}
    assert legend(found["scores, rows A"]) == ["one", "three"]
    assert legend(found["curves/val/mean, rows B"]) == ["two"]
    assert legend(found["curves/train/loss"]) == ["one", "two", "three"], "losses are of training"
    colours = {n: found[f"curves/val/mean, rows {n}"].axes[0].lines[-1].get_color() for n in "AB"}
    assert len(set(colours.values())) == 2, "a run has one colour in all figures"
    same = figures(read_runs([tmp_path / "one", tmp_path / "three"]))
    assert [name for name in same if name.startswith(("scores", "curves/val"))] == ["curves/val/mean", "scores"]


def test_the_tensorboard_logger_gets_them(shown, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_figures(logger, shown, step=7)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tags()["images"]) == len(shown)
    assert {events.Images(tag)[0].step for tag in events.Tags()["images"]} == {7}


def test_a_logger_of_images_gets_them(shown):
    given = []

    class Logger:
        def log_image(self, key, images, step=None):
            given.append((key, images, step))

    log_figures(Logger(), shown, step=3)
    assert given == [(name, [figure], 3) for name, figure in shown.items()]


def test_wandb_takes_such_a_figure(shown, tmp_path):
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=str(tmp_path), offline=True)
    log_figures(logger, {"scores": shown["scores"]}, step=1)
    logger.experiment.finish()
    assert len(list(tmp_path.rglob("scores*.png"))) == 1


def test_another_logger_is_refused(shown, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    with pytest.raises(InputError, match="CSVLogger takes no pictures: use logger=tensorboard"):
        log_figures(CSVLogger(tmp_path), shown)


@pytest.mark.parametrize(("module", "missing"), [("style", "matplotlib"), ("figures", "matplotlib"), ("page", "jinja2")])
def test_what_is_not_installed_is_named(module, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import acge_lightning.report.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError" in done.stderr
    assert "pip install 'acge-lightning[report]'" in done.stderr


def test_nothing_to_draw(tmp_path):
    write(tmp_path / "result.json", json.dumps({"before": {}, "after": {}}))
    assert figures(read_runs([tmp_path])) == {}


@pytest.fixture
def sequences(tmp_path):
    """Runs of several stages: EWC at three strengths, and one without."""
    points = [("ewc", "fisher", 0.1, 0.05, 0.04), ("ewc", "fisher", 10, 0.03, 0.01), ("ewc", "fisher", 1, 0.04, 0.02)]
    for job, (name, anchor, strength, gain, lost) in enumerate([*points, ("none", None, 1.0, 0.06, 0.05)]):
        folder = a_run(tmp_path / str(job), f"{name}{job}")
        found = {"tasks": ["a", "b"], "matrix": [[0.8, 0.2], [0.7, 0.75]], "measures": {"gain": gain, "forgetting": lost}}
        strategy = {"name": name, "anchor": anchor, "strength": strength, "merge": None, "replay": 0.0}
        write(folder / "forgetting.json", found | {"strategy": strategy})
    log = tmp_path / "0" / "2_b" / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    names = [f"ewc/{kind}/{layer}" for kind in ("drift", "mass") for layer in ("layer 10", "layer 2", "embeddings")]
    log.write_text(f"step,{','.join(names)}\n0,,,,0.5,0.125,0.375\n9,0.1,0.2,0.3,,,\n18,0.2,0.3,0.4,,,\n")
    return figures(read_runs([str(tmp_path / str(job)) for job in range(4)]))


def test_forgetting_against_gain_in_order_of_strength(sequences):
    drawn = lines(sequences["gain"])
    assert drawn[0] == ([0.05, 0.04, 0.03], [0.04, 0.02, 0.01])
    assert drawn[2] == ([0.06], [0.05])
    assert [text.get_text() for text in sequences["gain"].axes[0].texts] == ["λ 0.1", "λ 1", "λ 10", ""]
    assert legend(sequences["gain"]) == ["ewc", "none"]


def assert_within(axes, boxes):
    frame = axes.get_window_extent()
    assert min(box.x0 for box in boxes) >= frame.x0
    assert max(box.x1 for box in boxes) <= frame.x1
    assert min(box.y0 for box in boxes) >= frame.y0
    assert max(box.y1 for box in boxes) <= frame.y1


def test_labels_of_close_points_lie_on_nothing(tmp_path):
    for job, (name, strength) in enumerate(product(("ewc", "l2sp"), (0.03, 0.3, 3.0, 30.0))):
        strategy = {"name": name, "anchor": "fisher", "strength": strength}
        measures = {"gain": 0.044 - 0.0002 * job, "forgetting": 0.0751 + 0.0003 * (job % 3)}
        found = {"tasks": ["a", "b"], "matrix": [[0.8, 0.2], [0.7, 0.75]], "measures": measures, "strategy": strategy}
        write(a_run(tmp_path / str(job), f"{name}{job}") / "forgetting.json", found)
    far = {"gain": 0.01, "forgetting": 0.0} | {"mean": 0.5}
    write(a_run(tmp_path / "far", "far") / "forgetting.json", found | {"measures": far, "strategy": {"name": "none"}})
    (axes,) = figures(read_runs(sorted(tmp_path.iterdir())))["gain"].axes
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes), (
        "within the axes"
    )
    dots = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)


def test_mass_and_drift_of_layers(sequences):
    (figure,) = [figure for name, figure in sequences.items() if name.startswith("layers/")]
    mass, drift = ([bar.get_width() for bar in axes.patches] for axes in figure.axes)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["embeddings", "layer 2", "layer 10"]
    assert (mass, drift) == ([0.375, 0.125, 0.5], [0.4, 0.3, 0.2])
    assert "layer 10 0.5000 and 2.00e-01" in figure.get_label()


def test_labels_of_a_funnel_stay_within_its_axes(tmp_path):
    """Long labels at both ends, and dots so close that a label has to go further away."""
    speeds = [(1.0, 1.0), (40.0, 0.9), (41.0, 0.899), (41.5, 0.898), (42.0, 0.8975), (300.0, 0.5)]
    points = [{"label": f"64 → 256 → 1024, keep {i}00", "recall": r, "speedup": s} for i, (s, r) in enumerate(speeds)]
    write(tmp_path / "funnel.json", {"points": points})
    (axes,) = figures(read_runs([tmp_path]))["funnel"].axes
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 6
    assert_within(axes, boxes)


def test_l2sp_has_no_share_of_fisher_information(tmp_path):
    record = {"tasks": ["a"], "matrix": [[0.5]], "strategy": {"name": "l2sp", "anchor": "ones"}}
    write(a_run(tmp_path, "one") / "forgetting.json", record)
    log = write(tmp_path / "1_b" / "csv" / "metrics.csv", "step,ewc/drift/layer 1,ewc/mass/layer 1\n0,,1.0\n9,0.25,\n")
    assert log.is_file()
    figure = figures(read_runs([tmp_path]))["layers/one"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["drift from the anchor"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.25]
    assert "Fisher" not in figure.get_label()


def test_one_sequence_has_no_trade_to_draw(tmp_path):
    write(
        a_run(tmp_path, "one") / "forgetting.json",
        {"tasks": ["a"], "matrix": [[0.5]], "measures": {"gain": 1, "forgetting": 0}},
    )
    assert "gain" not in figures(read_runs([tmp_path]))


def test_the_rarer_of_many_labels_share_a_colour():
    counts = {f"label {i}": 30 - i for i in range(20)}
    points = [(float(i), float(j), label) for i, (label, count) in enumerate(counts.items()) for j in range(count)]
    figure = _projection("many", points)
    shown = {line.get_color() for line in figure.axes[0].lines if line.get_marker() == "."}
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["6 others", *sorted(f"label {i}" for i in range(14))]
    assert shown == {"#888888"}
    (others,) = (line for line in figure.axes[0].lines if line.get_marker() == ".")
    assert len(others.get_xdata()) == sum(counts[f"label {i}"] for i in range(14, 20))
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == len(points)


@pytest.mark.parametrize(("label", "said"), [("\U0010fffd", 1), ("plain", 0)])  # no font has the first
def test_letters_that_no_font_has_are_told_once(label, said, tmp_path, caplog):
    shown = {str(i): _projection("title", [(0.0, 0.0, label), (1.0, 1.0, "b")]) for i in range(2)}
    assert len(save_figures(shown, tmp_path)) == 2
    assert len([record for record in caplog.records if "install one with them" in record.message]) == said


def test_a_picture_of_somebody_else_is_kept(shown, tmp_path):
    (tmp_path / "matryoshka.png").write_bytes(b"mine")
    name = next(iter(shown))
    figure = {"matryoshka": shown[name]}
    with pytest.raises(InputError, match=r"matryoshka\.png is there and is not a picture of acge_lightning: it is kept"):
        save_figures(figure, tmp_path)
    assert (tmp_path / "matryoshka.png").read_bytes() == b"mine"
    (first,) = save_figures(figure, tmp_path / "new")
    assert save_figures(figure, tmp_path / "new") == [first]
    assert first.read_bytes().startswith(b"\x89PNG")
