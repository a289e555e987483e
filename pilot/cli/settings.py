"""`pilot config`: check, show and find the configuration."""

from __future__ import annotations

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.domain.errors import NotFound


@click.group()
def config() -> None:
    """The configuration: check it, show what is in effect, find it."""


@config.command()
@json_option
@click.pass_obj
def check(session: Session, json: bool) -> None:
    """Say everything that is wrong with pilot.yaml, with line and key; exit 2 when something is."""
    from pilot.app import agents
    from pilot.config.load import load

    loaded = load(session.config, session.environ)
    agents.check(loaded.settings)
    path = None if loaded.path is None else str(loaded.path)
    if json:
        session.ui.document({"ok": True, "path": path, "warnings": list(loaded.warnings)})
        return
    for warning in loaded.warnings:
        session.ui.warn(warning)
    count = len(loaded.settings.projects)
    session.ui.line(f"{path or 'no file, only defaults'}: ok, {count} project{'' if count == 1 else 's'}")


@config.command()
@json_option
@click.pass_obj
def show(session: Session, json: bool) -> None:
    """The settings in effect, defaults included, secrets masked."""
    from pilot.config.load import mask

    settings = mask(session.loaded().settings)
    if json:
        session.ui.document(settings)
        return
    import yaml

    session.ui.text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100))


@config.command()
@json_option
@click.pass_obj
def path(session: Session, json: bool) -> None:
    """Which file it is."""
    located = session.located()
    if json:
        found = None if located.config_path is None else str(located.config_path)
        session.ui.document({"path": found, "state_dir": str(located.state_dir)})
    elif located.config_path is None:
        raise NotFound("there is no pilot.yaml, all settings are the defaults; `pilot init` writes one")
    else:
        session.ui.line(str(located.config_path))


@config.command()
@json_option
@click.pass_obj
def schema(session: Session, json: bool) -> None:
    """The JSON schema of pilot.yaml, for editors."""
    from pilot.config.load import json_schema

    session.ui.document(json_schema())
