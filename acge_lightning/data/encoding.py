"""Files of text: UTF-8, UTF-16 with a byte order mark, and GB18030, of which GBK and GB2312 are a part."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
from functools import cache, lru_cache
from pathlib import Path
from typing import IO

from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK = 2**20  # bytes
_ENOUGH = 10_000  # continuation bytes of valid UTF-8, which no other encoding has by chance
# The most frequent hanzi: a third of any longer Chinese text.
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同"
    "现当没动面起看定天分还进好小部其些主样理心本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最"
)


def open_bytes(file: Path) -> IO[bytes]:
    """Open a file, unpacked where its name ends in `.gz`."""
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def open_text(file: Path) -> io.TextIOWrapper:
    r"""Open a file of text in its own encoding, without a byte order mark; its lines end in `\n` and keep it.

    Bytes that do not fit UTF-8 or GB18030 become lone surrogates, which a record refuses by the name of their field.

    Raises:
        InputError: most of it is neither UTF-8 nor GB18030.
        OSError, EOFError or zlib.error: it cannot be read.
    """
    encoding = encoding_of(file)
    content = open_bytes(file)
    return io.TextIOWrapper(content, encoding, "surrogateescape", newline="\n")  # type: ignore[arg-type]


def encoding_of(file: Path) -> str:
    """The encoding of a file: `utf-8`, `utf-8-sig`, `utf-16`, `utf-32` or `gb18030`; a warning says which, but of UTF-8.

    A file is UTF-8 if it has more characters of UTF-8 than bytes that do not fit: a damaged byte makes no other encoding.

    Raises:
        InputError, OSError, EOFError, zlib.error: as in `open_text`.
    """
    state = file.stat()
    return _encoding(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _encoding(file: Path, size: int, changed: int) -> str:
    with open_bytes(file) as content:
        encoding = _detected(content)
    if encoding is None:
        name = file.name.removesuffix(".gz")
        raise InputError(
            f"{file} is neither UTF-8 nor GB18030: save it as UTF-8 (in Excel: CSV UTF-8), or, if it is Big5 for example, "
            f"iconv -f BIG5 -t UTF-8 {name} > utf8_{name}"
        )
    if not encoding.startswith("utf-8"):
        _LOG.warning("%s is %s, read as such", file, encoding.upper())
    return encoding


def _detected(content: IO[bytes]) -> str | None:
    """The encoding of some bytes, of which only those are read that tell; None if it is an unknown one."""
    block = content.read(_BLOCK)
    for mark, encoding in _MARKS:
        if block.startswith(mark):
            return encoding
    if 4 * block.count(0) > len(block):  # UTF-16 without a mark, or no text
        return None
    decoder, is_start, continuation_bytes = codecs.getincrementaldecoder("utf-8")(), True, 0
    while block:
        try:
            continuation_bytes += len(block) - len(decoder.decode(block))
        except UnicodeDecodeError:
            return _of_broken(block if is_start else block[block.find(b"\n") + 1 :])
        if continuation_bytes > _ENOUGH:
            return "utf-8"
        is_start, block = False, content.read(_BLOCK)
    return "utf-8"


def _of_broken(sample: bytes) -> str | None:
    """The encoding of whole lines that are not valid UTF-8."""
    utf8 = sample.decode("utf-8", "replace")
    broken = utf8.count("\ufffd")
    if sum(letter > "\x7f" for letter in utf8) > 2 * broken:
        return "utf-8"
    if _is_chinese(sample.decode("gb18030", "replace")):
        return "gb18030"
    lines = utf8.splitlines()
    broken_lines = sum("\ufffd" in line for line in lines)
    return None if broken_lines > max(2, len(lines) // 10) else "utf-8"


def _is_chinese(text: str) -> bool:
    """Whether a text that was read as GB18030 makes sense: nearly no broken characters, and hanzi that are in use."""
    wide = [letter for letter in text if letter > "\x7f"]
    in_use = [letter for letter in wide if letter in _in_use()]
    if len(in_use) < 2 or len(in_use) < 0.5 * len(wide) or text.count("\ufffd") > max(2, 0.02 * len(wide)):
        return False
    return len(in_use) < 200 or sum(letter in _FREQUENT for letter in in_use) > 0.1 * len(in_use)


@cache
def _in_use() -> frozenset[str]:
    """The hanzi of everyday use (the first level of GB 2312), its punctuation and its wide letters."""
    rows = [0xA1, 0xA3, *range(0xB0, 0xD8)]
    return frozenset("".join(bytes([row, cell]).decode("gb2312", "ignore") for row in rows for cell in range(0xA1, 0xFF)))
