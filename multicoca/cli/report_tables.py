"""The figures of a run as HTML tables: a row per figure with its meaning, a column per modality, and chance.

Rows are made from whatever the results hold: known figures get plain words, unknown ones their key. Shares of
1 are printed in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

_RECALLS = {f"recall@{k}": k for k in (1, 5, 10)}
_DIRECTIONS = {
    "text_to_source": ("Finding the item that a text describes", "captions whose own item is"),
    "source_to_text": ("Finding the text that describes an item", "items whose own caption is"),
}
_CAPTIONING = {  # name, meaning
    "exact_match": ("Fully right", "Share of captions that are right in every word that matters."),
    "attributes": ("Facts right", "Share of single facts (such as a colour or a place) that the caption gets right."),
    "bleu4": ("BLEU-4", "Overlap with the references in runs of up to four words."),
    "rouge_l": ("ROUGE-L", "Longest sequence of words shared with a reference."),
    "meteor": ("METEOR", "Overlap with the references that lets synonyms count."),
    "cider_d": ("CIDEr-D", "Overlap that counts rare words more; from 0 to 10 (papers print it times 100)."),
}
_COMPOSITION_HEADING = "Captions for combinations that training left out"
_NOT_SHARES = {"cider_d", "median_rank"}
_MANY_CLASSES = 20  # from which on the first five and the class mean are shown as well


@dataclass
class _Row:
    """One figure: `values` and `chance` by modality; shares of 1 unless `plain`."""

    name: str
    meaning: str
    plain: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, Any] = field(default_factory=dict)


def results_table(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the table of all figures per modality, with the protocol and the notes below it.

    Args:
        modalities: results by modality, see `multicoca.cli.report.Report.results`. Any part may be missing.

    Returns:
        HTML, empty when there is nothing to show.
    """
    groups: dict[str, dict[str, _Row]] = {}
    for modality, found in modalities.items():
        _add_retrieval(groups, modality, found.get("retrieval") or {})
        _add_figures(groups, "Writing captions", modality, found.get("captioning") or {})
        _add_figures(groups, _COMPOSITION_HEADING, modality, found.get("composition") or {})
        _add_zero_shot(groups, modality, found.get("zero_shot") or {})
    if not groups and not any("used" in found for found in modalities.values()):
        return ""
    columns = list(modalities)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(_group(heading, rows.values(), columns) for heading, rows in groups.items())
    return (
        '<div class="scroll"><table class="results"><thead><tr><th scope="col">Figure</th>'
        f'{heads}<th scope="col">chance</th></tr></thead><tbody>{body}{_coverage(modalities)}</tbody></table></div>'
        f"{_footnotes(modalities)}"
    )


