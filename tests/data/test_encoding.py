"""Encodings of text files: what is recognised and said, what is refused, and that damage changes neither."""

import gzip
import json

import pytest

from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

QUESTIONS = [
    "怎么退货",
    "运费由谁承担？",
    "发票（电子版）在哪里下载",
    "会员积分，多久到账",
    "密码忘了怎么办",
    "What is the 运费?",
]
TABLE = [{"问题": question, "答案": f"答{i}：请看“帮助”第{i}页", "相似度": str(i)} for i, question in enumerate(QUESTIONS * 5)]
KOREAN = "안녕하세요 오늘 날씨가 정말 좋네요. 환불은 어떻게 하나요? 배송이 언제 되는지 알고 싶습니다. 고객 센터에 전화했습니다."
JAPANESE = "今日は天気がとても良いですね。返品はどうすればいいですか？配送がいつになるか知りたいです。"
TAIWANESE = "這個問題應該怎麼處理？請問運費由誰負擔，發票在哪裡下載，會員點數多久會入帳"


def content(name):
    """The table in the form that a name asks for."""
    if "jsonl" in name:
        return "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in TABLE)
    tab = "\t" if "tsv" in name else ","
    return "".join(tab.join(values) + "\r\n" for values in [TABLE[0], *(row.values() for row in TABLE)])


def written(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["公司数据.csv", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16-le", "utf-16-be", "utf-16"])
def test_encodings_are_recognised_and_said(tmp_path, caplog, name, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = written(tmp_path / name, (mark + content(name)).encode(encoding))
    for _ in range(2):
        found = list(rows(path))
    assert [row for _, row in found] == TABLE
    assert [line for line, _ in found] == list(range(1 if "jsonl" in name else 2, len(TABLE) + (1 if "jsonl" in name else 2)))
    said = {"gbk": "GB18030", "gb18030": "GB18030"}.get(encoding, "UTF-16" if "16" in encoding else "")
    assert [record.getMessage() for record in caplog.records] == ([f"{path} is {said}, read as such"] if said else [])


def test_two_rows_are_enough(tmp_path):
    path = written(tmp_path / "a.csv", "文本,标签\r\n不错,好评\r\n".encode("gbk"))
    assert list(rows(path)) == [(2, {"文本": "不错", "标签": "好评"})]


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_damaged_byte_costs_its_row_alone(tmp_path, name, encoding):
    """Whatever byte it is: neither is the rest of the file read as another encoding."""
    lines = content(name).encode(encoding).split(b"\r\n")
    whole = list(rows(written(tmp_path / f"whole_{name}", b"\r\n".join(lines))))
    middle = len(lines) // 2
    at = lines[middle].index("答".encode(encoding))
    lines[middle] = lines[middle][:at] + b"\xff" + lines[middle][at + 1 :]
    path = written(tmp_path / name, b"\r\n".join(lines))
    found = list(rows(path))
    assert [line for line, _ in found] == [line for line, _ in whole]
    changed = [(line, row) for (line, row), old in zip(found, whole, strict=True) if (line, row) != old]
    ((line, row),) = changed
    assert line == middle + 1
    if name == "a.jsonl":
        kind = "UTF-8" if encoding == "utf-8" else "GB18030"
        assert str(row) == f"is not valid {kind} (byte {at + 1}): mend its encoding, or on_bad_row=skip"
    else:
        with pytest.raises(UnicodeEncodeError):
            "".join(row.values()).encode()


def test_a_few_damaged_rows_of_ascii_make_no_chinese(tmp_path):
    lines = [f"text {i},{i}".encode() for i in range(100)]
    lines[50] = b"caf\xe9s \xb0\xa1,1"
    found = list(rows(written(tmp_path / "a.csv", b"text,label\n" + b"\n".join(lines))))
    assert [row["text"] for _, row in found if row["text"].isascii()] == [f"text {i}" for i in range(100) if i != 50]
    with pytest.raises(UnicodeEncodeError):
        found[50][1]["text"].encode()


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_what_comes_late_is_recognised_too(tmp_path, caplog, encoding):
    """After megabytes of ASCII, which all encodings share."""
    lines = ["text"] + ["the same line " * 10] * 20_000 + ["怎么退货", "运费由谁承担"]
    path = written(tmp_path / "a.csv", "\n".join(lines).encode(encoding))
    assert [row["text"] for _, row in rows(path)][-2:] == lines[-2:]
    assert len(caplog.records) == (encoding == "gbk")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (TAIWANESE, "big5"),
        (KOREAN, "euc-kr"),
        (JAPANESE, "euc-jp"),
        (JAPANESE, "shift-jis"),
        ("Où est le café à côté de l'école ?", "latin-1"),
        ("Сегодня хорошая погода", "koi8-r"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_other_encodings_are_not_guessed(tmp_path, text, encoding, name):
    lines = [json.dumps({"text": text}, ensure_ascii=False) if name == "a.jsonl" else text for _ in range(20)]
    path = written(tmp_path / name, "\n".join(["text", *lines]).encode(encoding))
    with pytest.raises(InputError, match="is neither UTF-8 nor GB18030: save it as UTF-8") as caught:
        list(rows(path))
    assert str(caught.value).startswith(str(path))
    assert f"iconv -f BIG5 -t UTF-8 {name} > utf8_{name}" in str(caught.value)


def test_utf16_without_its_mark_is_not_guessed(tmp_path):
    with pytest.raises(InputError, match="is neither UTF-8 nor GB18030"):
        list(rows(written(tmp_path / "a.csv", "text,label\nword,1\n".encode("utf-16-le"))))


def test_utf16_that_is_cut_is_named(tmp_path):
    path = written(tmp_path / "a.csv", content("csv").encode("utf-16")[:-3])
    with pytest.raises(InputError, match=r"a\.csv: cannot be read \(.*truncated data.*\): save it as UTF-8"):
        list(rows(path))


def test_a_changed_file_is_looked_at_again(tmp_path):
    path = written(tmp_path / "a.csv", content("csv").encode("gbk"))
    assert [row for _, row in rows(path)] == TABLE
    written(path, content("csv").encode())
    found = list(rows(path))
    assert not any(isinstance(row, RowError) for _, row in found)
    assert [row for _, row in found] == TABLE
