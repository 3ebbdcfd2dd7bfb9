"""Training curves as inline SVG: one chart per kind of figure, one line per last part of the tag.

TensorBoard tags such as `loss/contrastive/NAME` are grouped by what stands before the last slash; a tag without
a slash has a chart to itself. Raw values are drawn faintly, a centred Gaussian mean, which does not lag, boldly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

PALETTE = ("#2563b0", "#c2541d", "#16805a", "#8442a8", "#a97a00", "#b02a5b", "#4b5563")

_TITLES = {  # title, what it shows, unit of the vertical axis
    "loss/contrastive": (
        "Contrastive loss",
        "How hard it is to tell which text belongs to which item. Lower is better.",
        "",
    ),
    "loss/captioning": (
        "Captioning loss",
        "How surprising the next word of a reference is. Lower is better.",
        "nats per token",
    ),
    "loss/total": ("Total loss", "The weighted sum that is minimised. Lower is better.", ""),
    "evaluation/exact_match": ("Captions fully right", "Share of evaluated captions. Higher is better.", ""),
    "evaluation/attributes": ("Facts right", "Share of single facts that captions get right. Higher is better.", ""),
    "learning_rate": ("Learning rate", "The step size of the optimizer over the run.", ""),
    "samples_per_s": ("Speed", "Samples learned from per second.", "samples/s"),
    "temperature": ("Temperature", "Learned sharpness of the contrastive loss.", ""),
}
_WIDTH, _HEIGHT = 560, 300  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 22, 42  # room for the axes
_FEWEST_TO_SMOOTH = 30
_SMOOTH = 1e-3  # median bend of a curve without noise (a schedule), as a share of its range
_SPREAD = 1 / 60  # of the Gaussian, as a share of the curve
_MOST_DOTS = 25
_POINTS = 240  # drawn along a line


def charts(curves: Mapping[str, tuple[Sequence[int], Sequence[float | int]]]) -> str:
    """Draws all curves as a grid of figures.

    Args:
        curves: tag -> (steps, values). Values that are not finite are left out.

    Returns:
        HTML, empty when there is nothing to draw.
    """
    groups: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for tag, (steps, values) in curves.items():
        x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        finite = np.isfinite(x) & np.isfinite(y)
        if finite.any():
            kind, _, name = tag.rpartition("/")
            order = np.argsort(x[finite], kind="stable")
            groups.setdefault(kind or name, {})[name if kind else ""] = x[finite][order], y[finite][order]
    names = dict.fromkeys(name for lines in groups.values() for name in lines if name)
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)} | {"": PALETTE[-1]}
    known = list(_TITLES)
    kinds = sorted(groups, key=lambda kind: known.index(kind) if kind in known else len(known))
    return "".join(_figure(kind, groups[kind], colors) for kind in kinds)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns a centred Gaussian mean of a curve; a short or already smooth one is returned as it is."""
    if len(values) < _FEWEST_TO_SMOOTH or np.median(np.abs(np.diff(values, 2))) <= _SMOOTH * np.ptp(values):
        return values
    spread = max(1.0, len(values) * _SPREAD)
    reach = min(int(3 * spread), (len(values) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def nice_ticks(low: float | int, high: float | int, count: int) -> list[float]:
    """Returns about `count` round numbers (1, 2 or 5 times a power of ten) that lie in [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def _figure(kind: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], colors: Mapping[str, str]) -> str:
    title, meaning, unit = _TITLES.get(kind, (kind.replace("_", " ").replace("/", ": "), "", ""))
    legend = "".join(
        f'<li><i style="background:{colors[name]}"></i>{escape(name or "last")} <b>{_short(smoothed(y)[-1])}</b></li>'
        for name, (_, y) in lines.items()
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><p>{escape(meaning)}</p>'
        f'<ul class="legend">{legend}</ul></figcaption>{_drawing(title, lines, colors, unit)}</figure>'
    )


def _drawing(title: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], colors: Mapping[str, str], unit: str) -> str:
    x_low, x_high = min(x[0] for x, _ in lines.values()), max(x[-1] for x, _ in lines.values())
    y_low, y_high = _value_range([y for _, y in lines.values()])
    x_high = x_high if x_high > x_low else x_low + 1
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: np.ndarray, y: np.ndarray) -> str:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT)
        down = bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))

    parts = []
    for tick in nice_ticks(y_low, y_high, 5):
        height = place(np.array([x_low]), np.array([tick])).split(",")[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {height}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height}" dy=".35em" text-anchor="end">{_short(tick)}</text>')
    for tick in nice_ticks(x_low, x_high, 5):
        column = place(np.array([tick]), np.array([y_low])).split(",")[0]
        parts.append(f'<path class="axis" d="M{column} {bottom}v5"/>')
        parts.append(f'<text x="{column}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 4}" text-anchor="end" class="label">optimizer step</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="12" class="label">{escape(unit)}</text>' if unit else "")
    raw, bold = [], []
    for name, (x, y) in lines.items():
        stroke = f'stroke="{colors[name]}"'
        if len(y) >= _FEWEST_TO_SMOOTH:
            raw.append(f'<polyline class="raw" {stroke} points="{place(*_envelope(x, y.clip(y_low, y_high)))}"/>')
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
        points = place(x[keep], smoothed(y)[keep].clip(y_low, y_high))
        bold.append(f'<polyline class="line" {stroke} points="{points}"/>')
        if len(y) <= _MOST_DOTS:
            dots = (point.split(",") for point in points.split())
            bold.extend(f'<circle cx="{a}" cy="{b}" r="3" fill="{colors[name]}"/>' for a, b in dots)
    drawn = "".join(parts + raw + bold)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over training">{drawn}</svg>'


def _value_range(curves: Iterable[np.ndarray]) -> tuple[float, float]:
    """Returns the vertical range: all of the smoothed curves, the raw ones without their rarest peaks."""
    curves = list(curves)
    ends = [np.percentile(y, (0.5, 99.5)) if len(y) >= _FEWEST_TO_SMOOTH else (y.min(), y.max()) for y in curves]
    low = min(min(end[0], smoothed(y).min()) for end, y in zip(ends, curves, strict=True))
    high = max(max(end[1], smoothed(y).max()) for end, y in zip(ends, curves, strict=True))
    if 0 <= low < 0.4 * high:
        low = 0.0
    pad = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return float(low if low == 0 else low - pad), float(high + pad)


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the lowest and the highest value of each stretch, so that thinning hides no peak."""
    if len(x) <= _POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), _POINTS // 2)
    keep = np.unique([index for part in stretches for index in (part[y[part].argmin()], part[y[part].argmax()])])
    return x[keep], y[keep]


def _short(value: float | int) -> str:
    """Writes a number in few characters: 12k, 350, 0.42, 3e-5."""
    if value and abs(value) < 1e-3:
        digits, power = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    if abs(value) >= 1e4:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
