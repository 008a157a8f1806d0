"""Damaged files of rows of every form: they are read, with bad rows among them, or refused in one line."""

import csv
import gzip
import io
import json
import random
import re
import zipfile

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import Case, damaged_files, outcomes

from acge_lightning.data.readers import rows

TABLE = [{"text": f'怎么退货{i}, "急"', "label": str(i % 3), "score": f"{i / 7:.3f}"} for i in range(40)]
NUMBERS = [b"0", b"-1", b"1", b"65536", b"1048577", b"4294967295", b"4294967296", b"18446744073709551616", b"9" * 400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of each form."""
    made = tmp_path_factory.mktemp("rows")
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, TABLE[0].keys())
    writer.writeheader()
    writer.writerows(TABLE)
    (made / "a.csv").write_bytes(out.getvalue().encode("gbk"))
    (made / "b.csv").write_bytes(out.getvalue().replace(",", ";").encode("utf-16"))
    (made / "a.tsv.gz").write_bytes(gzip.compress("\n".join("\t".join(row.values()) for row in TABLE).encode()))
    (made / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE), encoding="utf-8")
    (made / "a.json").write_text(json.dumps(TABLE, indent=1), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(TABLE), made / "a.parquet")
    book = openpyxl.Workbook()
    for row in [list(TABLE[0]), *(list(row.values()) for row in TABLE)]:
        book.active.append(row)
    book.save(made / "a.xlsx")
    return made


def read(folder):
    for file in sorted(folder.iterdir()):
        for _, row in rows(file):
            str(row)


def scrambled(folder, count):
    """Bytes of files that are other ones, in short runs."""
    chance = random.Random(1)
    for number in range(count):
        file = chance.choice(sorted(folder.iterdir()))
        at, run = chance.randrange(file.stat().st_size), chance.randbytes(chance.choice([1, 1, 4, 40]))
        yield Case(f"{number} {file.name} at {at}: {run[:4]}", lambda copy, n=file.name, a=at, r=run: _replace(copy / n, a, r))


def _replace(file, at, run):
    data = file.read_bytes()
    file.write_bytes(data[:at] + run + data[at + len(run) :])


def damaged_workbooks(folder, count):
    """The files of a workbook with other numbers, other bytes, doubled or missing pieces, in a sound archive."""
    chance = random.Random(2)
    with zipfile.ZipFile(folder / "a.xlsx") as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    for number in range(count):
        name = chance.choice([*files, *["xl/worksheets/sheet1.xml"] * len(files)])
        data, kind = files[name], chance.choice(["number", "number", "number", "cell", "bytes", "cut", "twice"])
        at = chance.randrange(len(data))
        if kind == "number" and (found := list(re.finditer(rb"\d+", data))):
            one = chance.choice(found)
            data = data[: one.start()] + chance.choice(NUMBERS) + data[one.end() :]
        elif kind == "cell":
            data = re.sub(rb'r="[A-Z]+(\d+)"', rb'r="%s\1"' % chance.choice([b"XFD", b"ZZZZ", b"", b"A1048576"]), data, count=9)
        elif kind == "bytes":
            data = data[:at] + chance.randbytes(8) + data[at + 8 :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at // 2 :]
        yield Case(f"{number} {name}: {kind}", lambda copy, n=name, d=data: _repack(copy / "a.xlsx", files | {n: d}))


def _repack(file, files):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)


@pytest.mark.heavy
def test_whatever_a_file_of_rows_holds_it_is_read_or_refused(folder, tmp_path):
    cases = [*damaged_files(folder), *scrambled(folder, 80), *damaged_workbooks(folder, 80)]
    found = outcomes(folder, cases, "test_fuzz_rows:read", tmp_path)
    assert [one for one in found if not one.is_fine] == []
    assert {one.kind for one in found} == {"ok", "InputError"}
