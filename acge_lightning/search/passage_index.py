"""An index of passages: built of the vectors that a former one has, and of new ones; its rows tell the place of each."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

import torch
from torch import Tensor

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.search.cutting import Place, PlacedPassage
from acge_lightning.search.funnel import FunnelIndex
from acge_lightning.search.stages import Stage, default_stages
from acge_lightning.search.vectors import Vectors

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 10  # passages that a warning names


def build(
    passages: Sequence[PlacedPassage],
    encoder: Encoder,
    stages: Sequence[Stage] | None = None,
    prompts: Mapping[str, str] | None = None,
    force: bool = False,
    former: FunnelIndex | None = None,
    progress: bool = False,
) -> tuple[FunnelIndex, int]:
    """Index passages; those to which the encoder gives no direction are left out, and a warning names them.

    Args:
        passages: in the order of the rows.
        encoder: of the passages and of queries.
        stages: by default the shortest trained prefix, a middle one and all dims; without trained prefixes all dims.
        prompts: role (query, document) -> name of one of the encoder's prompts.
        force: also take prefixes that the encoder was not trained for.
        former: an index of the same encoder and prompts, of whose passages the vectors are taken.
        progress: show a progress bar.

    Returns:
        The index, and how many of its passages were in the former one.

    Raises:
        InputError: no passage has a direction, stages that make no funnel.
    """
    stages = default_stages(encoder.dim, encoder.matryoshka_dims) if stages is None else stages
    index = FunnelIndex(encoder.dim, stages, encoder.matryoshka_dims, force, encoder, prompts)
    vectors, kept_count = _vectors(passages, index, former, progress)
    kept = index.has_direction(vectors)
    dropped = [str(passages[i].place) for i in (~kept).nonzero()[:, 0].tolist()]
    if len(dropped) == len(passages):
        raise InputError(f"none of {len(passages)} passages has a direction: the encoder knows none of their tokens")
    if dropped:
        examples = ", ".join(dropped[:_MOST_NAMED]) + (" …" if len(dropped) > _MOST_NAMED else "")
        _LOG.warning("%d of %d passages have no direction and are left out: %s", len(dropped), len(passages), examples)
    rows = [passages[i] for i in kept.nonzero()[:, 0].tolist()]
    notes = [json.dumps(asdict(row.place), ensure_ascii=False) for row in rows]
    index.add(vectors[kept], ids=_ids(rows), texts=[row.text for row in rows], notes=notes)
    return index, kept_count


def _ids(rows: Sequence[PlacedPassage]) -> list[str]:
    """The places of passages, told apart by a number where several have the same lines."""
    counts: Counter[str] = Counter()
    ids = []
    for place in (str(row.place) for row in rows):
        counts[place] += 1
        ids.append(place if counts[place] == 1 else f"{place} #{counts[place]}")
    return ids


def place_of(note: str) -> Place:
    """The place that a row of the index was given.

    Raises:
        InputError: it is none.
    """
    try:
        values = json.loads(note)
        return Place(**values | {"path": tuple(values["path"]), "above": tuple(values["above"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"the index is damaged (a place is {note!r:.60}): build it again") from error


def _vectors(
    passages: Sequence[PlacedPassage], index: FunnelIndex, former: FunnelIndex | None, progress: bool
) -> tuple[Tensor, int]:
    """Float32[n, D] of passages, and how many of them come from the former index."""
    vectors = torch.zeros(len(passages), index.dim)
    new: dict[str, list[int]] = {}
    for i, passage in enumerate(passages):
        new.setdefault(passage.encoded, []).append(i)
    for text, vector in _former_vectors(former, new) if former is not None else ():
        vectors[new.pop(text)] = vector
    numbers = [i for of_text in new.values() for i in of_text]
    texts = [passages[i].encoded for i in numbers]
    if texts and index.encoder is not None:
        prompt = index.prompts.get("document")
        vectors[numbers] = index.encoder.encode(texts, index.dim, prompt=prompt, progress=progress)
    return vectors, len(passages) - len(numbers)


def _former_vectors(former: FunnelIndex, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """(encoded text, Float32[D]) of the wanted texts that the rows of an index have; none if it keeps no whole vectors."""
    store = former.vectors.stores[-1] if len(former) else None
    if not isinstance(store, Vectors) or store.dim != former.dim:
        return
    row_of: dict[int, str] = {}
    for i, (text, note) in enumerate(zip(former.rows.column("text"), former.rows.column("note"), strict=True)):
        with suppress(InputError):  # a damaged one is made again
            encoded = PlacedPassage(place_of(note), text).encoded
            if encoded in wanted:
                row_of[i] = encoded
    left = set(row_of.values())
    for start, block in store.blocks():
        for i in range(start, start + len(block)):
            if row_of.get(i) in left:
                left.discard(row_of[i])
                yield row_of[i], block[i - start]
