"""The README of an exported model: what it is, how to use it, how it scores."""

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
{prompts}{metrics}"""


def model_card(encoder: Encoder, name: str, provenance: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter; `provenance["metrics"]` (numbers, nested or not) becomes a table."""
    static = isinstance(encoder.backbone, StaticBackbone)
    dims = encoder.matryoshka_dims
    small = min(dims, default=encoder.dim)
    rows = list(_numbers(provenance.get("metrics") or {}))
    metrics = [f"| {_plain(key)} | {value:.4f} |" for key, value in rows]
    prompts = [f"- `{_plain(key)}`: {_plain(repr(text))}" for key, text in encoder.prompts.items()]
    return _CARD.format(
        name=_plain(name),
        quoted=visible(json.dumps(name, ensure_ascii=False)),
        kind="the mean of static word vectors"
        if static
        else f"{_plain(encoder.backbone.config.model_type)}, {encoder.pooling} pooling",
        dim=encoder.dim,
        max_length=encoder.tokenize.max_length,
        dims=f" Trained to be cut to {', '.join(map(str, dims))} dims." if dims else "",
        load_dim=f", dim={small}" if dims else "",
        st_dim=f", truncate_dim={small}" if dims else "",
        prompts="\n".join(["\n## Prompts\n", *prompts, ""]) if prompts else "",
        metrics="\n".join(["\n## Results\n", "| metric | value |", "| --- | --- |", *metrics, ""]) if rows else "",
    )


def _plain(text: str) -> str:
    """A name as Markdown shows it: on one line, no link, no HTML, no cell of its own."""
    return re.sub(r"[\\`*\[\]<>|&~$]", r"\\\g<0>", one_line(text))


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested mappings, with its path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
