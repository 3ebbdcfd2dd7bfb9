"""The package works from a built wheel and from a strict editable install, away from this folder."""

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROBE = """
import importlib.util, multicoca_image, multicoca_video, multicoca_points
import multicoca
from multicoca.cli.compose import compose_config
from multicoca.modality import installed_modalities
config = compose_config("train_shapes", ["modality=[image]"])
assert {"image", "video", "points"} <= set(installed_modalities())
assert importlib.util.find_spec("modalities") is None
print(multicoca.__file__)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, so that a build leaves nothing in the checkout."""
    target = tmp_path_factory.mktemp("source") / "multicoca"
    kept = ["multicoca", "modalities", "configs", "pyproject.toml", "README.md", "LICENSE"]
    target.mkdir()
    for name in kept:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, target)
    return target


def environment(folder: Path) -> Path:
    """An empty virtual environment that sees the dependencies of this one, but not this project."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for entry in (path for place in site.getsitepackages() for path in Path(place).iterdir()):
        if "multicoca" not in entry.name:
            (borrowed / entry.name).symlink_to(entry)
    (packages / "borrowed.pth").write_text(str(borrowed))
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["wheel", "strict editable", "editable"])
def test_it_works_installed_from_another_folder(kind, source, tmp_path):
    python = environment(tmp_path / "environment")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    if kind == "wheel":
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source),
            cwd=tmp_path)  # fmt: skip
        run(python, *pip, str(next(tmp_path.glob("*.whl"))), cwd=tmp_path)
    else:
        strict = ["--config-settings", "editable_mode=strict"] if kind == "strict editable" else []
        run(python, *pip, "-e", str(source), *strict, cwd=tmp_path)
    location = Path(run(python, "-c", PROBE, cwd=tmp_path).strip())
    assert ROOT not in location.parents
    assert "train a model" in run(python, "-m", "multicoca.cli.main", "--help", cwd=tmp_path)


def test_a_missing_extra_leaves_the_rest_usable_and_is_named(tmp_path):
    code = """
import sys
sys.modules["open3d"] = sys.modules["trimesh"] = sys.modules["decord"] = sys.modules["av"] = None
import io
from pathlib import Path
from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.cli.doctor import run_doctor
from multicoca.data.shapes import draw_scene
image = build_processors(compose_config("train_shapes", ["modality=[image]"]).modalities)["image"]
assert image.decode(image.render(draw_scene(0, "train", 0)), ".jpg").size == (64, 64)
assert run_doctor([]) == 1
"""
    output = run(Path(sys.executable), "-c", code, cwd=tmp_path)
    assert "trimesh MISSING" in output
    assert "-m pip install 'multicoca[video,points]'" in output
