"""The command line: `acge train …`, `acge evaluate …`, `acge models`, each but the last a Hydra program over `conf/`."""

from __future__ import annotations

import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from acge_lightning.config import config_dir
from acge_lightning.errors import InputError
from acge_lightning.jobs import end_with_parent, needs_own_process, overrides, run_in_own_process, set_command
from acge_lightning.overrides import arguments
from acge_lightning.secret import concealed, recorded
from acge_lightning.sources import read_flags
from acge_lightning.surroundings import ensure_home, lasting_output
from acge_lightning.terminal import end, make_logs_visible, one_line, show, visible
from acge_lightning.yaml_file import explodes

_QUIET = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # lightning 2.6 with torch 2.13, 2026-11
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # its batches follow from the step
    ".*Trying to infer the `batch_size`.*",
)


def program(name: str, job: Callable[[DictConfig], Any]) -> Callable[..., None]:
    """A Hydra program: composes `conf/<name>.yaml`, runs the job, and says what is wrong with the input in one message.

    What it returns takes the number of words of `sys.argv` that start the program; the others are its arguments.
    """
    words: list[str] = []

    def run(cfg: DictConfig) -> Any:
        _quieten()
        end_with_parent()
        set_command(words)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            _check_trusted(cfg, overrides("task"))
            _check_size(cfg)
            _drop_unchosen(cfg, overrides("task"))
            return job(cfg)
        except (InputError, ChildProcessError) as error:
            message = concealed(str(error), cfg)
            if not several:
                end(message)
            show(f"\nerror: {one_line(message)}", stderr=True)
        except Exception:
            message = concealed(traceback.format_exc(), cfg)
            if not several:
                sys.exit(visible(message))
            show(message, stderr=True)
        return math.nan  # the other jobs go on, and the summary names this one

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(run)

    def command(count: int = 1) -> None:
        make_logs_visible()
        start, given = sys.argv[:count], sys.argv[count:]
        try:
            flags, others = read_flags(given)
            words[:] = [*start, *flags]
            sys.argv = [" ".join(start), *arguments(others)]
        except InputError as error:
            end(error)
        ensure_home()
        with lasting_output():
            main()

    return command


def _check_trusted(cfg: DictConfig, given: list[str]) -> None:
    """Whatever way `trusted` has found into the config: it counts if the command line names it."""
    if cfg.get("trusted") and not any(text.lstrip("+").startswith("trusted=") for text in given):
        raise InputError("trusted counts from the command line only: take it out of the YAML, and give trusted=[…] there")


def _check_size(cfg: DictConfig) -> None:
    """Files that are small each may double each other."""
    if explodes(OmegaConf.to_container(cfg, resolve=False)):
        raise InputError(
            "the config is refused, for its interpolations, written out, are too large: take out what refers to others"
        )


def _drop_unchosen(cfg: DictConfig, given: list[str]) -> None:
    """Forget what an experiment sets for its own tasks where the command line has put others in their place.

    Hydra replaces a choice of tasks by `task=[…]`, but keeps the weights and limits that the experiment's body gives the
    former ones. What the command line itself sets for a task that is not chosen stays, and is an error later.
    """
    if not any(text.startswith("task=") for text in given) or not cfg.get("task"):
        return
    named = {text.lstrip("+~").partition("=")[0].split(".")[1] for text in given if text.lstrip("+~").startswith("task.")}
    chosen = [n for n in cfg.task if n in named or OmegaConf.select(cfg.task, f"{n}.data._target_") is not None]
    cfg.task = OmegaConf.masked_copy(cfg.task, chosen)


def _quieten() -> None:
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _train(cfg: DictConfig) -> float:
    if cfg.get("stages"):
        from acge_lightning.sequence import sequence as job
    elif cfg.get("strategy"):
        raise InputError("strategy is for several stages: set stages, or callbacks=[…,ewc] for one run with an anchor")
    elif needs_own_process(cfg):
        job = run_in_own_process
    else:
        from acge_lightning.train import train as job
    return job(cfg)


