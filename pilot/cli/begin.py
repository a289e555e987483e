"""`pilot init`: a first pilot.yaml for the repository one stands in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click

from pilot.cli.arguments import json_option
from pilot.cli.guess import AGENTS, Guess, guess
from pilot.cli.session import Session
from pilot.domain.errors import UsageError
from pilot.domain.text import slug

_PLAIN = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_./ -]*[A-Za-z0-9_./-]|[A-Za-z_]")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def init(session: Session, directory: Path | None, json: bool) -> None:
    """Write a pilot.yaml for the repository one stands in.

    It says what is found there: agents, remote, base branch, lint and test commands. Never overwrites.
    """
    from pilot.config.load import load
    from pilot.runner.identity import find_repository

    place = directory or Path()
    if not place.is_dir():
        raise UsageError(f"{place} is no directory")
    root = find_repository(place)
    if root is None:
        raise UsageError(f"{place.absolute()} is in no git repository; `git init` makes one")
    file = root / "pilot.yaml"
    found = guess(root, session.environ.get("PATH"))
    text = compose(root.name, found)
    _write(file, text)
    try:
        load(file, session.environ)
    except BaseException:
        file.unlink()  # ours, and of no use
        raise
    if json:
        session.ui.document(
            {
                "path": str(file),
                "agents": list(found.agents),
                "github": found.github,
                "base": found.base,
                "setup": list(found.setup),
                "gates": [{"kind": kind, "run": command} for kind, command in found.gates],
            }
        )
        return
    session.ui.line(f"wrote {file}")
    _next(session, found)


def _write(file: Path, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise UsageError(f"{file} is there already, and stays as it is; `pilot config check` checks it") from None
    except OSError as error:
        raise UsageError(f"can't write {file}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def _next(session: Session, found: Guess) -> None:
    ui = session.ui
    if found.agents:
        ui.line(f"agents found: {', '.join(found.agents)}")
    else:
        ui.warn(
            f"no agent was found on PATH ({', '.join(AGENTS.values())}); install one, or describe your own: "
            "`executor: {type: command}`, or acp"
        )
    for kind, command in found.gates:
        ui.line(f"gate {kind}: {command}")
    if not found.gates:
        ui.line("no lint or test command was found; add them under `gates:`, they decide what is published")
    ui.line("Next:")
    ui.line("  pilot doctor                 is everything there?")
    ui.line('  pilot run "fix the typo"     one task, here and now')
    ui.line("  pilot serve                  do what is queued, from now on")


def compose(name: str, found: Guess) -> str:
    """The file's text."""
    lines = [
        "# What pilot does here. Every key and its default: pilot.yaml.example; `pilot config show` shows those in",
        "# effect, `pilot config check` checks this file.",
        "executor:",
        f"  type: {next(iter(found.agents), 'claude-code')}",
        "projects:",
        f"  - name: {_yaml(slug(name))}",
        "    path: .",
    ]
    if found.base:
        lines.append(f"    base: {_yaml(found.base)}")
    if found.github:
        lines.append(f"    github: {_yaml(found.github)}")
    if found.setup:
        lines.append("    setup:  # once per new workspace")
        lines += [f"      - {_yaml(command)}" for command in found.setup]
    if found.gates:
        lines.append("    gates:  # what pilot itself runs after the agent; red ones are not published")
        for kind, command in found.gates:
            lines.append(f"      - {{name: {kind}, kind: {kind}, run: {_yaml(command, quoted=True)}}}")
    else:
        lines.append('    gates: []  # such as {name: test, kind: test, run: "make test"}')
    if found.github:
        lines += [
            "# sources:  # issues with the label `pilot` become tasks, finished changes pull requests: docs/tickets.md",
            '#   github: {token: "${GITHUB_TOKEN}"}  # an account for pilot; set it here beside, in .env',
        ]
    return "\n".join(lines) + "\n"


def _yaml(text: str, *, quoted: bool = False) -> str:
    """The text as a YAML scalar: plain where nobody could take it for something else, a JSON string elsewhere."""
    if not quoted and _PLAIN.fullmatch(text) and text.lower() not in _WORDS and not text[0].isdigit():
        return text
    return json.dumps(text.replace("$", "$$"))
