"""`multicoca doctor`: what is installed, what is missing, and the exact command that fixes it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from multicoca.build import build
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import SceneRenderer, installed_modalities

_IMPORT_NAMES = {
    "libusb-package": "libusb_package",
    "python-neo-lzf": "lzf",
    "hydra-submitit-launcher": "hydra_plugins.hydra_submitit_launcher",
}


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
    if broken:
        print(f"\nTo fix it: {sys.executable} -m pip install 'multicoca[{','.join(broken)}]'")
    return 1 if broken else 0


def _check_extra(extra: str) -> bool:
    """Prints the state of an extra's packages; returns whether all of them can be imported."""
    states = []
    whole = True
    for requirement in map(Requirement, requires("multicoca") or []):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue  # needed by everything
        state = _check_package(requirement.name)
        whole &= not state.startswith("MISSING")
        states.append(f"{requirement.name} {state}")
    print(f"extra {extra:<10}{'; '.join(states)}")
    return whole


def _check_package(name: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        return "MISSING"
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
