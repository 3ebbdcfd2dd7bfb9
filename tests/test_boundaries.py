"""What the house promises about its own structure."""

import ast
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "multicoca").rglob("*.py"))
MODALITIES = sorted((ROOT / "modalities").rglob("*.py"))
MODALITY_WORDS = {"image", "images", "video", "videos", "points", "audio", "pixel", "pixels", "frame", "frames"}
# who may import whom: a package may import those at its own level or below
LEVELS = [
    {"reading", "isolated", "terminal"},
    {"tokens", "modality", "files"},
    {"nn", "text", "build"},
    {"distributed"},
    {"model"},
    {"data"},
    {"eval", "train", "inputs"},
    {"config"},
    {"runs"},
    {"api", "testing"},
    {"convert"},
    {"cli"},
]


def level_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "api"
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def imports_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def test_the_core_never_imports_a_modality():
    guilty = [(path.name, name) for path in CORE for name in imports_of(path) if name.startswith("multicoca_")]
    assert guilty == []


def test_imports_go_in_one_direction():
    guilty = []
    for path in CORE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module.endswith("__init__") and module.count(".") == 1:
            continue
        for name in imports_of(path):
            if name.startswith("multicoca.") and level_of(name) > level_of(module):
                guilty.append(f"{module} imports {name}")
    assert guilty == []


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Za-z][a-z]*|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("package", ["nn", "model", "train", "distributed"])
def test_no_identifier_of_the_core_knows_a_modality(package):
    guilty = []
    for path in sorted((ROOT / "multicoca" / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("name", "id", "arg", "attr"):
                name = vars(node).get(field)
                if isinstance(name, str) and words(name) & MODALITY_WORDS:
                    guilty.append(f"{path.name}:{node.lineno} {name}")
    assert guilty == []


def test_every_module_says_what_it_is():
    without = [
        str(path)
        for path in CORE + MODALITIES
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert without == []


def test_no_file_is_longer_than_400_lines():
    assert [str(path) for path in CORE + MODALITIES if path.read_text().count("\n") > 400] == []


def test_the_list_of_packages_is_complete():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    core = {".".join(path.parent.relative_to(ROOT).parts) for path in CORE}
    shelf = {path.parent.name for path in MODALITIES}
    assert listed == core | shelf | {"multicoca_configs"}


def test_the_shelf_and_no_package_named_modalities():
    assert not (ROOT / "modalities" / "__init__.py").exists()
    assert files("multicoca_configs").joinpath("train.yaml").is_file()
