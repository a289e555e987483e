"""Durations as people write them: `30s`, `10m`, `1h30m`, `500ms`."""

from __future__ import annotations

import re

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in _UNITS))
DURATION_PATTERN = "^(?=[0-9])" + "".join(rf"([0-9]+(\.[0-9]+)?{unit})?" for unit in _UNITS) + "$"
LONGEST = 366 * _UNITS["d"]


def parse_duration(text: str) -> float | None:
    """`2h30m`, `90s`, `500ms` in seconds; None for anything else."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    parts = zip(match.groups(), _UNITS.values(), strict=True)
    return sum(float(number) * unit for number, unit in parts if number)


def format_duration(seconds: float) -> str:
    """The text that `parse_duration` takes back: 5400 is `1h30m`."""
    left, parts = round(seconds * 1000), []
    for name, unit in _UNITS.items():
        count, left = divmod(left, round(unit * 1000))
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"
