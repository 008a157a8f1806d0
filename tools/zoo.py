"""Makes the encoders of the package from a data folder, stage by stage: `make zoo`, and `make zoo-check` for a rehearsal.

    python tools/zoo.py --data DIR [--out outputs/zoo] [--until STAGE] [--beside NAME=PATH …]
    python tools/zoo.py --rehearse [--out outputs/zoo_check]

A stage is a command of `acge`, one `tools/zoo_passages.py`; those that train have their settings in
`conf/experiment/zoo_*.yaml`. It leaves one folder under `--out`, and a line in `stages.json` there once it is done: its command
and its minutes. A stage that is done is not run again, and training that was interrupted goes on from its newest checkpoint. To
make a stage anew, remove its folder: it and all after it are made again.

At the end `package/` has the encoders as they go into the package, in float16 and with 1,024 tokens, each with a card of its
scores (`tools/zoo_card.py`), and `data.json`: of every data set its origin, licence, digest and rows.

The rehearsal runs every stage on rows of the packaged sample, with a small vocabulary and a few steps.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
import zoo_card
from rich.console import Console

import acge_lightning
from acge_lightning.config.overrides import literal

SOURCES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("zoo_sources.yaml").read_text(encoding="utf-8"))
SAMPLE = Path(acge_lightning.__file__).parent / "sample"
SAMPLE_FAMILY = {"pairs": "reranking", "triplet": "reranking"}  # folder of data sets -> that of the sample with such rows
PASSAGES = Path(__file__).with_name("zoo_passages.py")
PACKAGED = {"static": "acge-static-zh", "nano": "acge-nano-zh"}  # stage -> name of its encoder
MAX_TOKENS = 1024
MINED = ("pairs/docs_*", "pairs/d365", "pairs/ms_*", "pairs/laws_*", "pairs/howtocook", "pairs/kdconv", "pairs/cmrc")
CONSOLE = Console(stderr=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    Args:
        name: of its folder.
        command: arguments of `program`.
        rehearsal: further ones of a rehearsal.
        program: what is run.
    """

    name: str
    command: list[str]
    rehearsal: list[str] = field(default_factory=list)
    program: tuple[str, ...] = (str(Path(sys.executable).with_name("acge")),)


def stages(data: Path, out: Path, beside: Sequence[str] = ()) -> list[Stage]:
    """List the stages, in their order; the scores are those of our encoders, TF-IDF, BM25, and others `beside`: NAME=PATH."""
    cleaned = out / "cleaned"
    few_steps = ["max_dev=20", "trainer.max_steps=4", "trainer.val_check_interval=1.0"]

    def at(name: str) -> str:
        return literal(str(out / name))

    def train(name: str, *settings: str, rehearsal: tuple[str, ...] = ()) -> Stage:
        folders = [f"paths.data_dir={at('cleaned')}", f"paths.cache_dir={at('cache')}", f"paths.output_dir={at(name)}"]
        command = ["train", f"+experiment=zoo_{name}", "resume=auto", *folders, *settings]
        return Stage(name, command, [*few_steps, *rehearsal])

    passages = f"paths.passages={at('passages')}"
    sources, to_mine = ",".join(SOURCES), ",".join(literal(str(cleaned / name / "train.jsonl.gz")) for name in MINED)
    models = [("tfidf", "tfidf"), ("bm25", "bm25"), *(tuple(other.split("=", 1)) for other in beside)]
    models += [(name, str(out / stage)) for stage, name in PACKAGED.items()]
    scored = ", ".join(f"{literal(name)}: {literal(path)}" for name, path in models)
    where = [f"source={literal(str(data))}", f"evaluation={literal(str(data))}", f"out={at('cleaned')}"]
    return [
        Stage("cleaned", ["clean", f"tasks=[{sources}]", *where]),
        Stage("passages", [str(cleaned), str(out / "passages")], program=(sys.executable, str(PASSAGES))),
        train("static", passages, rehearsal=("encoder.tokenizer.vocab_size=800",)),
        train("weak", passages, f"encoder.path={at('static')}", rehearsal=("encoder.num_hidden_layers=1",)),
        Stage("mined", ["mine", f"model={at('weak')}", f"source=[{to_mine}]", f"out={at('mined')}"]),
        train("nano", f"encoder.path={at('weak')}", f"paths.data={at('mined')}"),
        Stage(
            "scores",
            [
                *("evaluate", f"model={{{scored}}}", f"tasks=[{','.join(tested(data))}]"),
                *(f"paths.data_dir={literal(str(data))}", f"paths.cache_dir={at('cache')}", f"out={at('scores/results.json')}"),
            ],
        ),
    ]


def tested(data: Path) -> list[str]:
    """The names of the Chinese data sets that have test rows."""
    files = [*data.glob("*/*/test.jsonl.gz"), *(file.parent for file in data.glob("*/*/qrels/test.tsv"))]
    return sorted({file.parent.name for file in files if not file.parent.name.endswith("_en")})


