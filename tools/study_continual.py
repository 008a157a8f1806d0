"""Does an anchor help? Every strategy gets the same search on dev splits, and its winner five seeds on test splits.

    python tools/study_continual.py [--data DIR] [--out DIR] [--processes N] [--pairs N] [--seeds N]

A static encoder is trained on the first stage of `+experiment=continual_zh`, once. Then medical retrieval and weibo emotions
follow, under each strategy. Plain fine-tuning is searched over learning rate and epochs, by gain on dev. The others are
searched over the best `--pairs` of its learning rates and epochs, and over their own number; theirs is the setting that
forgets least, on dev, among those that keep 95 % of plain fine-tuning's gain there, or else the one with the largest gain. Each
run goes through `train.py` and keeps its folder; what is there is not run again.

Shows a table of the search and one of the winners (mean and standard deviation over seeds, in points), and ends with one JSON
line: strategy -> setting, gain, forgetting, and recall of old indexes, each as [mean, deviation].
"""

from __future__ import annotations

import argparse
import json
import os
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
BASE = "[cmrc2018,dureader_robust,qbqtc_ltr,stsb_zh,atec,lcqmc,tnews,cic_intent,csl_category]"
RATES, EPOCHS = (5e-4, 2e-3, 5e-3), (1, 3)
OWN: dict[str, dict[str, Sequence[float]]] = {  # what each strategy is tuned by
    "none": {},
    "l2sp": {"strength": (0.001, 0.003, 0.01, 0.1)},
    "ewc": {"strength": (0.001, 0.003, 0.01, 0.1)},
    "ewc_online": {"strength": (0.001, 0.003, 0.01, 0.1)},
    "replay": {"replay": (0.1, 0.25, 0.5)},
    "ewc_replay": {"strength": (0.001, 0.003, 0.01, 0.1)},
    "merge": {"merge": (0.5, 0.7, 0.85)},
}
KINDS = {"l2sp": "ones", "ewc": "fisher", "ewc_online": "fisher", "ewc_replay": "fisher"}  # of anchors
KEPT = 0.95  # of plain fine-tuning's gain
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    strategy: str
    rate: float
    epochs: int
    own: tuple[tuple[str, float], ...] = ()

    def label(self) -> str:
        """As a folder's name."""
        return "_".join([self.strategy, f"lr{self.rate:g}", f"epochs{self.epochs}", *(f"{k}{v:g}" for k, v in self.own)])


@dataclass
class Study:
    """Where runs lie, and how they are made."""

    data: Path
    out: Path
    processes: int
    env: dict[str, str] = field(default_factory=lambda: os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"})

    def base(self) -> Path:
        """The encoder that has learnt the first stage."""
        folder = self.out / "base"
        if not (folder / "result.json").is_file():
            self._train(folder, [f"task={BASE}", "~stages", "~strategy", "trainer.max_epochs=2"])
        return folder / "export"

    def run(self, setting: Setting, seed: int) -> dict[str, Any]:
        """`forgetting.json` of a run."""
        folder = self.out / "runs" / f"{setting.label()}_seed{seed}"
        if not (folder / "forgetting.json").is_file() or not (folder / "result.json").is_file():
            options = [f"seed={seed}", f"strategy={setting.strategy}", "+stages.base.train=false", "~stages.base.set"]
            options += ["encoder=pretrained", "~encoder.tokenizer", f"encoder.path={self.out / 'base' / 'export'}"]
            options += [f"optim.optimizer.lr={setting.rate}", f"trainer.max_epochs={setting.epochs}"]
            options += [f"strategy.{key}={value}" for key, value in setting.own]
            self._link_anchor(setting, folder)
            self._train(folder, [*options, "resume=auto"])
        return json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))

    def _link_anchor(self, setting: Setting, folder: Path) -> None:
        """The first stage's anchor is the same for all strengths and rates of a kind."""
        anchor, mine = self._anchor(setting), folder / "1_base" / "anchor.safetensors"
        if anchor is not None and anchor.is_file() and not mine.is_file():
            mine.parent.mkdir(parents=True, exist_ok=True)
            os.link(anchor, mine)

    def _anchor(self, setting: Setting) -> Path | None:
        kind = KINDS.get(setting.strategy)
        return None if kind is None else self.out / f"{kind}.safetensors"

    def anchors(self, first: Sequence[Setting]) -> None:
        """Make those of these settings, by a run of each kind."""
        kinds = {self._anchor(setting): setting for setting in reversed(first) if self._anchor(setting) is not None}
        missing = {file: setting for file, setting in kinds.items() if not file.is_file()}
        self.all(missing.values(), [0])
        for file, setting in missing.items():
            os.link(self.out / "runs" / f"{setting.label()}_seed0" / "1_base" / "anchor.safetensors", file)

    def all(self, settings: Iterable[Setting], seeds: Iterable[int]) -> dict[tuple[Setting, int], dict[str, Any]]:
        """Several runs, some at a time."""
        wanted = list(product(settings, seeds))
        with ThreadPoolExecutor(self.processes) as pool:
            found = pool.map(lambda pair: self._said(*pair), wanted)
            return dict(zip(wanted, found, strict=True))

    def _said(self, setting: Setting, seed: int) -> dict[str, Any]:
        found = self.run(setting, seed)
        dev = found["dev"]["measures"]
        CONSOLE.print(
            f"{setting.label()} seed {seed}: dev gain {dev['gain']:.4f} forgetting {dev['forgetting']:.4f}", highlight=False
        )
        return found

    def _train(self, folder: Path, options: Sequence[str]) -> None:
        command = [sys.executable, "train.py", "+experiment=continual_zh", *options, "logger=none"]
        command += [f"paths.data_dir={self.data}", f"paths.output_dir={folder}", f"paths.cache_dir={self.out / 'cache'}"]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            if subprocess.run(command, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT).returncode:
                sys.exit(f"{' '.join(command)} failed: see {folder / 'log.txt'}")


