"""Pages of the documentation as a reader types them: files to write, shell blocks and Python blocks, in their order."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(
    r"(?:^`([\w./-]+\.\w+)`:\n\n)?^```([\w-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)  # after the file it shows
_COMMENT = re.compile(r"\s+#\s.*|^#.*")
_SHOWN = {"text", "html", "csv", "json", "jsonl", "yaml", "python"}  # kinds of blocks that need not be run


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        kind: bash, python, yaml, csv, text …
        text: what is in it.
        file: the name of the file that it shows, or None.
    """

    kind: str
    text: str
    file: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, each with what it goes on with, without comments."""
        if self.kind != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (_COMMENT.sub("", line).strip() for line in lines) if line]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    matches = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(kind, text, file or None) for file, kind, text in matches]


def name(page: Path) -> str:
    """The page's path within the repository."""
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[str]:
    """All commands of a page."""
    return [command for block in blocks(page) for command in block.commands]


def kinds() -> set[str]:
    """The kinds of blocks that are neither run nor known as shown only."""
    return {block.kind for page in PAGES for block in blocks(page)} - _SHOWN - {"bash"}
