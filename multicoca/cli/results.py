"""What a run leaves for people: summary, model card, TensorBoard examples and the data of the report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from multicoca.cli.report import CaptionExample, Report, RetrievalExample, write_report
from multicoca.config import Config, to_yaml
from multicoca.data.annotations import TEST
from multicoca.data.sample import Item
from multicoca.eval.captioning import is_reference
from multicoca.eval.evaluator import Answers
from multicoca.eval.shapes import all_references, scene_judge
from multicoca.modality import Processor, TensorBoardViewer, UnreadableFileError
from multicoca.model.bundle import Bundle
from multicoca.reading import refuse_broken

_TENSORBOARD_EXAMPLES = 6
_CAPTION_FAILURES, _CAPTION_SUCCESSES, _RETRIEVALS, _ACROSS = 9, 6, 4, 3  # what a page can hold
_TOP = 5
_NO_THUMBNAIL_PX = 64


def log_answers(
    writer: SummaryWriter, step: int, answers: Mapping[str, Answers], processors: Mapping[str, Processor]
) -> None:
    """Shows captions beside references, with thumbnails and whatever else a modality shows, in TensorBoard."""
    for modality, own in answers.items():
        for number, item in enumerate(own.items[:_TENSORBOARD_EXAMPLES]):
            processor, tag = processors[modality], f"examples/{modality}/{number}"
            writer.add_image(tag, np.asarray(_thumbnail(item, processor)), step, dataformats="HWC")
            if isinstance(processor, TensorBoardViewer):
                with suppress(UnreadableFileError), refuse_broken():
                    processor.show(writer, f"{tag}/full", item.decode(processor), step)
        rows = [f"| {_reference(item)} | {caption} |" for item, caption in zip(own.items, own.captions, strict=True)]
        table = "\n".join(["| reference | written |", "|---|---|", *rows[:_TENSORBOARD_EXAMPLES]])
        writer.add_text(f"captions/{modality}", table, step)


def summary(results: Mapping[str, Any]) -> str:
    """Returns the main figures as lines for the terminal."""
    lines = []
    for modality, found in results.get("modalities", {}).items():
        figures = dict(_figures(found))
        lines.append(f"{modality:<10}" + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    for way, found in results.get("across", {}).items():
        lines.append(f"{way:<20}R@1 {found['recall@1']:.3f}")
    if "split" in results.get("protocol", {}) and results["protocol"]["split"] != TEST:
        lines.append(f"evaluated on the split {results['protocol']['split']}")
    seconds = results.get("seconds", {})
    if seconds:
        lines.append("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    if "peak_memory_gib" in results:
        lines.append(f"peak memory: {results['peak_memory_gib']:.2f} GiB")
    return "\n".join(lines)


def model_card(config: Config, results: Mapping[str, Any]) -> str:
    """Returns the README.md of a model folder."""
    lines = [f"# {config.name}", "", "A MultiCoCa model: contrastive embeddings and captions for files of", ""]
    lines += [f"- {modality}" for modality in config.modalities]
    lines += ["", "```python", "import multicoca", 'model = multicoca.load("this folder")', "```", ""]
    for modality, found in results.get("modalities", {}).items():
        lines += [
            f"## {modality}: {found['used']} of {found['listed']} {found.get('split', TEST)} items",
            "",
            "| | |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value:.3f} |" for name, value in _figures(found)] + [""]
    if "protocol" in results:
        lines += ["## Protocol", ""] + [f"- {name}: {value}" for name, value in results["protocol"].items()]
    return "\n".join(lines) + "\n"


def _figures(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Picks the main figures of a modality."""
    rows = []
    if "retrieval" in found:
        rows.append(("R@1 to text", found["retrieval"]["source_to_text"]["recall@1"]))
        rows.append(("R@1 from text", found["retrieval"]["text_to_source"]["recall@1"]))
    for part, prefix in (("captioning", ""), ("composition", "held-out ")):
        for name in ("exact_match", "attributes"):
            if name in found.get(part, {}):
                rows.append((prefix + name.replace("_match", ""), found[part][name]))
    return rows


def write_run_report(
    folder: Path,
    config: Config,
    bundle: Bundle,
    results: Mapping[str, Any],
    answers: Mapping[str, Answers],
    command: str,
) -> None:
    """Writes report.html from a run's results and answers."""
    retrievals = {}
    for modality, own in answers.items():
        retrievals[modality] = _text_retrievals(bundle, modality, own, config.seed)
    for way in results.get("across", {}):
        first, _, second = way.partition("_to_")
        retrievals[f"{first} → {second}"] = _across_retrievals(bundle, first, second, answers, config.seed)
    report = Report(
        title=config.name,
        command=command,
        results=dict(results),
        curves=_curves(folder / "tensorboard"),
        captions={modality: _caption_examples(bundle, modality, own) for modality, own in answers.items()},
        retrievals=retrievals,
        config_yaml=to_yaml(config),
        environment=environment(bundle.device),
    )
    write_report(report, folder / "report.html")


