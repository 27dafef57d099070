"""The code blocks of the README run, and every command it shows is one the program takes.

A Python block that needs real weights or a long run has `<!-- no-run: reason -->` on the line before its
fence; it is then only compiled. Command lines are parsed by the real parser and not run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest

from transenc.cli import build_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONSOLES = {"console", "bash", "sh", "shell"}
END_OF_COMMAND = {"|", ">", ">>", "2>", "<", "&&", "||", ";", "&"}


class Block(NamedTuple):
    """One fenced block: the line its text starts on, its language, its text, why it is not run."""

    line: int
    language: str
    text: str
    no_run: str | None


def read_blocks(markdown: str) -> list[Block]:
    """Return every fenced block of `markdown` that names a language."""
    mark = r"(?:^<!-- no-run:(?P<reason>[^\n]*?)-->\n)?"
    fence = r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$"
    blocks = []
    for match in re.finditer(mark + fence, markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start("text")) + 1
        reason = match["reason"]
        blocks.append(Block(line, match["language"], match["text"], reason and reason.strip()))
    return blocks


def read_commands(block: Block) -> list[tuple[int, list[str]]]:
    """Return line and words of each command in a console block: those with a prompt, if any has one."""
    commands = []
    lines = block.text.replace("\\\n", "\0").split("\n")
    has_prompt = any(text.startswith("$ ") for text in lines)
    line = block.line
    for text in lines:
        if text.startswith("$ ") or not has_prompt:
            words = shlex.split(text.removeprefix("$ ").replace("\0", " "), comments=True)
            end = next((at for at, word in enumerate(words) if word in END_OF_COMMAND), len(words))
            if words[:end]:
                commands.append((line, words[:end]))
        line += 1 + text.count("\0")
    return commands


def find_complaint(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """Return what the parser says against `words`, or an empty string."""
    log = io.StringIO()
    try:
        with contextlib.redirect_stderr(log), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as stop:
        return log.getvalue().strip().split("\n")[-1] if stop.code else ""
    return ""


def test_blocks_and_commands_are_found() -> None:
    markdown = (
        "<!-- no-run: needs weights -->\n```python\nx = 1\n```\n\n"
        "```console\n$ transenc label --model m \\\n    --pairs p.tsv | head  # why\nit's output\n"
        "$ make demo\n```\n"
        "```bash\n# first\nmake install\n```\n"
    )
    blocks = read_blocks(markdown)
    assert blocks[0] == Block(3, "python", "x = 1\n", "needs weights")
    assert [(block.line, block.language, block.no_run) for block in blocks[1:]] == [
        (7, "console", None),
        (13, "bash", None),
    ]
    assert read_commands(blocks[1]) == [
        (7, ["transenc", "label", "--model", "m", "--pairs", "p.tsv"]),
        (10, ["make", "demo"]),
    ]
    assert read_commands(blocks[2]) == [(14, ["make", "install"])]


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    markdown = README.read_text(encoding="utf-8")
    blocks = [block for block in read_blocks(markdown) if block.language == "python"]
    assert blocks, "README.md shows no Python"
    for block in blocks:
        # Blank lines in front, so that a traceback shows the line of the README.
        code = compile("\n" * (block.line - 1) + block.text, str(README), "exec")
        assert block.no_run != "", f"README.md:{block.line}: say why the block is not run"
        if block.no_run is None:
            exec(code, {"__name__": "__main__"})


def test_commands_are_ones_the_program_takes() -> None:
    parser = build_parser()
    verbs, faults = set(), []
    for block in read_blocks(README.read_text(encoding="utf-8")):
        for line, words in read_commands(block) if block.language in CONSOLES else []:
            if words[0] == "transenc":
                verbs.add(words[1])
                complaint = find_complaint(parser, words[1:])
                faults += [f"README.md:{line}: {complaint}"] if complaint else []
    assert faults == []
    assert verbs >= {"distill", "evaluate"}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert targets >= {"help", "install", "demo", "test", "lint", "bench"}
    text = (ROOT / name).read_text(encoding="utf-8")
    mentioned = {
        target
        for words in re.findall(r"(?:`|^\s*|\$ |exec )make ((?:[a-z-]+ ?)+)", text, re.M)
        for target in words.split()
    }
    assert mentioned
    assert mentioned - targets == set()


def test_the_headline_figures_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    runs = defaultdict(list)
    for path in sorted((README.parent / "docs" / "results").glob("*-seed[0-9]*.json")):
        if not path.name.startswith("study-") or path.name.startswith("study-minilm"):  # small starts are told in words
            runs[path.name.partition("-seed")[0]].append(json.loads(path.read_text(encoding="utf-8"))["scores"])
    assert runs
    for name, seeds in runs.items():
        start = seeds[0]["stages/c00-00-start/model-0"]["average"]
        last = max(path for path in seeds[0] if path.endswith("40-bi-train/model-0"))
        mean = fmean(scores[last]["average"] for scores in seeds)
        row = f"| {start:.2f} | {mean:.2f} | {mean - start:+.2f} |"
        assert row in text, f"README.md must have {row} for {name}, {len(seeds)} seed(s)"
    for path in (README.parent / "docs" / "results").glob("study-minilm-*-average-*.json"):
        average = json.loads(path.read_text(encoding="utf-8"))
        figure, gain = average["scores"]["model-0"]["average"], average["to_start"]["model-0"]["difference"]
        row = f"| {figure - gain:.2f} | {figure:.2f} | {gain:+.2f} |"
        assert row in text, f"README.md must have {row} for {path.stem}"
