"""`pilot hash`: the hash by which a plan names a file's content."""

from __future__ import annotations

from pathlib import Path

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session


@click.command("hash")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def hash_(session: Session, path: Path, json: bool) -> None:
    """Print a hash of content, as `#sha1=` wants it.

    Of a directory: the hash of one line `HASH  ./path` for each file in it, sorted by path.
    """
    from pilot.runner.content import sha1_of

    found = sha1_of(path)
    if json:
        session.ui.document({"path": str(path), "sha1": found})
    else:
        session.ui.line(found)
