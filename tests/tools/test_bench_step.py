"""The benchmarks: that they compare equal things, refuse to compare others, and print what they promise. No timings."""

import importlib.util
import io
import json
import statistics
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
RATIOS = {"ratio_vs_default", "ratio_vs_best", "memory_ratio_vs_default"}
SHRINK = 16
sys.path.insert(0, str(TOOLS))  # where tools import each other from


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("sentence_transformers")
    yield tool("bench_step")
    del sys.modules["bench_step"]


@pytest.fixture(scope="module")
def gpu(bench):
    yield tool("bench_gpu")
    del sys.modules["bench_gpu"]


@pytest.fixture
def small(bench, monkeypatch):
    """A small model in place of the benchmark's, with fewer characters."""
    monkeypatch.setattr(bench, "CHARACTERS", bench.CHARACTERS[:50])
    monkeypatch.setattr(bench, "CONFIG", bench.CONFIG | {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32})
    monkeypatch.setattr(bench, "DIMS", (16, 8))
    for name in ("our_side", "their_side"):
        monkeypatch.setattr(getattr(bench, name), "__defaults__", ((16, 8), "cpu"))


@pytest.fixture
def folder(bench, small, tmp_path):
    """Of the small model."""
    return bench.make_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("mix", "pairs", "first", "second"),
    [("passages", 64, (8, 16), (20, 500)), ("short", 64, (8, 40), (8, 40)), ("long", 16, (200, 1000), (200, 1000))],
)
def test_the_texts_have_the_promised_lengths(bench, mix, pairs, first, second):
    columns = bench.texts(mix, 0)
    assert columns == bench.texts(mix, 0) != bench.texts(mix, 1)
    assert [len(column) for column in columns] == [pairs, pairs]
    for column, (low, high) in zip(columns, (first, second), strict=True):
        assert all(low <= len(text) + 2 <= high for text in column)


def test_the_passages_have_a_long_tail(bench):
    lengths = [len(text) + 2 for step in range(20) for text in bench.texts("passages", step)[1]]
    assert 105 < statistics.mean(lengths) < 135
    assert max(lengths) > 400


def test_both_sides_tokenise_a_character_to_a_token(bench, folder):
    columns = bench.texts("short", 0, SHRINK)
    theirs, _ = bench.their_side(folder)
    ours, _ = bench.our_side(folder)
    for column in columns:
        mask = theirs.preprocess(column)["attention_mask"]
        assert mask.sum(1).tolist() == ours.tokenize(column).lengths.tolist() == [len(text) + 2 for text in column]


def test_losses_and_gradients_of_both_sides_are_equal(bench, folder):
    assert bench.check_equal(folder, SHRINK) < 1e-9


@pytest.mark.parametrize("factor", [1.0001, 2.0])
def test_an_altered_loss_is_refused(bench, folder, monkeypatch, factor):
    right = bench.InfoNCE
    monkeypatch.setattr(bench, "InfoNCE", lambda temperature: right(temperature * factor))
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench.check_equal(folder, SHRINK)


def test_gradients_that_are_not_numbers_are_refused(bench, folder, monkeypatch):
    right = bench.Matryoshka
    monkeypatch.setattr(bench, "Matryoshka", lambda *args: lambda *given: right(*args)(*given) * float("nan"))
    with pytest.raises(SystemExit, match="differ by nan"):
        bench.check_equal(folder, SHRINK)


def test_a_missing_gradient_is_refused(bench, folder, monkeypatch):
    right = bench.our_side

    def frozen(*args, **settings):
        model, step = right(*args, **settings)
        model.backbone.embeddings.requires_grad_(False)
        return model, step

    monkeypatch.setattr(bench, "our_side", frozen)
    with pytest.raises(SystemExit, match="gradients of other parameters"):
        bench.check_equal(folder, SHRINK)


def test_nothing_is_printed_when_the_sides_differ(bench, small, monkeypatch, capsys):
    right = bench.Matryoshka
    monkeypatch.setattr(bench, "Matryoshka", lambda loss, dims: right(loss, dims, [1.0, 0.5]))
    monkeypatch.setattr(bench, "spawn", None)
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench.main(["--quick"])
    assert capsys.readouterr().out == ""


