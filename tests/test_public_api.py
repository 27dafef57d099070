"""The public names: complete, sorted, importable, explained with an example that parses."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import inspect

import pytest

import transenc

CALLABLES = [name for name in transenc.__all__ if name != "__version__"]


def test_all_is_sorted_and_holds_the_contract() -> None:
    assert transenc.__all__ == sorted(transenc.__all__)
    assert set(transenc.__all__) >= {"Backbone", "distill", "evaluate_sts", "read_pairs", "score_pairs"}
    assert "_HOMES" not in transenc.__all__


def test_dir_agrees() -> None:
    assert dir(transenc) == transenc.__all__


@pytest.mark.parametrize("name", CALLABLES)
def test_name_is_importable_and_public(name: str) -> None:
    value = getattr(transenc, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__module__.startswith("transenc.")
    assert getattr(transenc, name) is value


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_has_an_example_that_parses(name: str) -> None:
    docstring = inspect.getdoc(getattr(transenc, name)) or ""
    assert "Example" in docstring, f"{name}: the docstring has no 'Example:' section"
    examples = doctest.DocTestParser().get_examples(docstring)
    assert examples, f"{name}: the example has no '>>>' line"
    for example in examples:
        compile(example.source, f"the example of {name}", "single")


MODULES = [
    "averaging", "criteria", "devices", "preflight", "regularisers", "resampling", "students", "targets", "teachers",
    "views", "workers",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(f"transenc.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted or "+SKIP" in inspect.getsource(module)


def test_version_is_that_of_the_installed_package() -> None:
    assert transenc.__version__ == importlib.metadata.version("transenc")


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'transenc' has no attribute 'distil'"):
        _ = transenc.distil
