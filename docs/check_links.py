"""Every link of the built site leads somewhere: to a file that is there, and to a place in it that has this name.

    python docs/check_links.py docs/_build/html

Says which do not and exits with 1. Sphinx itself stops at broken references; this looks at what it has written, raw
HTML and anchors among it. Not here: links to other sites, which need the network; templates
that the theme keeps in _static.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the names of its places."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken(site: Path) -> list[str]:
    """A line for each link that leads nowhere."""
    paths = (path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts)
    pages = {path: Page(path.read_text()) for path in paths}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.relative_to(site)}: {link}: no such file")
            elif target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{path.relative_to(site)}: {link}: no such place in the page")
    return found


if __name__ == "__main__":
    lines = broken(Path(sys.argv[1]).resolve())
    print("\n".join(lines) or "every link leads somewhere")
    sys.exit(bool(lines))
