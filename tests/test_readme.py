"""The README's commands exist, and its tree is the tree."""

import re
from pathlib import Path

from multicoca.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_command_shown_is_a_command():
    shown = set(re.findall(r"^(?:.* && )?multicoca (\w+)", TEXT, re.MULTILINE))
    assert {"train", "evaluate", "caption", "index", "search", "doctor"} <= shown <= set(COMMANDS)


def test_the_two_first_lines_are_there_as_they_must_be():
    lines = TEXT.splitlines()
    start = "python3 -m venv .venv && . .venv/bin/activate && pip install -e "
    assert start + "'.[all]' && multicoca train" in lines
    assert start + "'.[all,test]' && pytest" in lines


def test_the_tree_names_what_is_there():
    listed = re.findall(r"^  (\w+)(?:/|\.py)\s", TEXT[TEXT.index("## The tree") :], re.MULTILINE)
    ignored = ("__init__.py", "__pycache__", "py.typed")
    real = {p.stem for p in (ROOT / "multicoca").iterdir() if p.name not in ignored}
    assert set(listed) == real


def test_pictures_of_the_readme_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).is_file(), path