def environment(device: torch.device) -> dict[str, str]:
    """Returns versions and hardware."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "multicoca": version("multicoca"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "hardware": f"{hardware}, {torch.get_num_threads()} threads",
    }


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    names = (
        [line for line in information.read_text().splitlines() if line.startswith("model name")]
        if information.is_file()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the scalars of all TensorBoard files of a run, those before a resume included."""
    if not folder.is_dir():
        return {}  # an evaluation by itself has none
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    curves = {}
    for tag in accumulator.Tags()["scalars"]:
        points = accumulator.Scalars(tag)
        curves[tag] = ([point.step for point in points], [point.value for point in points])
    return curves


def _thumbnail(item: Item, processor: Processor) -> Image:
    """Returns a picture of an item; a grey one where none can be made of it any more."""
    try:
        with refuse_broken():
            return processor.thumbnail(item.decode(processor))
    except UnreadableFileError:
        return new_image("RGB", (_NO_THUMBNAIL_PX, _NO_THUMBNAIL_PX), "gray")


def _caption_examples(bundle: Bundle, modality: str, answers: Answers) -> list[CaptionExample]:
    """Picks the worst captions and some right ones."""
    judge = scene_judge(answers.items, bundle.processors[modality])
    rows = []
    for index in answers.captioned():
        item, caption = answers.items[index], answers.captions[index]
        if judge is None:
            rows.append((item, caption, is_reference(caption, item.texts), None))
        else:
            exact, right, total = judge(item, caption)
            rows.append((item, caption, exact, right / total))
    wrong = sorted((row for row in rows if not row[2]), key=lambda row: row[3] if row[3] is not None else 0.0)
    chosen = wrong[:_CAPTION_FAILURES] + [row for row in rows if row[2]][:_CAPTION_SUCCESSES]
    processor = bundle.processors[modality]
    return [
        CaptionExample(_thumbnail(item, processor), all_references(item, processor), caption, exact, score)
        for item, caption, exact, score in chosen
    ]


def _text_retrievals(bundle: Bundle, modality: str, answers: Answers, seed: int) -> list[RetrievalExample]:
    """Asks with each item's first caption; the worst answers come first."""
    chosen = [index for index in _distinct(answers, seed) if answers.items[index].texts]
    if not chosen:
        return []
    texts = [answers.items[index].texts[0] for index in chosen]
    similarity = bundle.embed_text(texts) @ answers.embeddings[chosen].T
    items = [(modality, answers.items[index]) for index in chosen]
    return [
        RetrievalExample(query=texts[row], results=_top(bundle, similarity[row], items, row), rank=rank)
        for row, rank in _worst_and_best(similarity, _RETRIEVALS)
    ]


def _across_retrievals(
    bundle: Bundle, first: str, second: str, answers: Mapping[str, Answers], seed: int
) -> list[RetrievalExample]:
    """Asks with items of one modality for the same scene in another."""
    rows = {item.key: index for index, item in enumerate(answers[second].items)}
    pairs = [
        (i, rows[answers[first].items[i].key])
        for i in _distinct(answers[first], seed)
        if answers[first].items[i].key in rows
    ]
    similarity = answers[first].embeddings[[a for a, _ in pairs]] @ answers[second].embeddings[[b for _, b in pairs]].T
    items = [(second, answers[second].items[b]) for _, b in pairs]
    return [
        RetrievalExample(
            query=_reference(answers[first].items[pairs[row][0]]),
            results=_top(bundle, similarity[row], items, row),
            rank=rank,
            query_thumbnail=_thumbnail(answers[first].items[pairs[row][0]], bundle.processors[first]),
        )
        for row, rank in _worst_and_best(similarity, _ACROSS)
    ]


def _distinct(answers: Answers, seed: int) -> list[int]:
    """Returns items without common first captions, in a drawn order."""
    order = np.random.default_rng(seed).permutation(len(answers.items)).tolist()
    return list({answers.items[index].texts[:1] or index: index for index in reversed(order)}.values())


def _reference(item: Item) -> str:
    """Returns an item's first caption, or its label where it has none."""
    return item.texts[0] if item.texts else f"(no caption; label: {item.label})"


def _worst_and_best(similarity: torch.Tensor, count: int) -> list[tuple[int, float]]:
    """Returns (row, rank of the right answer) of the worst rows, then of as many right ones."""
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(dim=1).float()
    worst = [row for row in ranks.argsort(descending=True).tolist() if ranks[row] > 1][:count]
    best = [row for row in range(len(ranks)) if ranks[row] == 1][:count]
    return [(row, float(ranks[row])) for row in worst + best]


def _top(
    bundle: Bundle, similarity: torch.Tensor, items: list[tuple[str, Item]], right: int
) -> list[tuple[Image, str, bool]]:
    """Returns the five nearest items as (thumbnail, caption, whether it is the right one)."""
    nearest = similarity.topk(min(_TOP, len(items))).indices.tolist()
    return [
        (_thumbnail(items[index][1], bundle.processors[items[index][0]]), _reference(items[index][1]), index == right)
        for index in nearest
    ]