def _vocabulary(cfg: DictConfig) -> None:
    from acge_lightning.config import instantiate
    from acge_lightning.swap import check_target, whole_folder
    from acge_lightning.train import make_tasks
    from acge_lightning.vocabulary import Texts

    folder = Path(cfg.output)
    check_target(folder)
    tasks = make_tasks(cfg)
    texts = Texts(lambda: (text for task in tasks.values() for text in task.data.train_texts()))
    tokenizer = instantiate(cfg.vocabulary, texts=texts, trusted=cfg.trusted)
    with whole_folder(folder) as new:
        tokenizer.save_pretrained(new)
    show(f"A vocabulary of {len(tokenizer)} tokens is in {folder}: use it with encoder.tokenizer={folder}")


def _pca(cfg: DictConfig) -> None:
    from acge_lightning.export import export
    from acge_lightning.pca import rotate_to_components, sample_texts
    from acge_lightning.pretrained import load
    from acge_lightning.swap import check_target
    from acge_lightning.train import make_tasks
    from acge_lightning.vocabulary import Texts

    check_target(cfg.output)
    encoder, tasks = load(cfg.model, device=cfg.device), make_tasks(cfg)
    texts = Texts(lambda: (text for task in tasks.values() for text in task.data.train_texts()))
    chosen = sample_texts(texts, cfg.texts)
    record = {"pca": {"of": str(recorded(cfg)["model"]), "texts": len(chosen)}}
    folder = export(rotate_to_components(encoder, chosen), cfg.output, record)
    show(f"{cfg.model}, turned to the {encoder.dim} components of {len(chosen)} texts, is in {folder}")


def _fisher(cfg: DictConfig) -> None:
    from acge_lightning.fisher import processes, write_anchor
    from acge_lightning.pretrained import load
    from acge_lightning.train import make_tasks

    file = Path(cfg.output)
    if file.suffix != ".safetensors":
        raise InputError(f"output={file} must be a file name that ends in .safetensors: try {file}.safetensors")
    with processes(cfg.device) as device:
        encoder, tasks = load(cfg.model, device=device), make_tasks(cfg)
        numbers = {name: cfg[name] for name in ("dims", "estimator", "samples", "pool", "seed", "batch_tokens")}
        _, anchor = write_anchor(file, encoder, tasks, cfg.bf16, **numbers, progress=True)
        if int(os.environ.get("RANK", "0")):
            return
    counts = ", ".join(f"{task['samples']} of {name}" for name, task in anchor.meta["tasks"].items())
    show(f"The anchor of {cfg.model} ({anchor.meta['estimator']}, samples: {counts}) is in {file}")


def _evaluate(cfg: DictConfig) -> None:
    from acge_lightning.benchmark import suite_scores
    from acge_lightning.config import plain
    from acge_lightning.evaluation import evaluate, open_models
    from acge_lightning.protocols import find
    from acge_lightning.report import evaluation_progress, evaluation_tables, leak_table, suite_table
    from acge_lightning.results import failures

    config = plain(cfg)
    tasks = [config["tasks"]] if isinstance(config["tasks"], str) else config["tasks"]
    models = open_models(config["model"], config["device"], config["prompts"])
    if config["suite"]:
        folder = Path(config["out"]).with_suffix("")
        given = {"tasks": tasks, "dims": config["dims"], "exclude_own_id": config["exclude_own_id"], **_bad_rows(config)}
        scores = suite_scores(models, config["suite"], folder, config["paths"], **given)
        show(suite_table(scores), f"The results, in mteb's format, are in {folder}")
        return
    datasets = find(config["paths"]["data_dir"], tasks, exclude_own_id=config["exclude_own_id"], **_bad_rows(config))
    given = config["dims"], config["out"], config["paths"]["cache_dir"], config["processes"]
    with evaluation_progress(len(models) * len(datasets)) as show_row:
        result = evaluate(models, datasets, *given, show_row)
    show(leak_table(result), *evaluation_tables(result), f"The scores are in {config['out']}")
    failed = failures(result)
    if failed:
        sys.exit(f"error: {len(failed)} rows have an error; the table says why")


