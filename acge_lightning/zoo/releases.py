"""Lists the released weights that `load` knows by a name, and what is known of each.

Where the facts are from, if the row does not say otherwise. Revision, parameters, size and licence: mteb's registry of models
(commit a905523, August 2026) and the hub's file listings. Pooling, Dense and length: the model's own `modules.json`,
`1_Pooling/config.json`, `2_Dense/config.json` and `sentence_bert_config.json`; these are read again when it is loaded. Prompts:
the authors' card or repository. mteb's dims of gte, m3e-large, Conan and piccolo v2 differ from the files, which are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acge_lightning.encoder.encoder import Pooling

_WEIGHTS = Path(__file__).with_name("weights")  # encoders in the package, a folder each


@dataclass(frozen=True)
class Release:
    """Released weights: where they are on the hub, and what their folder does not say by itself.

    Args:
        repo: owner/name on the hub; of an encoder in the package its name.
        revision: commit, tag or branch.
        parameters: millions.
        megabytes: size of the weights' files, 10^6 bytes.
        dims: size of the embedding.
        max_tokens: most tokens of a text.
        licence: SPDX id, or what its makers say; `none declared` gives no right to use it.
        pooling: `mean`, `cls` or `last`; None where only its folder says.
        dense: size of the vectors before a Dense head; None without one.
        matryoshka_dims: prefix sizes that it was trained for, as published; empty if none are.
        prompts: name -> text put before a text, for a folder that has none of its own.
        note: what else one should know.
        source: where facts are from that are not as the module says.
    """

    repo: str
    revision: str
    parameters: float = 0
    megabytes: float = 0
    dims: int = 0
    max_tokens: int | None = None
    licence: str = "none declared"
    pooling: Pooling | None = None
    dense: int | None = None
    matryoshka_dims: tuple[int, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """The last part of its hub id."""
        return self.repo.rpartition("/")[2]

    @property
    def packaged(self) -> Path | None:
        """Its folder in this package; None of one that is fetched from the hub."""
        return _WEIGHTS / self.repo if "/" not in self.repo else None


_BGE_PROMPT = {"query": "为这个句子生成表示以用于检索相关文章："}  # FlagEmbedding's README; for short queries of long passages
_PICCOLO_PROMPTS = {"query": "查询: ", "document": "结果: "}  # its card, as quoted by that of stella; for retrieval alone
_E5_PROMPTS = {"query": "query: ", "document": "passage: "}
_QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_QWEN_PROMPT = {"query": f"Instruct: {_QWEN_TASK}\nQuery:"}  # README of Qwen3-Embedding: other tasks, other sentences
_NON_COMMERCIAL = "non-commercial"

_ROWS = (
    Release(
        "aspire/acge_text_embedding",
        "652afc78466e53d1909c785c26f5b978021c4650",
        *(327.9, 656, 1792, 1024),
        pooling="mean",
        dense=1024,
        note="1024 or 1792 dims are recommended; the trained prefixes are not published",
        source="not in mteb: hub listing and card; pooling from its config.json as quoted in discussion 12",
    ),
    Release(
        "BAAI/bge-small-zh-v1.5",
        "7999e1d3359715c523056ef9478215996d62a620",
        *(24.0, 96, 512, 512, "MIT", "cls"),
        prompts=_BGE_PROMPT,
        source="parameters: size of the file",
    ),
    Release(
        "BAAI/bge-base-zh-v1.5",
        "f03589ceff5aac7111bd60cfc7d497ca17ecac65",
        *(102.3, 409, 768, 512, "MIT", "cls"),
        prompts=_BGE_PROMPT,
        source="parameters: size of the file",
    ),
    Release(
        "BAAI/bge-large-zh-v1.5",
        "79e7739b6ab944e86d6171e44d24c997fc1e0116",
        *(325.5, 1302, 1024, 512, "MIT", "cls"),
        prompts=_BGE_PROMPT,
        source="parameters: size of the file",
    ),
    Release(
        "BAAI/bge-m3",
        "5617a9f61b028005a4858fdac845db406aefb181",
        *(568, 2270, 1024, 8192, "MIT", "cls"),
        note="many languages; its dense vectors only",
    ),
    Release("thenlper/gte-small-zh", "af7bd46fbb00b3a6963c8dd7f1786ddfbfbe973a", 30.3, 61, 512, 512, "MIT", "cls"),
    Release("thenlper/gte-base-zh", "71ab7947d6fac5b64aa299e6e40e6c2b2e85976c", 102.3, 205, 768, 512, "MIT", "cls"),
    Release("thenlper/gte-large-zh", "64c364e579de308104a9b2c170ca009502f4f545", 325.5, 651, 1024, 512, "MIT", "cls"),
    Release(
        "dunzhang/stella-mrl-large-zh-v3.5-1792d",
        "17bb1c32a93a8fc5f6fc9e91d5ea86da99983cfe",
        *(327.4, 1300, 1792, 512, "MIT", "mean", 1024),
        matryoshka_dims=tuple(range(128, 1793, 128)),
        note="first published as infgrad/stella-mrl-large-zh-v3.5-1792d",
        source="prefixes: card",
    ),
    Release(
        "dunzhang/stella-large-zh-v3-1792d",
        "d5d39eb8cd11c80a63df53314e59997074469f09",
        *(327.4, 1310, 1792, 512),
        pooling="mean",
        dense=1024,
        source="size: parameters, in float32",
    ),
    Release(
        "infgrad/stella-base-zh-v3-1792d",
        "82254892a0fba125aa2abf3a4800d2dd12821343",
        *(104.0, 416, 1792, 512, "MIT", "mean", 768),
        source="pooling: length of its config.json; size: parameters, in float32",
    ),
    Release(
        "sensenova/piccolo-large-zh-v2",
        "60f6c1d5b329f15d941d29d757287a8cfa56389e",
        *(327, 659, 1792, 512),
        pooling="mean",
        dense=1024,
        matryoshka_dims=(256, 512, 768, 1024, 1280, 1536, 1792),
        note="its makers took the weights out of later revisions",
        source="hub history; prefixes: their training code (the paper names others)",
    ),
    Release(
        "sensenova/piccolo-base-zh",
        "47c0a63b8f667c3482e05b2fd45577bb19252196",
        *(102.3, 205, 768, 512, "MIT", "mean"),
        prompts=_PICCOLO_PROMPTS,
    ),
    Release(
        "sensenova/piccolo-large-zh",
        "main",
        *(325.5, 651, 1024, 512),
        pooling="mean",
        prompts=_PICCOLO_PROMPTS,
        source="not in mteb: hub listing and card",
    ),
    Release("moka-ai/m3e-small", "44c696631b2a8c200220aaaad5f987f096e986df", 24.0, 96, 512, 512, _NON_COMMERCIAL, "mean"),
    Release("moka-ai/m3e-base", "764b537a0e50e5c7d64db883f2d2e051cbe3c64c", 102.3, 409, 768, 512, _NON_COMMERCIAL, "mean"),
    Release("moka-ai/m3e-large", "12900375086c37ba5d83d1e417b21dc7d1d1f388", 325.5, 1302, 1024, 512, _NON_COMMERCIAL, "mean"),
    Release(
        "richinfoai/ritrieve_zh_v1",
        "f8d5a707656c55705027678e311f9202c8ced12c",
        *(326, 1302, 1792, 512, "MIT"),
        note="pooling and head: as its folder says",
    ),
    Release(
        "Qwen/Qwen3-Embedding-0.6B",
        "b22da495047858cce924d27d76261e96be6febc0",
        *(595.8, 1191, 1024, 32768, "Apache-2.0", "last"),
        prompts=_QWEN_PROMPT,
        note="any prefix from 32 dims on, by its card",
    ),
    Release(
        "Qwen/Qwen3-Embedding-4B",
        "636cd9bf47d976946cdbb2b0c3ca0cb2f8eea5ff",
        *(4021.8, 8044, 2560, 32768, "Apache-2.0", "last"),
        prompts=_QWEN_PROMPT,
        note="any prefix from 32 dims on, by its card",
    ),
    Release(
        "Qwen/Qwen3-Embedding-8B",
        "4e423935c619ae4df87b646a3ce949610c66241c",
        *(7567.3, 15135, 4096, 32768, "Apache-2.0", "last"),
        prompts=_QWEN_PROMPT,
        note="any prefix from 32 dims on, by its card",
    ),
    Release(
        "TencentBAC/Conan-embedding-v1",
        "bb9749a57d4f02fd71722386f8d0f5a9398d7eeb",
        *(327.4, 1307, 1792, 512, "CC-BY-NC-4.0"),
        dense=1024,
        note="pooling: as its folder says",
    ),
    Release(
        "IEITYuan/Yuan-embedding-2.0-zh",
        "b5ebcace6f4fc6e5a4d1852557eb2dc2d1040cee",
        *(327.4, 1302, 1792, 512, "Apache-2.0"),
        dense=1024,
        note="pooling: as its folder says",
        source="Dense: number of parameters",
    ),
    Release(
        "shibing624/text2vec-base-chinese",
        "183bb99aa7af74355fb58d16edf8c13ae7c5433e",
        *(102.3, 409, 768, 128, "Apache-2.0", "mean"),
        note="texts end at 128 tokens",
    ),
    Release(
        "intfloat/multilingual-e5-small",
        "fd1525a9fd15316a2d503bf26ab031a61d056e98",
        *(117.7, 471, 384, 512, "MIT", "mean"),
        prompts=_E5_PROMPTS,
    ),
    Release(
        "intfloat/multilingual-e5-base",
        "d13f1b27baf31030b7fd040960d60d909913633f",
        *(278.1, 1113, 768, 512, "MIT", "mean"),
        prompts=_E5_PROMPTS,
    ),
    Release(
        "intfloat/multilingual-e5-large",
        "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb",
        *(559.9, 2240, 1024, 512, "MIT", "mean"),
        prompts=_E5_PROMPTS,
    ),
)

RELEASES = {row.name: row for row in _ROWS}


def models() -> dict[str, Release]:
    """Name -> released weights."""
    return dict(RELEASES)
