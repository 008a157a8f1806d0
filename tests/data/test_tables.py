"""Tables as spreadsheets write them: delimiters of csv, blank rows, workbooks."""

import csv
import datetime
import io
import random
import sys
import zipfile

import openpyxl
import pytest

from acge_lightning.data import excel
from acge_lightning.data.readers import rows
from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

TABLE = [
    {"问题": "运费, 由谁付; 多少", "答案": 'say "yes"', "分数": "3,5"},
    {"问题": "tab\there", "答案": "two\nlines; or, more", "分数": "0"},
    {"问题": "c", "答案": "", "分数": ""},
]


def separated(table, delimiter):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, table[0].keys(), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


# ---- delimiters


@pytest.mark.parametrize(("delimiter", "said"), [(",", None), (";", "';'"), ("\t", "tabs")])
@pytest.mark.parametrize("count", [1, 3, 600])
def test_csv_has_the_delimiter_of_its_header_and_rows(tmp_path, caplog, delimiter, said, count):
    table = (TABLE * 200)[:count]
    path = tmp_path / "a.csv"
    path.write_bytes(separated(table, delimiter).encode("utf-8-sig"))
    assert [row for _, row in rows(path)] == table
    assert messages(caplog) == ([f"{path}: its values stand between {said}, and are read so"] if said else [])


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_bad_rows_have_their_line_whatever_the_delimiter(tmp_path, delimiter):
    lines = ["text;label", *(f"text {i};{i}" for i in range(2, 60))]
    lines[20] = "more;1;2"
    lines[40] = '"open quote;1'
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines).replace(";", delimiter), encoding="utf-8")
    found = list(rows(path))
    assert [line for line, row in found if isinstance(row, RowError)] == [21, 41]
    excess = "tabs" if delimiter == "\t" else f"'{delimiter}'"
    assert str(found[19][1]) == f"has 1 values more than the header: quote those with {excess}"
    assert [line for line, _ in found] == list(range(2, 60))


@pytest.mark.parametrize("header", ["text", "文本", '"text"'])
def test_prose_in_one_column_is_not_split(tmp_path, caplog, header):
    texts = ["one; two; three", "a; b", "tabs\there\tand there", "none at all", "分号；全角，不分"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([header, *texts]), encoding="utf-8")
    assert [list(row.values()) for _, row in rows(path)] == [[text] for text in texts]
    assert not caplog.records
    path.write_text("\n".join([header, *(f'"{text}, and, so on"' for text in texts)]), encoding="utf-8")
    assert [list(row.values()) for _, row in rows(path)] == [[f"{text}, and, so on"] for text in texts]


def test_a_comma_that_fits_is_the_delimiter(tmp_path):
    """Also where the header has a semicolon in a name, and each text has one."""
    path = tmp_path / "a.csv"
    path.write_text("text; of one's own,label\n" + "a; b,1\n" * 20, encoding="utf-8")
    assert {tuple(row.items()) for _, row in rows(path)} == {(("text; of one's own", "a; b"), ("label", "1"))}


def test_decimal_commas_do_not_hide_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text1;text2;score\n" + "a;b;3,5\n" * 20, encoding="utf-8")
    assert {tuple(row.values()) for _, row in rows(path)} == {("a", "b", "3,5")}


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", "sep=,"])
def test_the_line_that_names_the_delimiter_is_no_header(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\r\ntext{first[-1]}label\r\na{first[-1]}1\r\n", encoding="utf-8")
    assert list(rows(path)) == [(3, {"text": "a", "label": "1"})]


# ---- blank rows


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_blank_rows_are_counted_and_are_no_rows(tmp_path, caplog, name, delimiter):
    lines = [",,", "", "text1,text2,score", "a,b,1", ",,", " ,　, ", "", "c,d,2", *[",,,,,"] * 1000]
    path = tmp_path / name
    path.write_text("\n".join(lines).replace(",", delimiter), encoding="utf-8")
    found = list(rows(path))
    assert [(line, tuple(row.values())) for line, row in found] == [(4, ("a", "b", "1")), (8, ("c", "d", "2"))]
    assert messages(caplog)[-1:] == [f"{path}: 1003 blank rows are skipped"]


def test_a_file_of_blank_rows_has_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",,\n , ,\n", encoding="utf-8")
    assert list(rows(path)) == []


