"""The report as one HTML file: styles and images inside, no script, nothing fetched, no markup but its own."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib import resources

from msa_plugin.bench.report_tables import Section, clean
from msa_plugin.errors import MissingExtraError

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SMALL = re.compile(r" \[([^\[\]]*)\]</td>")


def page(lead: Section, sections: Sequence[Section]) -> str:
    """The whole file; what is folded can be opened. Raises MissingExtraError without markdown-it."""
    style = (resources.files("msa_plugin.bench") / "report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#s{i}">{_text(s.title)}</a>' for i, s in enumerate(sections))
    body = [_html(lead.markdown(level=1)), f"<nav>{links}</nav>", *map(_section, range(len(sections)), sections)]
    for figure in (f for section in sections for f in section.figures):
        source = "data:image/png;base64," + b64encode(figure.png).decode("ascii")
        body = [part.replace(f'src="plots/{figure.name}"', f'src="{source}"') for part in body]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(lead.title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    folded = [(t.title, t.markdown()) for t in section.tables if t.folded]
    shown = _html(section.markdown([t for t in section.tables if not t.folded]))
    if section.code:
        folded, shown = [(section.title, section.markdown())], ""
    details = [f"<details><summary>{_text(title)}</summary>{_html(text)}</details>" for title, text in folded]
    return f'<section id="s{index}">{shown}{"".join(details)}</section>'


def _html(markdown: str) -> str:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtraError('reports need markdown-it: pip install "msa-plugin[bench]"') from error
    made: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return _SMALL.sub(r"<small>\1</small></td>", made)


def _text(content: str) -> str:
    return escape(clean(content), quote=True)
