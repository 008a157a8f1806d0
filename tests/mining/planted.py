"""Plants duplicates and leaks in texts, so that what a step finds can be counted against what is there."""

import os
import re
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from acge_lightning.data.readers import rows

DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
EDITS = (0.05, 0.1, 0.15)
_CLAUSES = re.compile(r"(?<=[，。！？；,;!?])")
_FULL = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {ord("，"): ord(","), ord("！"): ord("!"), ord("？"): ord("?")}
_CHARACTERS = (
    "银行天气公园手机电脑苹果医生学校老师孩子飞机火车城市河流历史音乐电影足球篮球咖啡面包机器模型数据算法论文实验结果方法问题答案价格质量服务酒店房间早餐客户合同法律法院案件证据公司员工工资股票基金市场经济政策农村水稻小麦玉米"
    "森林动物老虎熊猫大象海洋鲸鱼船只港口贸易出口进口税率海关护照签证旅行地图导航我们他们你们今天明天昨天下午上午晚上春节需要可以应该喜欢讨厌购买出售研究发现认为觉得非常特别比较已经正在曾经突然慢慢认真仔细迅速安全危险健康疾病"
    "药物治疗手术血压血糖心脏肝脏大脑神经细胞基因蛋白病毒细菌"
)
_WORDS = [_CHARACTERS[i : i + 2] for i in range(0, len(_CHARACTERS), 2)]


def own_texts(count, seed=0):
    """Texts of our own: clauses of random words, 8 to some 120 characters."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        clauses = ["".join(rng.choice(_WORDS, rng.integers(2, 9))) for _ in range(rng.integers(1, 8))]
        texts.append("，".join(clauses).ljust(8, "吗") + "。")
    return texts


def real_texts(count, seed=0, skip=0):
    """Distinct real texts of the data folder, 8 characters or more, drawn from all sets of texts."""
    files = sorted(file for family in ("classification", "unlabelled") for file in (DATA / family).glob("*/train.jsonl.gz"))
    texts = {}
    for file in files:
        for number, (_, row) in enumerate(rows(file)):
            if number >= 20_000:
                break
            if len(row["text"]) >= 8:
                texts[row["text"]] = None
    texts = list(texts)
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[skip : skip + count]]


def edited(text, share, rng, letters):
    """A text with `share` of its characters, one at least, replaced, removed or preceded by others."""
    characters = list(text)
    for place in rng.choice(len(text), max(1, int(share * len(text))), replace=False):
        kind = rng.integers(3)
        letter = letters[rng.integers(len(letters))]
        characters[place] = (letter, "", letter + text[place])[kind]
    return "".join(characters)


def reordered(text, rng):
    """The clauses of a text in another order; None if it has one only."""
    clauses = [clause for clause in _CLAUSES.split(text) if clause]
    if len(clauses) < 2:
        return None
    order = rng.permutation(len(clauses))
    if (np.diff(order) > 0).all():
        order = order[::-1]
    return "".join(clauses[i] for i in order)


def variant(text, kind):
    """A text in full width and with other punctuation, or in traditional characters; None if that changes nothing."""
    changed = text.translate(_FULL) if kind == "width" else _traditional()(text)
    return None if changed == text else changed


@cache
def _traditional():
    import opencc

    return opencc.OpenCC("s2t").convert


def duplicates(texts, share=0.05, seed=0):
    """Texts with duplicates planted among them at the end: the texts, and row -> (row of its source, kind)."""
    rng = np.random.default_rng(seed)
    letters = "".join(texts[:500])
    sources = rng.permutation(len(texts))[: int(share * len(texts))].tolist()
    planted, truth = list(texts), {}
    kinds = [*(f"edit {value:.0%}" for value in EDITS), "order", "width", "script"]
    for number, source in enumerate(sources):
        kind = kinds[number % len(kinds)]
        if kind.startswith("edit"):
            copy = edited(texts[source], EDITS[number % len(kinds)], rng, letters)
        else:
            copy = reordered(texts[source], rng) if kind == "order" else variant(texts[source], kind)
        if copy is not None and copy != texts[source]:
            truth[len(planted)] = (source, kind)
            planted.append(copy)
    return planted, truth


def leaks(texts, evaluation, count, seed=0):
    """Training texts with leaks at the end, of evaluation texts of 16 characters or more: the texts, row -> (source, kind)."""
    rng = np.random.default_rng(seed)
    letters = "".join(texts[:500])
    long = [i for i, text in enumerate(evaluation) if content_length(text) >= 16]
    carriers = [text for text in texts if 40 <= len(text) <= 400]
    planted, truth = list(texts), {}
    kinds = ["exact", *(f"edit {value:.0%}" for value in EDITS), "embedded", "embedded 5%", "embedded 10%"]
    for number, source in enumerate(rng.permutation(long)[:count].tolist()):
        kind = kinds[number % len(kinds)]
        copy = variant(evaluation[source], "width") or evaluation[source] + "！"
        if "%" in kind:
            copy = edited(evaluation[source], float(kind.split()[-1].strip("%")) / 100, rng, letters)
        if "embedded" in kind:
            carrier = carriers[rng.integers(len(carriers))]
            cut = rng.integers(len(carrier) + 1)
            copy = carrier[:cut] + copy + carrier[cut:]
        truth[len(planted)] = (source, kind)
        planted.append(copy)
    return planted, truth


def content_length(text):
    """Characters of a text that are letters or digits."""
    return sum(unicodedata.category(character)[0] in "LN" for character in text)


def confusion(truth, flagged, groups):
    """Counts by group: {group: [found, planted]}; `groups` gives the name of a row's group."""
    table = defaultdict(lambda: [0, 0])
    for row in truth:
        for group in ("all", groups(row)):
            table[group][0] += row in flagged
            table[group][1] += 1
    return dict(sorted(table.items()))
