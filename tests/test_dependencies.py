"""Every package that is imported is declared where it is needed, and only what is imported is."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# installed for Hydra, which finds it by its name; and what a package below the tests imports
NOT_IMPORTED = {"cluster": {"hydra-submitit-launcher"}, "test": {"beartype", "pip", "scipy", "setuptools"}}

WITH_TORCH = {"triton"}  # torch for CUDA brings the version that it needs; nothing fails without


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


CORE = declared(PROJECT["dependencies"])
OPTIONAL = {name: declared(requirements) for name, requirements in EXTRAS.items() if name != "all"}


@functools.cache
def installed() -> Mapping[str, list[str]]:
    return packages_distributions()


def imported(folder: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yields (file, distribution, extra that `require` names) of every import of what others made."""
    distributions = installed()
    local = {path.stem for path in folder.rglob("*.py")} | {path.name for path in folder.rglob("*") if path.is_dir()}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            extra = None
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [] if node.level else [node.module]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                name, extra = (argument.value for argument in node.args)
                names = [name]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
                names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            else:
                continue
            for top in {name.partition(".")[0] for name in names}:
                is_ours = top.startswith("multicoca") or (top in local and top not in distributions)
                if top not in sys.stdlib_module_names and not is_ours:
                    for found in distributions.get(top, [top])[:1]:
                        yield f"{file.relative_to(ROOT)}: {top}", canonicalize_name(found), extra


def undeclared(folder: str, *extras: str) -> list[str]:
    """Lists imports of what neither the core, the extras nor those that `require` names in the same file declare."""
    found = list(imported(ROOT / folder))
    required = {(place.partition(":")[0], extra) for place, _, extra in found if extra}
    wrong = []
    for place, name, extra in found:
        here = {extra} if extra else {*extras, *(each for file, each in required if place.startswith(f"{file}:"))}
        allowed = set().union(*(OPTIONAL[each] for each in here)) | (set() if extra else CORE | WITH_TORCH)
        wrong += [] if name in allowed else [f"{place} of {name}"]
    return wrong


def test_the_core_imports_what_it_declares():
    assert undeclared("multicoca") == []


@pytest.mark.parametrize("modality", ["image", "video", "points"])
def test_a_modality_imports_what_the_core_and_its_extra_declare(modality):
    assert undeclared(f"modalities/multicoca_{modality}", modality) == []


def test_the_tests_import_what_the_extras_declare():
    assert undeclared("tests", *OPTIONAL) == []


def test_nothing_is_declared_that_is_not_imported():
    used = {name for folder in ("multicoca", "modalities") for _, name, _ in imported(ROOT / folder)}
    assert used >= CORE
    for extra, names in OPTIONAL.items():
        own = {name for _, name, _ in imported(ROOT / "tests")} if extra == "test" else used
        assert names - own - NOT_IMPORTED.get(extra, set()) == set(), extra


@pytest.mark.parametrize(
    ("system", "machine", "has_wheel"),
    [
        ("linux", "x86_64", True), ("linux", "aarch64", False), ("win32", "AMD64", True), ("win32", "ARM64", False),
        ("darwin", "arm64", False), ("darwin", "x86_64", False),
    ],
)  # fmt: skip
def test_decord_is_asked_for_only_where_it_has_wheels(system, machine, has_wheel):
    marker = next(Requirement(each).marker for each in EXTRAS["video"] if each.startswith("decord"))
    assert isinstance(marker, Marker)
    assert marker.evaluate({"sys_platform": system, "platform_machine": machine}) == has_wheel


def test_extras_are_named_as_require_names_them():
    named = {extra for folder in ("multicoca", "modalities") for _, _, extra in imported(ROOT / folder) if extra}
    assert named <= set(OPTIONAL)
    whole = re.fullmatch(r"multicoca\[(.*)\]", EXTRAS["all"][0])
    assert set(whole[1].split(",")) == set(OPTIONAL) - {"test"}
