"""report.html: one page that shows what a run learned, what it gets wrong, and how to repeat it.

The page is a single file without scripts: pictures are data URIs, curves are inline SVG, and nothing is loaded
from elsewhere, so that it can be mailed or archived. Modality names, figures and curves are shown as they come;
missing parts are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from multicoca.cli.report_charts import charts
from multicoca.cli.report_examples import CaptionExample, RetrievalExample, caption_examples, retrieval_examples
from multicoca.cli.report_style import STYLE
from multicoca.cli.report_tables import across_table, is_number, percent, results_table
from multicoca.files import write_text

__all__ = ["CaptionExample", "Report", "RetrievalExample", "page", "write_report"]

_INTRODUCTIONS = {
    "figures": "Each row is one figure, each column one modality. Chance is what guessing scores, for comparison.",
    "curves": "Faint: every logged value. Bold: smoothed. The number beside a name is the last smoothed value.",
    "captions": "What the model wrote, beside the reference that comes closest. In a wrong caption, "
    "<mark>marked words</mark> differ from that reference, which has <ins>these words</ins> instead. "
    "Wrong captions come first, the worst on top; they are picked out, so the figures above say how rare they are.",
    "retrieval": "For each text the five items that the model ranks first, best on the left. The one that the text "
    "was written for has a green frame. Queries that missed it come first.",
    "across": "The query is an item of one modality, the answers are items of another; its caption is printed for the "
    "reader only. Training never pairs two modalities with each other: they meet through text alone.",
    "repeat": "",
}


@dataclass(frozen=True)
class Report:
    """What the page shows. Everything but the title may be empty.

    Attributes:
        title: the run's name.
        command: what reproduces the run.
        results: {"modalities": {name: {"retrieval": ..., "captioning": ..., "composition": ..., "zero_shot": ...,
            "used": ..., "listed": ...}}, "across": {"first_to_second": {...}}, "seconds": {part: ...},
            "peak_memory_gib": ..., "protocol": {what: how}}; any part may be missing.
        curves: TensorBoard tag -> (steps, values).
        captions: examples by modality.
        retrievals: examples by modality, or by a pair of them such as "first -> second".
        config_yaml: the resolved configuration.
        environment: versions and hardware.
        seconds: wall time of the run; by default the sum of the results' seconds.
    """

    title: str
    command: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[int], Sequence[float | int]]] = field(default_factory=dict)
    captions: Mapping[str, Sequence[CaptionExample]] = field(default_factory=dict)
    retrievals: Mapping[str, Sequence[RetrievalExample]] = field(default_factory=dict)
    config_yaml: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float | int | None = None


def write_report(report: Report, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_text(path, page(report))


def page(report: Report) -> str:
    """Returns the page as HTML."""
    across = {
        name for name, found in report.retrievals.items() if any(one.query_thumbnail is not None for one in found)
    }
    by_text = {name: found for name, found in report.retrievals.items() if name not in across}
    by_item = {name: found for name, found in report.retrievals.items() if name in across}
    drawn = charts(report.curves)
    bodies = {
        ("figures", "Figures"): results_table(report.results.get("modalities") or {}),
        ("curves", "Training curves"): f'<div class="charts">{drawn}</div>' if drawn else "",
        ("captions", "Captions"): caption_examples(report.captions),
        ("retrieval", "Finding by text"): retrieval_examples(by_text, failures=4, successes=2),
        ("across", "Finding across modalities"): across_table(report.results.get("across") or {})
        + retrieval_examples(by_item, failures=2, successes=1),
        ("repeat", "Repeat this run"): _repeat(report),
    }
    links, sections = [], []
    for (anchor, title), body in bodies.items():
        if body:
            links.append(f'<a href="#{anchor}">{title}</a>')
            introduction = f'<p class="intro">{_INTRODUCTIONS[anchor]}</p>' if _INTRODUCTIONS[anchor] else ""
            sections.append(f'<section id="{anchor}"><h2>{title}</h2>{introduction}{body}</section>')
    title = escape(report.title)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: MultiCoCa report</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{title}</h1>{_summary(report)}<nav>{''.join(links)}</nav></header>"
        f"<main>{''.join(sections)}<footer>Written by MultiCoCa. The page needs no other file.</footer></main>"
        "</body></html>\n"
    )


def _summary(report: Report) -> str:
    """Says in two sentences what was trained and what the page shows, with the main figures below."""
    modalities = report.results.get("modalities") or {}
    names = [f"<b>{escape(name)}</b>" for name in (modalities or report.captions)]
    learned = f" on {_join(names)} data" if names else ""
    together = ", all together," if len(names) > 1 else ""
    facts = "".join(f"<li>{fact}</li>" for fact in _facts(report))
    cards = "".join(_card(name, found) for name, found in modalities.items())
    return (
        f'<p class="lead">One model was trained{learned}{together} to write a caption for an item and to find items '
        "by a text, or by one another. This page shows how well it does so on the items it was tested with, how "
        "training went, and examples of its answers, failures first.</p>"
        f'<ul class="facts">{facts}</ul><div class="cards">{cards}</div>'
    )


def _facts(report: Report) -> list[str]:
    """Times, memory and hardware."""
    parts = {key: value for key, value in (report.results.get("seconds") or {}).items() if is_number(value)}
    seconds = report.seconds if report.seconds is not None else sum(parts.values())
    facts = [f"in all <b>{_duration(seconds)}</b>"] if seconds else []
    facts += [f"{escape(key)} <b>{_duration(value)}</b>" for key, value in parts.items()]
    memory = report.results.get("peak_memory_gib")
    if is_number(memory):
        facts.append(f"peak memory <b>{memory:.2f} GiB</b>")
    if "hardware" in report.environment:
        facts.append(f"on <b>{escape(report.environment['hardware'])}</b>")
    return facts


def _card(name: str, found: Mapping[str, Any]) -> str:
    """The figures of a modality to look at first."""
    retrieval = found.get("retrieval") or {}
    gallery = retrieval.get("gallery")
    among = f", among {gallery} (chance {percent(1 / gallery)})" if is_number(gallery) and gallery else ""
    lines = [
        ((retrieval.get("text_to_source") or {}).get("recall@1"), f"of texts find their own item first{among}"),
        ((found.get("captioning") or {}).get("exact_match"), "of captions are fully right"),
        (
            (found.get("composition") or {}).get("exact_match"),
            "of captions are fully right for combinations that training left out",
        ),
    ]
    rows = "".join(f"<dt>{percent(value)}</dt><dd>{words}</dd>" for value, words in lines if is_number(value))
    return f'<div class="card"><h3>{escape(name)}</h3><dl>{rows}</dl></div>' if rows else ""


def _repeat(report: Report) -> str:
    protocol = report.results.get("protocol")
    how = _pairs(protocol if isinstance(protocol, Mapping) else {})
    environment = _pairs(report.environment)
    parts = [
        f'<h3>Command</h3><pre class="command">{escape(report.command)}</pre>' if report.command else "",
        f"<h3>How the figures were made</h3>{how}" if how else "",
        f"<h3>Environment</h3>{environment}" if environment else "",
    ]
    if report.config_yaml:
        text = f"<pre>{escape(report.config_yaml)}</pre>"
        parts.append(f"<h3>Configuration</h3><details><summary>Show all settings</summary>{text}</details>")
    return "".join(parts)


def _pairs(pairs: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key).replace("_", " "))}</th><td>{escape(str(value))}</td></tr>'
        for key, value in pairs.items()
    )
    return f'<table class="pairs">{rows}</table>' if rows else ""


def _join(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _duration(seconds: float | int) -> str:
    seconds = round(seconds) if seconds >= 10 else seconds
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
