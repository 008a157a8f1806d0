"""A program that writes the first sheet of a workbook as lines of JSON; `excel` runs it in a process of its own.

A workbook of a few bytes can ask for any memory and any time, and the library then ends the process that it runs in. So this
file imports nothing of the package, and limits itself. Its lines are: the names of all sheets with rows, the one that is read
first; then `[number, values]` of each row; then `null`. Instead of any of them it may write a text: what is wrong.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

MEMORY = 4 * 2**30, 40  # bytes, and bytes a byte of the file
SECONDS = 30, 2 / 2**20  # of a processor, and the same


def limit(size: int) -> None:
    """Limit the memory and the time of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, (base, rate) in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        most, hard = int(base + rate * size), resource.getrlimit(kind)[1]
        try:
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # macOS has no limit of memory
            continue


def as_text(value: Any) -> str:
    """A cell as csv has it: 1.0 is 1, dates are ISO."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def opened(file: Path) -> Any:
    """The workbook, also where its suffix is that of another form; else an error says what is wrong with its own."""
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        return CalamineWorkbook.from_path(file)
    except CalamineError as error:
        try:
            return CalamineWorkbook.from_filelike(io.BytesIO(file.read_bytes()))
        except CalamineError:
            raise error from None


def main(file: Path) -> None:
    """Write the lines."""
    limit(file.stat().st_size)
    from python_calamine import CalamineError, SheetVisibleEnum

    def write(line: Any) -> None:
        sys.stdout.write(json.dumps(line) + "\n")

    try:
        book = opened(file)
        names = [sheet.name for sheet in book.sheets_metadata if sheet.visible == SheetVisibleEnum.Visible]
        sheets = [(name, start) for name in names if (start := book.get_sheet_by_name(name).start) is not None]
        write([name for name, _ in sheets])
        for name, start in sheets[:1]:
            for number, values in enumerate(book.get_sheet_by_name(name).to_python(), start[0] + 1):
                write([number, [as_text(value) for value in values]])
        write(None)
    except (CalamineError, OSError, ValueError) as error:
        write(str(error) or type(error).__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