def _bad_rows(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("on_bad_row", "max_bad_fraction")}


def _longtail(cfg: DictConfig) -> None:
    from acge_lightning.config import plain
    from acge_lightning.evaluation import open_models
    from acge_lightning.longtail import Protocol, longtail
    from acge_lightning.longtail_report import save_figures, tables
    from acge_lightning.longtail_results import read
    from acge_lightning.protocols import find

    config = plain(cfg)
    tasks = [config["tasks"]] if isinstance(config["tasks"], str) else config["tasks"]
    datasets = find(config["paths"]["data_dir"], tasks, **_bad_rows(config))
    protocol = Protocol(**config["protocol"])
    models = open_models(config["model"], config["device"], config["prompts"])
    given = {"dims": config["dims"], "pca": config["pca"], "out": config["out"], "cache_dir": config["paths"]["cache_dir"]}
    result = longtail(models, datasets, protocol, **given, progress=True)
    pictures = ", ".join(str(file) for file in save_figures(read(Path(config["out"])) or result, config["out"]))
    show(*tables(result), f"The scores are in {config['out']}, the pictures in {pictures}")
    if any(row["error"] for row in result["rows"]):
        sys.exit("error: a data set was not scored; the table says why")


def _report(cfg: DictConfig) -> None:
    from acge_lightning.compare import report
    from acge_lightning.config import instantiate_all, plain
    from acge_lightning.drawing import log_figures, save_figures
    from acge_lightning.figures import figures

    config = plain(cfg)
    runs = report(config["runs"], config["out"])
    if config["pictures"]:
        show(f"{len(save_figures(figures(runs), config['pictures']))} pictures are in {config['pictures']}")
    loggers = instantiate_all(cfg.logger, trusted=[])
    if loggers:
        from acge_lightning.train import closing

        with closing(loggers):
            for logger in loggers:
                log_figures(logger, figures(runs))
    for run in runs:
        for remark in run.remarks:
            show(f"{run.name}: {remark}", stderr=True)
    show(f"The report is in {config['out']}")


def _search(cfg: DictConfig) -> None:
    from acge_lightning.config import plain
    from acge_lightning.search import search

    search(plain(cfg))


train = program("train", _train)
evaluate = program("evaluate", _evaluate)
longtail = program("longtail", _longtail)
vocabulary = program("vocabulary", _vocabulary)
report = program("report", _report)
pca = program("pca", _pca)
search = program("search", _search)
fisher = program("fisher", _fisher)


def models(count: int = 2) -> None:
    """Print the named weights; it takes no arguments."""
    from acge_lightning.pretrained import models as known

    for name, release in known().items():
        show(f"{name:24} {release.repo:36} {release.note}")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "longtail": longtail,
    "vocabulary": vocabulary,
    "report": report,
    "pca": pca,
    "search": search,
    "fisher": fisher,
    "models": models,
}


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        wrong = f"unknown command {name!r}\n" if name and name not in ("-h", "--help") else ""
        show(f"{wrong}usage: acge {{{','.join(COMMANDS)}}} [key=value …]   (acge train --help shows the config)")
        sys.exit(2 if wrong or not name else 0)
    COMMANDS[name](2)


class Summary(Callback):
    """Hydra callback: prints one table over all jobs of a multirun, and writes `summary.csv` beside them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes the first file of a run: a folder that takes none is one error."""
        from acge_lightning.files import draft, unwritten

        folder = Path(config.hydra.run.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft(folder / "run") as file:
                file.write_bytes(bytes(1 << 14))  # as much as the config takes
        except OSError as error:
            sys.exit(f"\nerror: hydra.run.dir: {unwritten(folder, error)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After the last job."""
        from acge_lightning.report import summarise

        folder = Path(config.hydra.sweep.dir)
        table, failed = summarise(folder)
        show(table, f"The summary is in {folder / 'summary.csv'}")
        if failed:
            sys.exit(f"error: {failed} of the jobs failed")


if __name__ == "__main__":
    main()
