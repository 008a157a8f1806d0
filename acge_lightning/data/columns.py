"""Which column of a file holds which field of a record: by its own name, or by one that is well known."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product

from acge_lightning.data.records import Record, RowError

Columns = dict[str, tuple[str, ...]]
_NUMBERED = ("positive", "negative")  # fields that several columns may hold: negative_1, negative_2 …
_MOST_NAMED = 8  # columns that a message names


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names as `folded` writes them. A name stands for one field of a record only.
_TEXT = _names(
    "文本 文本内容 内容 正文 句子 语句 语料 标题 问题 问句 查询 提问 评论 评论内容 "
    "texts sentence sentences content body title document passage question query utterance review comment"
)
_LABEL = _names("标签 类别 分类 类目 意图 主题 情感 labels category class intent topic sentiment")
_PAIR_LABEL = _names("标签 标注 关系 是否相似 是否匹配 是否相同 是否同义 labels goldlabel isduplicate relation")
_SCORE = _names(
    "相似度 相似度得分 相似度分数 相似分 得分 分数 评分 打分 相关度 相关性 "
    "scores similarity similarityscore sim relevance relevancescore relatednessscore rating goldscore"
)
_QUERY = _names("查询 查询词 问题 问句 提问 用户问题 question anchor q")
_POSITIVE = _names("正例 正样本 正例文本 相关文档 答案 回答 pos positives positivepassages answer")
_NEGATIVE = _names("负例 负样本 难负例 负例文本 不相关文档 neg negatives hardneg hardnegative hardnegatives")
# Names of a pair belong together: a question goes with an answer, sentence1 with sentence2.
_STEMS = _names("text sentence sent question query q s document doc title phrase 文本 句子 语句 问题 问句 短语 标题 文档 查询")
_SUFFIXES = ("1", "2"), ("a", "b"), ("0", "1"), ("一", "二")
_PAIRS = [
    *((frozenset({stem + one}), frozenset({stem + two})) for stem, (one, two) in product(_STEMS, _SUFFIXES)),
    (
        _names("question query anchor 问题 问句 提问 查询 用户问题"),
        _names("answer response positive passage document 答案 回答 回复 文档"),
    ),
    (_names("premise 前提"), _names("hypothesis 假设")),
    (_names("title 标题"), _names("content body abstract text 正文 内容 摘要 文本")),
    (_names("source src 原文"), _names("target tgt 译文")),
]
_ALIASES: dict[str, dict[str, frozenset[str]]] = {
    "TripletRecord": {"query": _QUERY, "positive": _POSITIVE, "negative": _NEGATIVE},
    "ScoredPairRecord": {"score": _SCORE, "label": _PAIR_LABEL},
    "PairRecord": {"label": _PAIR_LABEL},
    "LabelledRecord": {"text": _TEXT, "label": _LABEL},
    "TextRecord": {"text": _TEXT},
}


def match_columns(header: Sequence[str], record: type[Record], given: Mapping[str, str] | None = None) -> Columns:
    """Match the columns of a file with the fields of a record.

    What is given counts before all else; then columns that bear a field's name; then those that differ from it in case,
    width, blanks, `_`, `-`, or by a remark in brackets; then well-known names: 问题 and 答案, sentence-transformers' `anchor,
    positive, negative_1 …`, BGE's `query, pos, neg`. Numbered columns of positives or negatives become one list.

    Args:
        header: names of the columns.
        record: what a row must hold.
        given: field -> column, as a user says.

    Returns:
        The columns of each field that has some.

    Raises:
        RowError: a given column is not there, or two columns could be a field; `setting` chooses one.

    >>> from acge_lightning.data.records import ScoredPairRecord
    >>> match_columns(["编号", "问题", "答案", "相似度（0-5）"], ScoredPairRecord)
    {'text1': ('问题',), 'text2': ('答案',), 'score': ('相似度（0-5）',)}
    """
    header = [name for name in header if name]
    columns: Columns = {field: (_given(header, field, name),) for field, name in (given or {}).items()}
    for same in (str, folded):
        columns |= _matched(header, record, columns, same, {field: frozenset({same(field)}) for field in record.fields})
    if set(record.fields) >= {"text1", "text2"}:
        columns |= _pair(header, columns)
    return columns | _matched(header, record, columns, folded, _ALIASES.get(record.__name__, {}))


def folded(name: str) -> str:
    """Fold a name to what tells it from others: no case, width, blanks, `_`, `-`, and no remark in brackets at its end.

    >>> folded(" Ｓentence_A (必填)")
    'sentencea'
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_\-\ufeff\u200b]+", "", re.sub(r"(?<=.)[(\[【].*[)\]】]\s*$", "", text.strip()))


def missing_fields(columns: Columns, record: type[Record]) -> list[str]:
    """List the fields of a record that must have a column and have none; of `score` and `label` one will do."""
    return [fields[0] for fields in record.required if not any(field in columns for field in fields)]


def unmatched(header: Sequence[str], columns: Columns, record: type[Record], rows: Sequence[Mapping[str, object]]) -> RowError:
    """Say which fields have no column, which columns there are, and what to type.

    Args:
        header: names of the columns.
        columns: those that have a field.
        record: what a row must hold.
        rows: some of the file, by which the example to type is chosen.
    """
    missing = missing_fields(columns, record)
    free = [name for name in header if name and name not in _used(columns)]
    example = {}
    for field in missing:
        fitting = [name for name in free if _is_number(rows, name) == (field == "score")] or free
        example[field] = fitting[0] if fitting else "…"
        free = [name for name in free if name != example[field]]
    needed = [" or ".join(fields) for fields in record.required if fields[0] in missing]
    names = " and ".join(filter(None, (", ".join(needed[:-1]), needed[-1])))
    reason = f"has no column for {names}; its columns are {listed(header)}. Say which is which"
    return RowError(None, reason, ("columns", example))


def description(header: Sequence[str], columns: Columns, record: type[Record], given: Collection[str]) -> str | None:
    """Say what was recognised, and what is not read; None if all columns bear the names of their fields, or were given."""
    recognised = {field: columns[field] for field in record.fields if field in columns and field not in given}
    pairs = [f"{listed(names)} → {field}" for field, names in recognised.items() if names != (field,)]
    unread = [name for name in header if name and name not in _used(columns)]
    return (", ".join(pairs) + (f" (not read: {listed(unread)})" if unread else "")) if pairs else None


def listed(names: Sequence[str]) -> str:
    """Names in one line, the first of them where there are many."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(_shown, names[:_MOST_NAMED])) + more


def typed(values: Mapping[str, object]) -> str:
    """A mapping as it is typed into a shell.

    >>> print(typed({"text1": "问题", "text2": " a, b"}), typed({"0": 1, "1": None}))
    '{text1: 问题, text2: " a, b"}' '{0: 1, 1: null}'
    """
    items = (f"{_quoted(key)}: {'null' if value is None else _quoted(str(value))}" for key, value in values.items())
    return shlex.quote(f"{{{', '.join(items)}}}")


def _quoted(text: str) -> str:
    if text and not re.search(r"[\s,:=(){}\[\]'\"$\\]", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(name: str) -> str:
    return repr(name) if name != name.strip() or not name else name[:40]


def _used(columns: Columns) -> set[str]:
    return {name for names in columns.values() for name in names}


def _given(header: Sequence[str], field: str, name: str) -> str:
    """The column of this name, or the only one that differs from it in case, width or blanks."""
    alike = [column for column in header if folded(column) == folded(name)]
    if name in header or not header:
        return name
    if len(alike) == 1:
        return alike[0]
    raise RowError(None, f"has no column {name!r}, which columns names for {field}: its columns are {listed(header)}")


def _matched(
    header: Sequence[str],
    record: type[Record],
    columns: Columns,
    same: Callable[[str], str],
    names: Mapping[str, frozenset[str]],
) -> Columns:
    """The columns of fields that have none yet, whose name, by `same`, is among those of the field."""
    matched: Columns = {}
    for field in record.fields:
        others = (*columns, *matched)
        if field not in names or field in columns or any(_is_alternative(record, field, other) for other in others):
            continue
        free = [name for name in header if name not in _used(columns) | _used(matched)]
        plain = [name for name in free if same(name) in names[field]]
        numbered = _numbered(free, same, names[field]) if field in _NUMBERED else []
        if len(plain) > 1:
            raise _ambiguous(field, plain)
        if plain or numbered:
            matched[field] = (*plain, *numbered)
    return matched


def _is_alternative(record: type[Record], field: str, other: str) -> bool:
    """Whether a row needs one of two fields only: score or label."""
    return field != other and any(field in fields and other in fields for fields in record.required)


def _numbered(header: Iterable[str], same: Callable[[str], str], names: frozenset[str]) -> list[str]:
    """The columns that have a number after one of the names, in the order of the numbers."""
    numbers = {}
    for name in header:
        match = re.fullmatch(r"(.*?\D)[ _-]?(\d+)", same(name))
        if match and match[1] in names:
            numbers[name] = int(match[2])
    return sorted(numbers, key=lambda name: numbers[name])


def _pair(header: Sequence[str], columns: Columns) -> Columns:
    """The columns of the two texts, by names that belong together; of one text, by a name that goes with that of the other."""
    fields = [field for field in ("text1", "text2") if field not in columns]
    free = [name for name in header if name not in _used(columns)]
    other = [(side, folded(columns[field][0])) for side, field in enumerate(("text1", "text2")) if field in columns]
    related = [pair for pair in _PAIRS if all(name in pair[side] for side, name in other)]
    for pairs in (related, _PAIRS):
        names = {field: _side(free, [pair for pair in pairs if _is_whole(pair, free, fields)], field) for field in fields}
        for field, alike in names.items():
            if len(alike) > 1:
                raise _ambiguous(field, alike)
        if fields and all(names.values()):
            return {field: (alike[0],) for field, alike in names.items()}
    return {}


def _is_whole(pair: tuple[frozenset[str], ...], header: Sequence[str], fields: Sequence[str]) -> bool:
    """Whether the names of a pair are there for all these fields."""
    return all(_side(header, [pair], field) for field in fields)


def _side(header: Sequence[str], pairs: Sequence[tuple[frozenset[str], ...]], field: str) -> list[str]:
    """The columns that bear a name of a text of some pairs."""
    return [name for name in header if any(folded(name) in pair[field == "text2"] for pair in pairs)]


def _ambiguous(field: str, names: Sequence[str]) -> RowError:
    reason = f"has several columns that could be {field}: {listed(names)}. Choose one"
    return RowError(None, reason, ("columns", {field: names[0]}))


def _is_number(rows: Sequence[Mapping[str, object]], name: str) -> bool:
    """Whether a column's first value is a number."""
    values = [row[name] for row in rows if row.get(name) not in (None, "")]
    return bool(values) and re.fullmatch(r"-?[\d.,]+\s*[%分]?", str(values[0])) is not None
