"""Writes the README of an exported model: what it is, how to use it, how it scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from acge_lightning.encoder.encoder import Encoder, StaticBackbone
from acge_lightning.terminal import one_line, visible

_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- acge_lightning
---

# {name}

A text-embedding model: {kind}, {dim} dims, up to {max_length} tokens a text.{dims}

## Use

With `acge_lightning`:

```python
from acge_lightning import load

encoder = load({quoted}{load_dim})
vectors = encoder.encode(["今天天气很好", "天气不错"])
print(encoder.similarity(vectors, vectors))
```

With `sentence-transformers`:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({quoted}{st_dim})
vectors = model.encode(["今天天气很好", "天气不错"], normalize_embeddings=True)
print(model.similarity(vectors, vectors))
```

Vectors are cut to a smaller dim first and normalised afterwards, so the model itself does not normalise.
{prompts}{data}{metrics}"""


def model_card(encoder: Encoder, name: str, provenance: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter.

    Args:
        encoder: whose card it is.
        name: of the model.
        provenance: `metrics` (numbers, nested or not), `coverage` (training task -> `rows`) and `made_of` (task -> what
            `acge clean` or `acge mine` recorded of its rows) become tables.
    """
    backbone, dims = encoder.backbone, encoder.matryoshka_dims
    kind = "the mean of static word vectors"
    if not isinstance(backbone, StaticBackbone):
        kind = f"{_escape(backbone.config.model_type)}, {encoder.pooling} pooling"
    smallest = min(dims, default=encoder.dim)
    rows = list(_numbers(provenance.get("metrics") or {}))
    metrics = [f"| {_escape(key)} | {value:.4f} |" for key, value in rows]
    prompts = [f"- `{_escape(key)}`: {_escape(repr(text))}" for key, text in encoder.prompts.items()]
    return _CARD.format(
        name=_escape(name),
        quoted=visible(json.dumps(name, ensure_ascii=False)),
        kind=kind,
        dim=encoder.dim,
        max_length=encoder.tokenize.max_length,
        dims=f" Trained to be cut to {', '.join(map(str, dims))} dims." if dims else "",
        load_dim=f", dim={smallest}" if dims else "",
        st_dim=f", truncate_dim={smallest}" if dims else "",
        prompts="\n".join(["\n## Prompts\n", *prompts, ""]) if prompts else "",
        data=_data(provenance.get("coverage") or {}, provenance.get("made_of") or {}),
        metrics="\n".join(["\n## Results\n", "| metric | value |", "| --- | --- |", *metrics, ""]) if rows else "",
    )


def _data(coverage: Mapping[str, Any], made_of: Mapping[str, Any]) -> str:
    """The training rows of each task, and what was left out of them before."""
    trained = {name: count["rows"] for name, count in coverage.items() if isinstance(count, Mapping) and "rows" in count}
    if not trained:
        return ""
    lines = [f"| {_escape(name)} | {count:,} | {_cleaned(made_of.get(name))} |" for name, count in trained.items()]
    head = ["\n## Training data\n", "| task | rows | how they were prepared |", "| --- | ---: | --- |"]
    return "\n".join([*head, *lines, ""])


def _cleaned(record: Mapping[str, Any] | None) -> str:
    """What made the rows of a task: the command, and its counts."""
    if not record:
        return ""
    sentences = [str(record.get("made_by", ""))]
    counts = record.get("counts")
    for count in counts.values() if isinstance(counts, Mapping) else ():
        if isinstance(count, Mapping) and isinstance(count.get("left_out"), Mapping):
            reasons = sorted(count["left_out"].items(), key=lambda item: -item[1])
            sentences += [f"{reason}: {number:,} left out" for reason, number in reasons] or ["nothing left out"]
    model = record.get("model")
    if isinstance(model, Mapping):
        sentences.append(f"negatives from {model.get('name')}")
    if record.get("changed"):
        sentences.append(f"changed since: {', '.join(map(str, record['changed']))}")
    return _escape("; ".join(sentences))


def _escape(text: str) -> str:
    """A text that Markdown shows as it is: on one line, no link, no HTML, no table cell."""
    return re.sub(r"[\\`*\[\]<>|&~$]", r"\\\g<0>", one_line(text))


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested mappings, with its path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
