"""`multicoca doctor`: what is installed, what is missing, and the exact command that fixes it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from multicoca.build import build
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import SceneRenderer, installed_modalities, require

_IMPORT_NAMES = {
    "libusb-package": "libusb_package",
    "python-neo-lzf": "lzf",
    "hydra-submitit-launcher": "hydra_plugins.hydra_submitit_launcher",
}
_NOT_NEEDED = {"decord": "not needed: PyAV reads every video"}
_LOAD_PLUGINS = "from tensorboard import default; default.get_plugins()"
_PLUGINS_TIMEOUT_S = 120


def run_doctor(arguments: list[str]) -> int:
    """Runs the command; exit status 1 when something of an extra is missing."""
    argparse.ArgumentParser(prog="multicoca doctor", description=__doc__).parse_args(arguments)
    print(f"multicoca {version('multicoca')}, Python {platform.python_version()}, {platform.platform()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"torch {torch.__version__}, GPU: {gpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"java (for METEOR only): {shutil.which('java') or 'not found'}\n")
    broken = [extra for extra in ("image", "video", "points", "eval", "cluster") if not _check_extra(extra)]
    print()
    for name, point in sorted(installed_modalities().items()):
        print(f"modality {name:<10}{_check_modality(name, point.value)}")
    problem = tensorboard_problem()
    print(f"\ntensorboard {version('tensorboard')}: {problem or 'starts with the plug-ins of all packages'}")
    if broken:
        print(f"\nTo fix it: {sys.executable} -m pip install 'multicoca[{','.join(broken)}]'")
    return 1 if broken or problem else 0


def _check_extra(extra: str) -> bool:
    """Prints the state of an extra's packages; returns whether all of them can be imported."""
    states = []
    whole = True
    for requirement in map(Requirement, requires("multicoca") or []):
        if requirement.marker is None or f'extra == "{extra}"' not in str(requirement.marker):
            continue
        if requirement.marker.evaluate({"extra": extra}):
            state = _check_package(requirement.name)
        else:
            state = f"is not made for this system ({_NOT_NEEDED.get(requirement.name, 'the rest works without it')})"
        if state.startswith("MISSING") and requirement.name in _NOT_NEEDED:
            state = f"is not installed ({_NOT_NEEDED[requirement.name]})"
        whole &= not state.startswith("MISSING")
        states.append(f"{requirement.name} {state}")
    print(f"extra {extra:<10}{'; '.join(states)}")
    return whole


def _check_package(name: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        reason = no_open3d_wheel() if name == "open3d" else None
        return f"MISSING ({reason})" if reason else "MISSING"
    if name == "open3d":
        return found  # its import needs system libraries, which the modality's own check loads
    try:
        importlib.import_module(_IMPORT_NAMES.get(name, name.replace("-", "_")))
    except (ImportError, OSError) as error:
        return f"MISSING (installed {found}, but it does not import: {error})"
    return found


def _check_modality(name: str, package: str) -> str:
    """Says whether a modality's package imports and its processor reads a file."""
    try:
        importlib.import_module(package)
        config = compose_config("train_shapes", [f"modality=[{name}]"])
        processor = build(config.modalities[name]["processor"], "processor")
        if isinstance(processor, SceneRenderer):  # a real file through the real reader
            raw = processor.decode(processor.render(draw_scene(0, "train", 0)), processor.scene_suffix)
            processor.preprocess(raw, False, torch.Generator())
    except (ImportError, ValueError, OSError, KeyError) as error:
        return f"NOT USABLE: {error}"
    return f"{package} {_version_of(package)}: reads {' '.join(processor.suffixes)}"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return version("multicoca")


def no_open3d_wheel() -> str | None:
    """Returns why pip finds no wheel of open3d for this Linux; None where it may find one.

    Source: the names of the wheels of open3d 0.19, the last for glibc before 2.35, and 0.20, the first for Python 3.13.
    """
    library, found = platform.libc_ver()
    if library != "glibc":
        return None
    is_new = sys.version_info >= (3, 13)
    needed = "2.35" if is_new else "2.31"
    if Version(found) >= Version(needed):
        return None
    remedy = "use Python 3.11 or 3.12, which need 2.31, or a newer system" if is_new else "use a newer system"
    python = "Python 3.13 and later" if is_new else "this Python"
    return f"its wheels for {python} need glibc {needed}, this system has {found}; {remedy}"


def tensorboard_problem() -> str | None:
    """Returns why TensorBoard cannot start and what helps; None if it can.

    It imports the plug-ins of all installed packages, among them open3d's, which links libusb-1.0.
    """
    error = _plugins_error({})
    if error is None:
        return None
    try:
        path = require("libusb_package", "points").get_library_path()
    except ImportError:
        path = None
    if path is not None and _plugins_error({"LD_PRELOAD": str(path)}) is None:
        return (
            f"CANNOT START: open3d's plug-in needs libusb-1.0 ({error})\n"
            f"  start it by: LD_PRELOAD={path} tensorboard --logdir runs\n"
            "  or install the library once: apt-get install libusb-1.0-0"
        )
    return f"CANNOT START: {error}. Install what is missing, or remove the package whose plug-in needs it"


def _plugins_error(environment: dict[str, str]) -> str | None:
    """Returns the last line of the error that importing TensorBoard's plug-ins gives; None if they can be imported."""
    command = [sys.executable, "-c", _LOAD_PLUGINS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environment, timeout=_PLUGINS_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"its plug-ins take more than {_PLUGINS_TIMEOUT_S} s to import"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
