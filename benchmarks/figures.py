"""What a figure is, and how figures are printed."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `reach`: what it has to be; `more` says in which direction is better."""

    name: str
    value: float
    unit: str
    reach: float
    more: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.value >= self.reach if self.more else self.value <= self.reach


def table(figures: Sequence[Figure]) -> str:
    """Aligned lines for a terminal."""
    lines = [f"{'figure':<66} {'measured':>12} {'reach':>14}"]
    for f in figures:
        sign = "≥" if f.more else "≤"
        mark = " " if f.reached else "!"
        lines.append(f"{f.name:<66} {f.value:>12,.4g} {sign + f' {f.reach:,.4g} {f.unit}':>14} {mark} {f.note}")
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path) -> None:
    """The same as JSON, with what they were measured on."""
    machine = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
    }
    document = {"machine": machine, "figures": [asdict(f) | {"reached": f.reached} for f in figures]}
    path.write_text(json.dumps(document, indent=2) + "\n")
