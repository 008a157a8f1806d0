"""`acge mine`: hard negatives of queries, written as a data set of triplets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from acge_lightning.commands.checks import checked_prompts
from acge_lightning.commands.mine_shards import BlockEncoder, BlockScorer
from acge_lightning.commands.unlabelled_pairs import write_pairs
from acge_lightning.config.building import plain
from acge_lightning.config.secrets import recorded
from acge_lightning.embed.cache import Embeddings
from acge_lightning.errors import InputError
from acge_lightning.files.folder import check_target
from acge_lightning.mining.engine.shards import Run, in_process, open_engine
from acge_lightning.mining.negatives.judged_texts import JudgedTexts, combine_judgements
from acge_lightning.mining.negatives.mined_folder import FILES, counts, mined_rows, write_mined
from acge_lightning.mining.negatives.miner import Scorer, embedded, mine
from acge_lightning.mining.negatives.neighbours import DenseNeighbours, LexicalNeighbours, Neighbours
from acge_lightning.mining.negatives.rules import Reason, Rules
from acge_lightning.mining.negatives.scorers import CrossEncoder, EncoderScorer, is_cross_encoder
from acge_lightning.mining.negatives.sources import Sources, read_sources
from acge_lightning.terminal import ProgressBar, show
from acge_lightning.zoo.location import resolve
from acge_lightning.zoo.pretrained import load

_BM25 = "bm25"
_READING = ("columns", "splits", "on_bad_row", "max_bad_fraction")
_RULES = tuple(field.name for field in fields(Rules))


def run(cfg: DictConfig) -> None:
    """Mine, write the folder, and print the table."""
    config = plain(cfg)
    rules = Rules(**{name: config[name] for name in _RULES})
    _check_choices(config)
    check_target(config["out"])
    with TemporaryDirectory() as temporary:
        _mine(cfg, config, rules, _sources(config, Path(temporary)))


def _sources(config: Mapping[str, Any], temporary: Path) -> Sources:
    """Read the data sets; of text without labels, pairs are made first."""
    reading = {key: config[key] for key in _READING} | {"cache_dir": config["paths"]["cache_dir"]}
    if config["pairs"] is None:
        return read_sources(config["source"], config["corpus"] or (), **reading)
    paths = [config["source"]] if isinstance(config["source"], str) else config["source"]
    pairs = write_pairs(paths, config["pairs"], temporary / "pairs.jsonl")
    show(*pairs.told)
    sources = read_sources(temporary / "pairs.jsonl", config["corpus"] or (), cache_dir=temporary / "cache")
    return replace(sources, digests=[*pairs.digests, *sources.digests[1:]])


def _mine(cfg: DictConfig, config: dict[str, Any], rules: Rules, sources: Sources) -> None:
    judged = combine_judgements(sources.train, sources.others, sources.texts)
    _tell_what_is_small(judged, rules)
    with open_engine(config["engine"], config["out"], config["workers"], config["ray_address"]) as shards:
        _mine_and_write(cfg, config, rules, sources, judged, shards)


def _mine_and_write(
    cfg: DictConfig, config: dict[str, Any], rules: Rules, sources: Sources, judged: JudgedTexts, shards: Run
) -> None:
    neighbours, model_hash = _neighbours(config, judged, shards)
    scorer, scorer_hash = _scorer(config, shards)
    with ProgressBar("mine", "queries", len(judged.queries)) as bar:
        mined = mine(judged, neighbours, rules, scorer, bar.advance)
    least = rules.negatives if config["short"] == "drop" else 0
    listed_scores = _listed_scores(judged, neighbours, scorer) if config["scores"] else None
    counted = counts(judged, mined, rules.negatives, least)
    names = recorded(cfg)
    manifest = {
        "made_by": f"acge mine, acge-lightning {version('acge-lightning')}",
        "sources": sources.digests,
        "made_of": sources.made_of,
        "pairs": config["pairs"],
        "model": {"name": str(names["model"]), "hash": model_hash, "prompts": config["prompts"]},
        "scorer": {"name": str(names["scorer"]), "hash": scorer_hash, "prompts": config["scorer_prompts"]} if scorer else None,
        "rules": asdict(rules) | {"short": config["short"]},
        "counts": counted,
    }
    folder = write_mined(config["out"], config["file"], mined_rows(judged, mined, listed_scores, least), manifest)
    show(_table(counted, rules), f"The rows are in {folder}: acge train task=[triplets] +paths.data={folder} trains on them")
    remedies = _remedies(counted, rules)
    if remedies and counted["queries without negatives"] * 4 > len(judged.queries):
        show(f"Many queries have none: {'; or '.join(remedies)}")


def _remedies(counted: Mapping[str, Any], rules: Rules) -> list[str]:
    """Ways to more negatives: a milder margin, where margins took texts, and more ranks, where there are more texts."""
    milder = {
        "lowest": "reference=mean compares with the mean of their positives, not with the lowest",
        "mean": "reference=highest compares with the best of their positives, not with the mean",
        "highest": "a smaller margin, or null, allows texts as near as the positives",
    }
    margins = {Reason.ABSOLUTE_MARGIN.words, Reason.RELATIVE_MARGIN.words}
    remedies = [milder[rules.reference]] if margins & set(counted["removed"]) else []
    if counted["texts"] > rules.range_max:
        remedies.append(f"range_max={10 * rules.range_max} looks deeper")
    return remedies


def _check_choices(config: Mapping[str, Any]) -> None:
    for key, choices in (("short", ("keep", "drop")), ("file", FILES)):
        if config[key] not in choices:
            raise InputError(f"{key}={config[key]} is unknown: choose {' or '.join(choices)}")


def _tell_what_is_small(judged: JudgedTexts, rules: Rules) -> None:
    """Say that there are fewer texts than ranks."""
    if judged.candidate_count < rules.range_max:
        show(f"There are {judged.candidate_count:,} texts, fewer than range_max={rules.range_max}: all of them are looked at")


def _neighbours(config: Mapping[str, Any], judged: JudgedTexts, shards: Run) -> tuple[Neighbours, str | None]:
    """What candidates come from, and the hash of the encoder."""
    texts = judged.texts[: judged.candidate_count]
    if config["model"] == _BM25:
        return LexicalNeighbours(judged.queries, texts), None
    embeddings = _embeddings(config, config["model"])
    prompts = checked_prompts(config["prompts"], embeddings.encoder.prompts, "prompts")
    with ProgressBar("embed", "texts", len(judged.queries) + len(texts)) as bar:
        compute = _compute(config, config["model"], embeddings, shards)
        queries = embedded(embeddings, judged.queries, prompts.get("query"), bar.advance, compute)
        documents = embedded(embeddings, texts, prompts.get("document"), bar.advance, compute)
    return DenseNeighbours(queries, documents), embeddings.hash


def _scorer(config: Mapping[str, Any], shards: Run) -> tuple[Scorer | None, str | None]:
    """The second scorer, and the hash of its weights."""
    if config["scorer"] is None:
        return None, None
    folder = resolve(config["scorer"])
    if is_cross_encoder(folder):
        encoder = CrossEncoder(folder, config["device"])
        scorer = encoder if shards is in_process else BlockScorer(shards, folder, config["device"], encoder.hash)
        return scorer, encoder.hash
    embeddings = _embeddings(config, config["scorer"])
    prompts = checked_prompts(config["scorer_prompts"], embeddings.encoder.prompts, "scorer_prompts")
    embed = partial(embedded, embeddings, compute=_compute(config, config["scorer"], embeddings, shards))
    return EncoderScorer(embed, prompts.get("query"), prompts.get("document")), embeddings.hash


def _compute(config: Mapping[str, Any], model: str, embeddings: Embeddings, shards: Run) -> BlockEncoder | None:
    """What embeds texts in workers; None for this process."""
    return None if shards is in_process else BlockEncoder(shards, model, config["device"], embeddings.hash)


def _embeddings(config: Mapping[str, Any], model: str) -> Embeddings:
    """Those of an encoder, kept by the hash of its weights."""
    return Embeddings(load(model, device=config["device"]), Path(config["paths"]["cache_dir"]).expanduser() / "embeddings")


def _listed_scores(judged: JudgedTexts, neighbours: Neighbours, scorer: Scorer | None) -> np.ndarray:
    """The scores of the negatives that the data sets list."""
    queries, texts = judged.listed.T
    if scorer is None:
        return neighbours.scores(queries, texts)
    return scorer([(judged.queries[q], judged.texts[t]) for q, t in judged.listed.tolist()])


def _table(counted: Mapping[str, Any], rules: Rules) -> Table:
    """What was mined, and what each rule took."""
    table = Table(title="Hard negatives", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    names = ("queries", "positives", "texts", "negatives", "listed negatives")
    rows = [(name, counted[name]) for name in names]
    rows += [(f"left out: {name}", count) for name, count in counted["left out"].items() if count]
    rows += [(f"candidates removed: {name}", count) for name, count in counted["removed"].items()]
    rows.append((f"queries with fewer than {rules.negatives}", counted["queries with fewer than wanted"]))
    rows += [(name, counted[name]) for name in ("queries without negatives", "queries without a row") if counted[name]]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    return table