# ---- workbooks


def book(path, cells, **sheets):
    """A workbook of one sheet of these cells, and further ones."""
    made = openpyxl.Workbook()
    for name, values in {"Sheet1": cells, **sheets}.items():
        sheet = made.active if name == "Sheet1" else made.create_sheet(name)
        for cell, value in values.items():
            sheet[cell] = value
    made.save(path)
    return path


def test_rows_have_the_numbers_and_the_texts_that_excel_shows(tmp_path):
    cells = {"B3": "问题", "C3": "分数", "D3": "日期", "B4": "a", "C4": 1, "D4": datetime.date(2024, 1, 2)}
    cells |= {"B6": "two\nlines", "C6": 1.5, "D6": datetime.datetime(2024, 1, 2, 3, 4, 5)}
    cells |= {"B9": 12345, "C9": True, "B10": 0.1, "C10": -3.0, "D10": datetime.time(1, 2), "B11": 2**45, "D12": " "}
    path = book(tmp_path / "公司 数据 (1).xlsx", cells)
    assert list(rows(path)) == [
        (4, {"问题": "a", "分数": "1", "日期": "2024-01-02"}),
        (6, {"问题": "two\nlines", "分数": "1.5", "日期": "2024-01-02T03:04:05"}),
        (9, {"问题": "12345", "分数": "TRUE", "日期": ""}),
        (10, {"问题": "0.1", "分数": "-3", "日期": "01:02:00"}),
        (11, {"问题": "35184372088832", "分数": "", "日期": ""}),
    ]


def test_a_workbook_has_the_rows_of_its_csv(tmp_path):
    chance = random.Random(0)
    table = [
        [f"文{chance.randrange(9)}", "b" + "".join(chance.choices('a",;\n', k=4)) + "b", str(round(chance.random(), 6))]
        for _ in range(3000)
    ]
    made = openpyxl.Workbook(write_only=True)
    sheet = made.create_sheet()
    for values in [["a", "b", "c"], *table]:
        sheet.append([*values[:2], float(values[2])] if values[2] != "c" else values)
    made.save(tmp_path / "a.xlsx")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["a", "b", "c"], *table])
    assert [row for _, row in rows(tmp_path / "a.xlsx")] == [row for _, row in rows(tmp_path / "a.csv")]


def test_one_sheet_is_read_and_the_others_are_named(tmp_path, caplog):
    first = {"A1": "text", "A2": "a"}
    path = book(tmp_path / "a.xlsx", {}, 问答=first, 空={}, 备注={"A1": "x"})
    assert list(rows(path)) == [(2, {"text": "a"})]
    assert messages(caplog) == [f"{path}: the sheet 问答 is read, and not 备注: save another as a file of its own to use it"]
    made = openpyxl.load_workbook(path)
    made["问答"].sheet_state = "hidden"
    made["备注"]["A2"] = "y"
    made.save(path)
    assert list(rows(path)) == [(2, {"x": "y"})]


def test_an_empty_workbook_has_no_rows(tmp_path):
    assert list(rows(book(tmp_path / "a.xlsx", {}))) == []
    assert list(rows(book(tmp_path / "b.xlsx", {"A1": "text"}))) == []


def test_a_workbook_with_another_suffix_is_read(tmp_path):
    path = book(tmp_path / "a.xlsx", {"A1": "text", "A2": "a"})
    assert list(rows(path.rename(tmp_path / "a.xls"))) == [(2, {"text": "a"})]


