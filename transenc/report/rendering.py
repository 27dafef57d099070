"""A document as one self-contained HTML file, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from importlib.resources import files

from transenc.report.blocks import Cell, Document, Figures, Section, Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#!])")


def render_html(document: Document) -> str:
    """The document as a page without scripts and addresses, in light or dark as the reader's system is.

    Example:
        >>> "<h1>mine</h1>" in render_html(Document("mine", "It helped.", "helped", []))
        True
    """
    style = files("transenc.report").joinpath("report.css").read_text("utf-8")
    body = "\n".join(_section_html(section, number) for number, section in enumerate(document.sections, 1))
    links = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(document.sections, 1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)} · transenc report</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kind">transenc report</p>
<h1>{escape(document.title)}</h1>
<p class="lead {document.mood}">{escape(document.lead)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def render_markdown(document: Document) -> str:
    r"""The same title, sentence, paragraphs and tables as the page; no figures.

    Example:
        >>> render_markdown(Document("mine", "It helped.", "helped", []))
        '# mine\n\n**It helped.**\n'
    """
    parts = [f"# {_mark_down(document.title)}", f"**{_mark_down(document.lead)}**"]
    for section in document.sections:
        parts.append(f"## {_mark_down(section.title)}")
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append(_table_markdown(block))
            elif isinstance(block, str):
                parts.append(_mark_down(block))
    return "\n\n".join(parts) + "\n"


def _section_html(section: Section, number: int) -> str:
    blocks: list[str] = []
    for block in section.blocks:
        if isinstance(block, Table):
            blocks.append(_table_html(block))
        elif isinstance(block, Figures):
            blocks.append(_figures_html(block))
        else:
            blocks.append(f"<p>{_prose(block)}</p>")
    match section.blocks:
        case [Figures(figures=[_]), Table(folded=False), *_]:  # one drawing has its table beside it
            blocks[:2] = [f'<div class="beside"><div>{blocks[0]}</div>{blocks[1]}</div>']
    return f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>\n' + "\n".join(blocks) + "\n</section>"


def _figures_html(block: Figures) -> str:
    inside = "".join(
        f"<figure>{f'<figcaption>{escape(figure.title)}</figcaption>' if figure.title else ''}{figure.svg}</figure>"
        for figure in block.figures
    )
    return f'<p class="note">{_prose(block.caption)}</p>\n<div class="figures">{inside}</div>'


def _table_html(table: Table) -> str:
    numeric = [all(row[i].kind == "number" for row in table.rows) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(name)}</th>' if name else "<td></td>"
        for name, number in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(_cell_html(cell, "th" if i == 0 else "td") for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    caption = _prose(table.caption)
    shown = f"<caption>{caption}</caption>\n" if caption and not table.folded else ""
    label = escape(table.caption.replace("`", "").partition(":")[0].partition(". ")[0])
    scrolled = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'
        f"{shown}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )
    return f"<details>\n<summary>{caption}</summary>\n{scrolled}\n</details>" if table.folded else scrolled


def _cell_html(cell: Cell, tag: str) -> str:
    text = escape(cell.text)
    if cell.kind == "foreign":
        text = f"<bdi>{text}</bdi>"  # a text from right to left turns only itself
    if cell.strong:
        text = f"<b>{text}</b>"
    scope = ' scope="row"' if tag == "th" else ""
    kind = "" if cell.kind == "text" else f' class="{cell.kind}"'
    return f"<{tag}{scope}{kind}>{text}</{tag}>"


def _prose(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _table_markdown(table: Table) -> str:
    right = [all(row[i].kind == "number" for row in table.rows) for i in range(len(table.columns))]
    lines = [
        _line(table.columns, _mark_down),
        _line(["---:" if number else "---" for number in right], str),
        *(_line([f"**{_mark_down(c.text)}**" if c.strong and c.text else _mark_down(c.text) for c in row], str)
          for row in table.rows),
    ]  # fmt: skip
    return f"{_mark_down(table.caption)}\n\n" + "\n".join(lines)


def _line(cells: object, show: Callable[[str], str]) -> str:
    assert isinstance(cells, list | tuple)
    return "| " + " | ".join(show(cell) for cell in cells) + " |"


def _mark_down(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