def run(todo: list[Stage], out: Path, rehearse: bool) -> None:
    """Run the stages that are not done."""
    record = out / "stages.json"
    done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    anew = False
    for number, stage in enumerate(todo, 1):
        command = [*stage.command, *(stage.rehearsal if rehearse else ())]
        folder = out / stage.name
        title = f"Stage {number} of {len(todo)}, {stage.name}"
        if stage.name in done and folder.is_dir() and not anew:
            if done[stage.name]["command"] != command:
                sys.exit(f"{title}: its command has changed since {folder} was made: remove that folder to make it anew")
            CONSOLE.print(f"{title}: done before, in {done[stage.name]['minutes']} minutes")
            continue
        if stage.name in done:  # its folder was removed, or that of a stage before it was
            anew = True
            done = {name: done[name] for name in done if name != stage.name}
            CONSOLE.print(f"{title}: it, or a stage before it, was removed, so it is made anew")
            shutil.rmtree(folder, ignore_errors=True)
        CONSOLE.print(f"{title}: {Path(stage.program[-1]).name} {' '.join(command)}")
        started = time.perf_counter()
        status = subprocess.run([*stage.program, *command], check=False).returncode
        if status:
            sys.exit(f"{title}: failed with status {status}; what it says is above, and the same command goes on from here")
        done[stage.name] = {"command": command, "minutes": round((time.perf_counter() - started) / 60, 1)}
        record.write_text(json.dumps(done, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def package(out: Path) -> None:
    """Write the encoders as they go into the package, with their cards, and what they were trained on."""
    from acge_lightning import load
    from acge_lightning.export import export

    manifest = json.loads((out / "cleaned" / "manifest.json").read_text(encoding="utf-8"))
    data = {name: SOURCES[name] | data_record(manifest, name) for name in SOURCES}
    results = json.loads((out / "scores" / "results.json").read_text(encoding="utf-8"))
    for stage, name in PACKAGED.items():
        encoder = load(out / stage, dtype="float16", max_length=MAX_TOKENS)
        record = json.loads((out / stage / "export" / "training.json").read_text(encoding="utf-8"))
        kept = {key: record[key] for key in ("versions", "steps", "coverage") if key in record}
        notes = zoo_card.card(results, data, name)
        export(encoder, out / "package" / name, {"made_by": "make zoo", **kept, "data": data}, notes=notes)
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    (out / "package" / "data.json").write_text(text, encoding="utf-8")
    CONSOLE.print(f"The encoders are in {out / 'package'}")


def data_record(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Digest and rows of a data set, from the manifest of `acge clean`."""
    files = {Path(file).name: digest for file, digest in manifest["sources"][name].items()}
    counts = manifest["counts"][name]
    digests = {file: digest for file, digest in files.items() if not file.startswith(("dev.", "test."))}
    return {"sha256": digests, "read": counts["read"], "kept": counts["kept"], "left_out": counts["left_out"]}


def write_rehearsal(folder: Path) -> Path:
    """Write a data folder with a few rows of the sample under the name of every source."""
    names: dict[str, list[str]] = {}
    for name in SOURCES:
        names.setdefault(SAMPLE_FAMILY.get(name.partition("/")[0], name.partition("/")[0]), []).append(name)
    for family, sources in names.items():
        for number, name in enumerate(sources):
            copy_share(SAMPLE / family / "sample_zh", folder / name, number, len(sources), name.startswith("pairs/"))
    return folder


def copy_share(source: Path, target: Path, number: int, shares: int, training_only: bool) -> None:
    """Copy every `shares`-th row of the training file of a data set, from row `number` on, and the other files whole."""
    for file in (file for file in source.rglob("*") if file.is_file()):
        is_training = file.name.startswith("train")
        if training_only and not is_training:
            continue
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not is_training:
            shutil.copy(file, copy)
            continue
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            rows = list(lines)
        header = 1 if file.suffix == ".tsv" else 0
        with opened(copy, "wt", encoding="utf-8") as written:
            written.writelines(rows[:header] + rows[header + number :: shares])


def main(arguments: list[str]) -> None:
    """Run the pipeline, or a rehearsal of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets, <family>/<name>/")
    parser.add_argument("--out", type=Path, default=Path("outputs/zoo"), help="where the stages leave their folders")
    parser.add_argument("--until", help="name of the last stage to run; all by default")
    parser.add_argument("--rehearse", action="store_true", help="a few steps of every stage, on rows of the sample")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=PATH", help="encoders that are scored too")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    data = write_rehearsal(options.out / "data") if options.rehearse else options.data
    if any("=" not in other for other in options.beside):
        sys.exit(f"--beside {' '.join(options.beside)}: give each as NAME=PATH")
    todo = stages(data, options.out, options.beside)
    names = [stage.name for stage in todo]
    if options.until is not None:
        if options.until not in names:
            sys.exit(f"--until {options.until} is no stage: choose from {', '.join(names)}")
        todo = todo[: names.index(options.until) + 1]
    missing = [name for name in SOURCES if not (data / name).is_dir()]
    if missing:
        sys.exit(f"{data} lacks {len(missing)} of {len(SOURCES)} sources, {missing[0]} for one: give their folder with --data")
    run(todo, options.out, options.rehearse)
    if todo[-1].name == names[-1]:
        package(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