def test_open_document_sheets_are_read(tmp_path):
    """As LibreOffice writes them, with the rest of the sheet as repeated empty cells."""
    cell = '<table:table-cell office:value-type="string"><text:p>%s</text:p></table:table-cell>'
    number = '<table:table-cell office:value-type="float" office:value="%s"><text:p>1</text:p></table:table-cell>'
    rest = '<table:table-cell table:number-columns-repeated="16382"/>'
    lines = [cell % "文本" + cell % "分数", "", cell % "a" + number % "2", cell % "b" + number % "2.5"]
    body = "".join(f"<table:table-row>{line}{rest}</table:table-row>" for line in lines)
    names = " ".join(f'xmlns:{k}="urn:oasis:names:tc:opendocument:xmlns:{k}:1.0"' for k in ("office", "table", "text"))
    end = f'<table:table-row table:number-rows-repeated="1048572">{rest}</table:table-row>'
    with zipfile.ZipFile(tmp_path / "a.ods", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        packed.writestr("META-INF/manifest.xml", "<manifest:manifest xmlns:manifest='urn:x'/>")
        packed.writestr(
            "content.xml",
            f"<office:document-content {names}><office:body><office:spreadsheet><table:table table:name='一'>{body}{end}"
            "</table:table></office:spreadsheet></office:body></office:document-content>",
        )
    assert list(rows(tmp_path / "a.ods")) == [(3, {"文本": "a", "分数": "2"}), (4, {"文本": "b", "分数": "2.5"})]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "bytes", "another zip"])
def test_what_is_no_workbook_is_named(tmp_path, damage):
    path = book(tmp_path / "a.xlsx", {"A1": "text", "A2": "a"})
    whole = path.read_bytes()
    data = {"empty": b"", "text": b"text,label\na,1\n", "cut": whole[:-300], "bytes": whole.replace(b"PK\x05\x06", b"\xff" * 4)}
    if damage == "another zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("a.txt", "b")
    else:
        path.write_bytes(data[damage])
    with pytest.raises(InputError, match=r"cannot be read as a workbook \(.*\): save it again, or as csv") as caught:
        list(rows(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_two_cells_that_ask_for_all_memory_do_not_end_the_program(tmp_path):
    path = book(tmp_path / "a.xlsx", {"A1": "text", "XFD1048576": "b"})
    with pytest.raises(InputError, match="its reader gave up: it is damaged, or too large"):
        list(rows(path))


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows do not limit the memory of a process")
def test_a_workbook_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = book(tmp_path / "a.xlsx", {"A1": "text", "A2": "b"})
    with zipfile.ZipFile(path) as packed:
        files = {entry: packed.read(entry) for entry in packed.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for entry, data in files.items():
            with packed.open(entry, "w", force_zip64=True) as out:
                start, mark, end = data.partition(b"<t>b")
                out.write(start + mark)
                for _ in range(6 * 1024 if mark else 0):
                    out.write(b"b" * 2**20)
                out.write(end)
    with pytest.raises(InputError, match="its reader gave up: it is damaged, or too large"):
        list(rows(path))


def test_a_reader_that_stops_early_leaves_no_process(tmp_path, monkeypatch):
    started = []

    class Counted(excel.subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(excel.subprocess, "Popen", Counted)
    path = book(tmp_path / "a.xlsx", {"A1": "text", **{f"A{i}": "long " * 100 for i in range(2, 2000)}})
    some = rows(path)
    next(some)
    some.close()
    assert [process.poll() is not None for process in started] == [True]


def test_without_its_library_the_extra_is_named(tmp_path, monkeypatch):
    path = book(tmp_path / "a.xlsx", {"A1": "text", "A2": "a"})
    monkeypatch.setattr(excel, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"a\.xlsx: Excel files need .*: pip install 'acge-lightning\[excel\]', or save it"):
        list(rows(path))
