"""The command line: parses, hands over, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pilot.cli import act, lists, logs, show, work
from pilot.cli.codes import table
from pilot.cli.session import Session, session_of
from pilot.cli.ui import ReaderGone, Ui
from pilot.domain.errors import ConfigError, NotFound, PilotError


def build() -> typer.Typer:
    """The whole command tree. What a command needs is imported when it runs."""
    app = typer.Typer(
        rich_markup_mode=None,  # plain help needs no rich, which takes as long to load as all the rest
        pretty_exceptions_enable=False,
        add_completion=True,
        invoke_without_command=True,
        epilog="Exit codes: `pilot help exit-codes`.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(root)
    for family in (work, lists, show, logs, act):
        family.register(app)
    app.command()(version)
    app.command("help")(help_)
    return app


def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="This pilot.yaml (else $PILOT_CONFIG, ./pilot.yaml, …)."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks, and more in the logs.")] = False,
    version_wanted: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Tickets in, finished changes out: one at a time per repository, nothing lost, nothing done twice."""
    session = session_of(context)
    session.config = config
    session.debug = debug
    if version_wanted:
        version(context)
        raise typer.Exit
    if context.invoked_subcommand is None:
        session.ui.line(context.get_help())


def version(
    context: typer.Context, json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False
) -> None:
    """Print the version."""
    from pilot import __version__

    session = session_of(context)
    if json:
        session.ui.document({"version": __version__, "python": sys.version.split()[0]})
    else:
        session.ui.line(f"pilot {__version__}")


def help_(
    context: typer.Context,
    topic: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND|exit-codes]", show_default=False)] = None,
) -> None:
    """Help on a command, or on exit codes."""
    session = session_of(context)
    parent = context.parent
    if topic == ["exit-codes"]:
        session.ui.line(table())
    elif parent is not None:
        command = parent.command
        inner = parent
        for word in topic or ():
            found = getattr(command, "commands", {}).get(word)
            if found is None:
                raise NotFound(f"no command {' '.join(topic or ())!r}; `pilot --help` lists them")
            inner = type(inner)(found, info_name=word, parent=inner, obj=session)
            command = found
        session.ui.line(inner.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a title that the terminal's encoding lacks is no reason to stop
            reconfigure(errors="replace")
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    ui = Ui(sys.stdout, sys.stderr, os.environ, json="--json" in own)
    session = Session(ui, os.environ)
    try:
        code = build()(_hoisted(arguments), prog_name="pilot", standalone_mode=False, obj=session)
        ui.flush()
    except ReaderGone:
        _hush()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  the last border: everything ends as one line and a code
        return _failed(session, error, own)
    return code if isinstance(code, int) else 0


def _hoisted(arguments: list[str]) -> list[str]:
    """Options of the whole programme may stand behind the command, too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word == "--config":
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith("--config=") or word == "--debug":
            front.append(word)
        else:
            rest.append(word)
    return front + rest + arguments[end:]


def _failed(session: Session, error: Exception, arguments: Sequence[str]) -> int:
    if session.debug:
        import traceback

        session.ui.note(traceback.format_exc())
    match error:
        case ConfigError():
            session.ui.failure("ConfigError", str(error), error.exit_code, "`pilot config check` checks again")
            return error.exit_code
        case PilotError():
            session.ui.failure(type(error).__name__, str(error), error.exit_code)
            return error.exit_code
    message = getattr(error, "format_message", None)  # what typer raises for a command line it can't read
    if message is not None:
        command = next((word for word in arguments if not word.startswith("-")), "")
        session.ui.failure("UsageError", message(), 2, f"`pilot {command} --help`".replace("  ", " "))
        return 2
    if type(error).__name__ == "Abort":
        return 130
    hint = "" if session.debug else "this is a bug; the same command with --debug shows where"
    session.ui.failure("InternalError", f"{type(error).__name__}: {error}", 1, hint)
    return 1


def _hush() -> None:
    """Nothing more for a reader that has left, not even at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