def settings(strategy: str, pairs: Sequence[tuple[float, int]]) -> list[Setting]:
    """All that are tried for a strategy."""
    own = OWN[strategy]
    return [
        Setting(strategy, rate, epochs, tuple(zip(own, values, strict=True)))
        for rate, epochs in pairs
        for values in product(*own.values())
    ]


def best(found: dict[Setting, dict[str, Any]], gain: float) -> Setting:
    """The one that forgets least among those that keep the gain; else the one of the largest gain (dev)."""
    dev = {setting: run["dev"]["measures"] for setting, run in found.items()}
    enough = [setting for setting in dev if dev[setting]["gain"] >= KEPT * gain]
    if not enough:
        return max(dev, key=lambda setting: dev[setting]["gain"])
    return min(enough, key=lambda setting: dev[setting]["forgetting"])


def points(measures: dict[str, float]) -> list[str]:
    """Gain and forgetting."""
    return [f"{100 * measures[key]:.2f}" for key in ("gain", "forgetting")]


def old_index(found: dict[str, Any]) -> float:
    """Mean recall of the last encoder's queries in the first encoder's indexes."""
    first, last = found["tasks"][0], found["tasks"][-1]
    return float(np.mean([o["recall"] for o in found["old_index"] if (o["documents"], o["queries"]) == (first, last)]))


def main(argv: Sequence[str]) -> None:
    """Search, then seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("ACGE_DATA", "../shared/data"), type=Path, help="folder of the data sets"
    )
    parser.add_argument("--out", default="outputs/study_continual", type=Path, help="where all runs are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--pairs", type=int, default=2, help="of learning rate and epochs, for strategies with a number of their own"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", default=list(OWN), choices=list(OWN))
    args = parser.parse_args(argv)
    study = Study(args.data.resolve(), args.out.resolve(), args.processes)
    study.base()
    plain = {s: run for (s, _), run in study.all(settings("none", list(product(RATES, EPOCHS))), [0]).items()}
    ranked = sorted(plain, key=lambda s: plain[s]["dev"]["measures"]["gain"], reverse=True)
    gain = plain[ranked[0]]["dev"]["measures"]["gain"]
    pairs = [(s.rate, s.epochs) for s in ranked[: args.pairs]]
    study.anchors([settings(strategy, pairs)[0] for strategy in args.strategies if strategy != "none"])
    chosen, fronts = {"none": ranked[0]}, dict(plain)
    for strategy in args.strategies:
        if strategy != "none":
            found = {s: run for (s, _), run in study.all(settings(strategy, pairs), [0]).items()}
            chosen[strategy], fronts = best(found, gain), fronts | found
    show_search(fronts, chosen)
    answer = {}
    for strategy, setting in chosen.items():
        runs = study.all([setting], range(args.seeds)).values()
        kept = {"gain": [r["measures"]["gain"] for r in runs], "forgetting": [r["measures"]["forgetting"] for r in runs]}
        kept["old_index"] = [old_index(r) for r in runs]
        kept["mean"] = [r["measures"]["mean"] for r in runs]
        answer[strategy] = {"setting": setting.label()} | {key: spread(values) for key, values in kept.items()}
    show_winners(answer)
    print(json.dumps(answer))


def spread(values: list[float]) -> list[float | None]:
    """Mean and standard deviation."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None]


def show_search(found: dict[Setting, dict[str, Any]], chosen: dict[str, Setting]) -> None:
    """Dev gain and forgetting of all that was tried."""
    table = Table("setting", "gain", "forgetting", "", title="search on dev splits, in points")
    for setting, run in found.items():
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
