"""Imports point up the list of layers only, and what must stay free of torch does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "transenc"

# A module may import what stands before it. A package (search/) has one place, whatever it holds.
LAYERS = [
    layer.split()
    for layer in (
        "errors config durable locks signals tables pairs corpus benchmarks retrieval_sets model_folders run",
        "metrics resampling devices dropout encoders templates workers",
        "averaging model_cards scoring whitening alignment views losses regularisers targets objectives checkpoints "
        "training",
        "labeling criteria search mining evaluation retrieval_evaluation preflight",
        "bootstrapping outcome identity planning teachers students distillation",
        "report export cli __main__",
    )
]
ORDER = [module for layer in LAYERS for module in layer]
TORCH = {"torch", "transformers", "sentence_transformers", "accelerate", "evaluate"}  # evaluate pulls torch
HEAVY = TORCH | {"datasets", "faiss", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "tqdm"}


# ---- the rule itself


def find_imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything `source` imports, lazy imports too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def find_faults(source: str, module: str) -> list[str]:
    """Say what in `source`, the text of the package's `module`, breaks the rule."""
    place = module.split(".")[1]
    faults = []
    for line, name in find_imports(source, module):
        parts = name.split(".")
        if parts[0] != "transenc" or parts[1:] == ["__version__"]:
            continue
        target = parts[1] if len(parts) > 1 else ""
        where = f"{module}:{line} imports {name}"
        if target not in ORDER:
            faults.append(f"{where}: name the module that defines it")
        elif target != place and ORDER.index(target) > ORDER.index(place):
            faults.append(f"{where}: {target} stands after {place}")
    return faults


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from transenc.errors import InputError", []),
        ("import transenc.durable", []),
        ("from transenc import __version__, durable", []),
        ("from . import durable", []),
        (
            "from transenc.training import train",
            ["transenc.scoring:1 imports transenc.training.train: training stands after scoring"],
        ),
        (
            "def f():\n    from transenc import cli",
            ["transenc.scoring:2 imports transenc.cli: cli stands after scoring"],
        ),
        (
            "from .losses import Loss",
            ["transenc.scoring:1 imports transenc.losses.Loss: losses stands after scoring"],
        ),
        (
            "from transenc import score_pairs",
            ["transenc.scoring:1 imports transenc.score_pairs: name the module that defines it"],
        ),
        ("import transenc", ["transenc.scoring:1 imports transenc: name the module that defines it"]),
    ],
)
def test_the_rule_finds_what_it_should(source: str, expected: list[str]) -> None:
    assert find_faults(source, "transenc.scoring") == expected


def test_modules_of_one_package_may_import_each_other() -> None:
    source = "from . import store\nfrom ..scoring import encode_texts\nfrom ..export import export_model"
    assert find_faults(source, "transenc.search.engine") == [
        "transenc.search.engine:3 imports transenc.export.export_model: export stands after search"
    ]


# ---- the package under the rule


def list_modules() -> dict[str, str]:
    """Return dotted name -> source of every module of the package except its public door."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts != ("transenc", "__init__"):
            modules[".".join(parts)] = path.read_text(encoding="utf-8")
    return modules


def test_every_module_has_a_layer() -> None:
    assert [name for name in list_modules() if name.split(".")[1] not in ORDER] == []
    assert len(set(ORDER)) == len(ORDER)


def test_imports_point_up_the_list() -> None:
    faults = [
        fault
        for name, source in list_modules().items()
        if name.split(".")[1] in ORDER
        for fault in find_faults(source, name)
    ]
    assert faults == []


def test_layer_0_names_no_torch() -> None:
    faults = [
        f"{name}:{line} imports {imported}"
        for name, source in list_modules().items()
        if name.split(".")[1] in LAYERS[0]
        for line, imported in find_imports(source, name)
        if imported.split(".")[0] in TORCH
    ]
    assert faults == []


def test_third_party_imports_are_declared() -> None:
    declared = {
        normalize(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]
        for requirement in requires("transenc") or []
        if "extra ==" not in requirement or re.search("report|hybrid|milvus|serve", requirement)
    }
    distributions = packages_distributions()
    imported = {
        imported.split(".")[0]: f"{name}:{line}"
        for name, source in list_modules().items()
        for line, imported in find_imports(source, name)
    }
    undeclared = {
        top: where
        for top, where in imported.items()
        if top not in {"transenc", "__future__", *sys.stdlib_module_names}
        and not declared & {normalize(name) for name in distributions.get(top, [])}
    }
    assert undeclared == {}


def normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# ---- what a fresh interpreter loads


def load_in_fresh_interpreter(statements: str) -> set[str]:
    """Run `statements` in a new process and return the top-level modules it then holds."""
    code = f"{statements}\nimport sys\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_layer_0_loads_no_torch() -> None:
    present = [name for name in list_modules() if name.split(".")[1] in LAYERS[0]]
    loaded = load_in_fresh_interpreter("\n".join(f"import {name}" for name in present))
    assert "transenc" in loaded
    assert loaded & TORCH == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = load_in_fresh_interpreter("import transenc; transenc.__version__; dir(transenc)")
    assert "transenc" in loaded
    assert loaded & HEAVY == set()


def test_help_loads_nothing_heavy() -> None:
    loaded = load_in_fresh_interpreter(
        "import contextlib, io\n"
        "from transenc.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "assert 'distill' in out.getvalue(), out.getvalue()"
    )
    assert "transenc" in loaded
    assert loaded & HEAVY == set()
