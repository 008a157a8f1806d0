"""Checks the built site: every link and anchor within it leads somewhere, and no page loads anything from another machine.

    python tools/check_site.py site

Links to other sites are looked at only for their form. Says what is wrong, a line each, and exits with 1.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
_NOT_LOADED = {"canonical", "alternate", "prev", "next"}  # kinds of <link> that a browser does not fetch
_CSS_URL = re.compile(r"(?:@import\s*|url\(\s*)[\"']?(?:https?:)?//[^\"')]+")


class Page(HTMLParser):
    """The links, the loaded files and the anchors of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element links to, loads and is called."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in _LOADED and values.get(_LOADED[tag]):
            fetched = not set(values.get("rel", "").split()) & _NOT_LOADED
            (self.loaded if fetched else self.links).append(values[_LOADED[tag]])


@cache
def read(file: Path) -> Page:
    """A page, read once."""
    return Page(file)


def wrong_link(link: str, file: Path) -> str | None:
    """What is wrong with a link of a page; None if it leads somewhere, or out of the site in a proper form."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        proper = parts.scheme in ("mailto", "data") or (parts.scheme in ("http", "https") and "." in parts.netloc)
        return None if proper else "is no address"
    target = file if not parts.path else (file.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "leads nowhere"
    fragment = unquote(parts.fragment)
    if fragment and target.suffix == ".html" and fragment not in read(target).anchors:
        return "has no such anchor"
    return None


def faults(site: Path) -> list[str]:
    """All faults of a site."""
    lines = []
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # whose addresses are those of a server's root
            continue
        page = read(file.resolve())
        name = file.relative_to(site)
        lines += [f"{name}: loads {url} from another machine" for url in page.loaded if re.match(r"(https?:)?//", url)]
        for link in dict.fromkeys([*page.links, *(url for url in page.loaded if not re.match(r"(https?:)?//", url))]):
            fault = wrong_link(link, file.resolve())
            lines += [f"{name}: {link} {fault}"] if fault else []
    for file in sorted(site.rglob("*.css")):
        lines += [f"{file.relative_to(site)}: {url}" for url in _CSS_URL.findall(file.read_text(encoding="utf-8"))]
    return lines


def main() -> None:
    """Check the site that the first argument names."""
    site = Path(sys.argv[1])
    lines = faults(site)
    pages = len(list(site.rglob("*.html")))
    print("\n".join(lines) or f"{pages} pages: every link leads somewhere, nothing is loaded from elsewhere")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
