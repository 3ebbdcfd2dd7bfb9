"""The joint model against three models of one modality each: same sizes, same samples of each modality.

Trains what is not there yet under runs/joint_vs_single and prints a table of the differences in points.
Arguments go to every training: python benchmarks/joint_vs_single.py [KEY=VALUE ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

OUTPUT = Path("runs/joint_vs_single")
RUNS = {"joint": "image,video,points", "image": "image", "video": "video_own", "points": "points"}
FIGURES = {
    "R@1 to text": ("retrieval", "source_to_text", "recall@1"),
    "R@1 from text": ("retrieval", "text_to_source", "recall@1"),
    "attributes": ("captioning", "attributes"),
    "exactly right": ("captioning", "exact_match"),
    "held-out attributes": ("composition", "attributes"),
    "held-out exactly right": ("composition", "exact_match"),
}


def main(arguments: list[str]) -> None:
    """Trains and prints."""
    for name, modalities in RUNS.items():
        if not (OUTPUT / name / "results.json").is_file():
            choice = [f"modality=[{modalities}]", f"output={OUTPUT}", f"name={name}"]
            subprocess.run([sys.executable, "-m", "multicoca.cli.main", "train", *choice, *arguments], check=True)
    results = {
        name: json.loads((OUTPUT / name / "results.json").read_text(encoding="utf-8"))["modalities"] for name in RUNS
    }
    print("| | image: joint, alone, difference | video | points |\n|---|---|---|---|")
    for label, path in FIGURES.items():
        cells = []
        for modality in results["joint"]:
            joint, alone = (_figure(results[run][modality], path) for run in ("joint", modality))
            cells.append(f"{joint:.3f}, {alone:.3f}, {100 * (joint - alone):+.1f}")
        print(f"| {label} | " + " | ".join(cells) + " |")


def _figure(result: dict, path: tuple[str, ...]) -> float:
    for key in path:
        result = result[key]
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