def across_table(across: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the table of retrieval between modalities, a row per direction such as "first_to_second"."""
    keys = [*_RECALLS, "median_rank"]
    rows = []
    for direction, found in across.items():
        figures = {key: found[key] for key in keys if is_number(found.get(key))}
        if figures:
            cells = "".join(_cell(figures.get(key), plain=key in _NOT_SHARES) for key in keys)
            chance = _cell(_recall_chance(found, "", "recall@1"), plain=False, css="chance")
            way = escape(direction.replace("_to_", " \u2192 "))
            rows.append(f'<tr><th scope="row">{way}</th>{cells}{chance}</tr>')
    if not rows:
        return ""
    heads = ("Query \u2192 answer", "first", "in the first 5", "in the first 10", "median rank", "chance to be first")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    gallery = next((found["gallery"] for found in across.values() if is_number(found.get("gallery"))), None)
    note = f'<p class="note">Each query chooses among {gallery} items.</p>' if gallery else ""
    return (
        f'<div class="scroll"><table class="results across"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def is_number(value: object) -> bool:
    """Whether a value of the results is a figure (NaN included, truth values not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent(share: float | int) -> str:
    """Writes a share of 1 in percent; NaN as a dash."""
    if share != share:
        return "\u2013"
    return f"{100 * share:.0f}%" if share in (0, 1) else f"{100 * share:.1f}%"


def plain_number(value: float | int) -> str:
    """Writes a figure that is not a share: whole, or with up to two decimals; NaN as a dash."""
    if value != value:
        return "\u2013"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}".rstrip("0")


def _row(groups: dict[str, dict[str, _Row]], heading: str, row: _Row) -> _Row:
    return groups.setdefault(heading, {}).setdefault(row.name, row)


def _add_retrieval(groups: dict[str, dict[str, _Row]], modality: str, found: Mapping[str, Any]) -> None:
    for direction, (heading, subject) in _DIRECTIONS.items():
        figures = found.get(direction) or {}
        for key, k in _RECALLS.items():
            if is_number(figures.get(key)):
                where = "first" if k == 1 else f"among the first {k}"
                row = _row(groups, heading, _Row(where.capitalize(), f"Share of {subject} ranked {where} (R@{k})."))
                row.values[modality], row.chance[modality] = figures[key], _recall_chance(found, direction, key)
        if is_number(figures.get("median_rank")):
            meaning = "Half of the queries do at least this well; 1 is best."
            row = _row(groups, heading, _Row("Median rank", meaning, plain=True))
            row.values[modality] = figures["median_rank"]
            row.chance[modality] = _recall_chance(found, direction, "median_rank")


def _recall_chance(found: Mapping[str, Any], direction: str, key: str) -> float | int | None:
    """Returns what guessing scores: as the results state it, or from the size of the gallery."""
    stated = found.get("chance")
    stated = stated.get(direction, stated) if isinstance(stated, Mapping) else {}
    if is_number(stated.get(key)):
        return stated[key]
    gallery = found.get("gallery")
    if not is_number(gallery) or gallery < 1:
        return found.get(f"chance@{_RECALLS[key]}") if key in _RECALLS else None
    return min(1.0, _RECALLS[key] / gallery) if key in _RECALLS else (gallery + 1) / 2


def _add_figures(groups: dict[str, dict[str, _Row]], heading: str, modality: str, found: Mapping[str, Any]) -> None:
    ordered = [key for key in _CAPTIONING if key in found] + [key for key in found if key not in _CAPTIONING]
    for key in ordered:
        if is_number(found[key]) and key not in ("used", "listed"):
            name, meaning = _CAPTIONING.get(key, (key.replace("_", " "), ""))
            known_share = key in _CAPTIONING and key not in _NOT_SHARES
            _row(groups, heading, _Row(name, meaning, plain=not known_share)).values[modality] = found[key]


def _add_zero_shot(groups: dict[str, dict[str, _Row]], modality: str, found: Mapping[str, Any]) -> None:
    heading = "Classifying without being trained to (zero-shot)"
    for task, figures in found.items():
        if not isinstance(figures, Mapping):
            continue
        chance, task = figures.get("chance"), task.replace("_", " ")
        kinds = {"top1": (task, "Share whose most similar class text is the right one.")}
        if not is_number(chance) or chance <= 1 / _MANY_CLASSES:
            kinds["top5"] = (f"{task}, first 5", "Share with the right class among the five most similar.")
            kinds["per_class_mean"] = (f"{task}, class mean", "The first figure, averaged over the classes.")
        for key, (name, meaning) in kinds.items():
            if is_number(figures.get(key)):
                row = _row(groups, heading, _Row(name, meaning))
                row.values[modality] = figures[key]
                if is_number(chance):
                    row.chance[modality] = min(1.0, 5 * chance) if key == "top5" else chance


def _group(heading: str, rows: Iterable[_Row], columns: list[str]) -> str:
    lines = [f'<tr class="group"><th colspan="{len(columns) + 2}" scope="colgroup">{escape(heading)}</th></tr>']
    for row in rows:
        cells = "".join(_cell(row.values.get(name), row.plain) for name in columns)
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}<small>{escape(row.meaning)}</small></th>'
            f"{cells}{_chance_cell(row)}</tr>"
        )
    return "".join(lines)


def _cell(value: float | int | None, plain: bool, css: str = "") -> str:
    if not is_number(value):
        return f'<td class="{css} none">\u2013</td>'
    if plain or css:
        return f'<td class="{css}">{plain_number(value) if plain else percent(value)}</td>'
    filled = 100 * min(1.0, max(0.0, value)) if value == value else 0
    return f'<td><span class="bar" style="--share:{filled:.1f}%">{percent(value)}</span></td>'


def _chance_cell(row: _Row) -> str:
    """Prints the chance level, or its range where it differs between the modalities."""
    known = sorted({value for value in row.chance.values() if is_number(value)})
    if not known:
        return '<td class="chance none"></td>'
    words = list(dict.fromkeys(plain_number(one) if row.plain else percent(one) for one in (known[0], known[-1])))
    return f'<td class="chance">{" to ".join(words)}</td>'


def _coverage(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the row that says how many of the listed items could be read."""
    if not any(is_number(found.get("used")) for found in modalities.values()):
        return ""
    cells = []
    for found in modalities.values():
        used, listed = found.get("used"), found.get("listed")
        words = "\u2013" if not is_number(used) else f"{used} of {listed}" if is_number(listed) else str(used)
        css = "warn" if is_number(used) and is_number(listed) and used < listed else ""
        cells.append(f'<td class="{css}">{words}</td>')
    return (
        f'<tr class="group"><th colspan="{len(modalities) + 2}" scope="colgroup">What was evaluated</th></tr>'
        '<tr><th scope="row">Items<small>Read, of those listed. What could not be read is never replaced.</small></th>'
        f'{"".join(cells)}<td class="chance none"></td></tr>'
    )


def _captioned(found: Mapping[str, Any]) -> str:
    """Says that some items have no captions, or ""."""
    used, captioned = found.get("used"), (found.get("captioning") or {}).get("used")
    if not is_number(used) or not is_number(captioned) or captioned >= used:
        return ""
    return f"Only {captioned} of the {used} items have captions; finding and writing captions use these alone."


def _footnotes(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    by_text: dict[str, list[str]] = {}
    for name, found in modalities.items():
        protocol = (found.get("retrieval") or {}).get("protocol")
        notes = (found.get("captioning") or {}).get("notes") or []
        for text in [f"Finding: {protocol}." if protocol else "", _captioned(found), *map(str, notes)]:
            if text:
                by_text.setdefault(text, []).append(name)
    everywhere = len(modalities)
    lines = [
        escape(text if len(names) == everywhere else f"{', '.join(names)}: {text}") for text, names in by_text.items()
    ]
    return "".join(f'<p class="note">{line}</p>' for line in lines)
