"""Pictures of a run as SVG, written by hand: bars of the peers, lines of how far one PostgreSQL goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

OWN, OTHER, INK, LINE = "#1a7f5a", "#9aa5b1", "#57606a", "#d0d7de"
HUES = ("#1a7f5a", "#0969da", "#9a6700", "#8250df")
PANELS = (
    ("drain", "rate", "postgres", "PostgreSQL: drain 10,000 jobs of 100 projects, jobs/s"),
    ("enqueue", "rate", "postgres", "PostgreSQL: enqueue, 100 producers, jobs/s"),
    ("latency", "p50", "postgres", "PostgreSQL: enqueue → start, idle, p50 ms (less is better)"),
    ("held", "p50", "postgres", "PostgreSQL: claim behind a busy project with 50,000 queued, p50 ms (less is better)"),
    ("drain", "rate", "sqlite", "SQLite: drain 10,000 jobs of 100 projects, jobs/s"),
    ("enqueue", "rate", "sqlite", "SQLite: enqueue, 100 producers, jobs/s"),
)
NOTES = {
    "huey": " (keeps no history)",
    "litequeue": " (no order by project)",
    "persist_queue": " (no order by project)",
}


def write(document: dict[str, Any], folder: Path) -> None:
    """peers.svg and peers-scaling.svg."""
    (folder / "peers.svg").write_text(bars(document["peers"]))
    (folder / "peers-scaling.svg").write_text(lines(document["scaling"].get("paced", ())))


def bars(peers: dict[str, Any]) -> str:
    """One panel per work, one bar per peer, each with its figure."""
    parts: list[str] = []
    y = 10.0
    for work, value, engine, title in PANELS:
        found = [
            (name.partition("/")[0], float(peers[name][work][value]))
            for name in peers
            if name.endswith(f"/{engine}") and value in peers[name].get(work, {})
        ]
        if not found:
            continue
        y += 20
        parts.append(_text(10, y, title, weight="600"))
        found.sort(key=lambda pair: pair[1], reverse=value == "rate")
        top = max(number for _, number in found)
        for name, number in found:
            y += 22
            width = max(2.0, 380 * number / top)
            label = name + (NOTES.get(name, "") if engine == "sqlite" else "")
            parts.append(_text(220, y + 4, label, anchor="end"))
            fill = OWN if name == "pilot" else OTHER
            parts.append(f'<rect x="230" y="{y - 8:.0f}" width="{width:.1f}" height="16" rx="2" fill="{fill}"/>')
            shown = f"{number:,.0f}" if value == "rate" or number >= 100 else f"{number:.1f}"
            parts.append(_text(236 + width, y + 4, shown))
        y += 16
    return _svg(700, y + 10, parts, "pilot and its peers, measured in one run")


def lines(points: Sequence[dict[str, Any]]) -> str:
    """Enqueue → start, p50, over the rate; a line per number of projects; both axes by powers."""
    points = [point for point in points if "p50" in point]
    left, right, top, bottom = 70.0, 640.0, 40.0, 300.0
    parts = [_text(10, 20, "One PostgreSQL under a steady load: enqueue → start, p50 ms", weight="600")]
    if not points:
        return _svg(700, 60, parts, "nothing measured")
    rates = sorted({float(point["asked"]) for point in points})
    high = 10 ** math.ceil(math.log10(max(10.0, *(point["p50"] for point in points))))
    span = math.log(rates[-1] / rates[0]) or 1

    def at(rate: float, wait: float) -> tuple[float, float]:
        x = left + (right - left) * math.log(rate / rates[0]) / span
        return x, bottom - (bottom - top) * math.log10(max(1.0, wait)) / math.log10(high)

    for power in range(round(math.log10(high)) + 1):
        _, y = at(rates[0], 10.0**power)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{LINE}"/>')
        parts.append(_text(left - 8, y + 4, f"{10**power:,} ms", anchor="end"))
    for rate in rates:
        parts.append(_text(at(rate, 1)[0], bottom + 18, f"{rate:,.0f}/s", anchor="middle"))
    for hue, projects in zip(HUES, sorted({point["projects"] for point in points}), strict=False):
        own = [point for point in points if point["projects"] == projects]
        spots = [at(point["asked"], point["p50"]) for point in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{hue}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{hue}"/>' for x, y in spots]
        y = bottom + 40 + 18 * HUES.index(hue)
        parts.append(f'<rect x="{left}" y="{y - 9:.0f}" width="14" height="10" fill="{hue}"/>')
        parts.append(_text(left + 20, y, f"{projects:,} project{'s' if projects > 1 else ''}"))
    return _svg(700, bottom + 50 + 18 * len(HUES), parts, "waiting time over rate and projects")


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    look = f'fill="{INK}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">'
    )
    body = [
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *parts,
    ]
    return "\n".join([head, *body, "</svg>"]) + "\n"