def test_the_last_line_holds_the_ratios_of_each_mix(bench, small, monkeypatch, capsys):
    def run(command, **_):
        """A job in this process, where nothing may be left to allocate."""
        answer = io.StringIO()
        with redirect_stdout(answer):
            bench.main(command[2:])
        result = json.loads(answer.getvalue())
        return subprocess.CompletedProcess(command, 0, json.dumps(result | {"mib": result["mib"] + 1}))

    monkeypatch.setattr(bench.subprocess, "run", run)
    bench.main(["--quick", "--steps", "1", "--rounds", "2", "--threads", str(torch.get_num_threads())])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(answer) == {"passages", "short", "long"}
    for ratios in answer.values():
        assert set(ratios) == RATIOS
        assert ratios["ratio_vs_default"] >= ratios["ratio_vs_best"] > 0
        assert ratios["memory_ratio_vs_default"] > 0


def test_ratios_are_theirs_over_ours_in_time_and_ours_over_theirs_in_memory(bench):
    found = {
        bench.DEFAULT: [{"seconds": [5.0, 6.0], "mib": 90}, {"seconds": [6.0, 7.0], "mib": 110}],
        "theirs cached 8": [{"seconds": [3.0], "mib": 10}],
        bench.OURS: [{"seconds": [2.0], "mib": 20}],
    }
    assert bench.ratios(found, "theirs cached 8") == {
        "ratio_vs_default": 3.0,
        "ratio_vs_best": 1.5,
        "memory_ratio_vs_default": 0.2,
    }
    assert bench.ratios(found, bench.DEFAULT)["ratio_vs_best"] == 3.0


# ---- on a GPU


def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    first, last = capsys.readouterr().out.splitlines()
    assert "no GPU" in first
    assert json.loads(last) == {"gpu": None}


def test_the_flops_are_those_that_torch_counts(gpu, bench, small, tmp_path):
    """Forward and backward of texts of one length; torch does not count what no weight takes part in but attention."""
    from torch.utils.flop_counter import FlopCounterMode

    folder = gpu.make_model(tmp_path / "model", bench.CONFIG | {"hidden_size": 64, "intermediate_size": 128}, 32)
    encoder = gpu.our_side(folder, (32,))[0].eval()
    tokens = encoder.tokenize(["一丁丂七丄" * 4] * 3)
    with FlopCounterMode(display=False) as counter:
        encoder(tokens).sum().backward()
    config = bench.CONFIG | {"hidden_size": 64, "intermediate_size": 128}
    assert gpu.model_flops(tokens.lengths.tolist(), config, 32) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_every_gpu_setting_runs_and_is_reported(gpu, bench, small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DIMS", (24, 8))
    folder = gpu.make_model(tmp_path / "model", bench.CONFIG, 24)
    settings = {s: [gpu.measure(folder, s, "short", 1, "cpu", SHRINK)] for s in [*gpu.THEIRS, *gpu.ALL_OURS]}
    report = gpu.summary(settings, 989.0)
    assert set(report) == {"tokens_per_second", "mfu", *RATIOS}
    assert report["ratio_vs_default"] >= report["ratio_vs_best"] > 0
    out_of_memory = gpu.summary(settings | {gpu.DEFAULT: []}, 989.0)
    assert out_of_memory["ratio_vs_default"] is None
    assert out_of_memory["ratio_vs_best"] > 0


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312)]
)
def test_the_peak_of_known_cards(gpu, name, peak):
    assert gpu.peak_tflops(name) == peak


def test_an_unknown_card_has_no_utilisation(gpu):
    results = [{"seconds": 1.0, "tokens_per_second": 1.0, "flops": 1.0, "mib": 1.0}]
    report = gpu.summary(dict.fromkeys([*gpu.THEIRS, gpu.OURS], results), gpu.peak_tflops("NVIDIA T4"))
    assert (report["mfu"], report["ratio_vs_best"]) == (None, 1.0)
