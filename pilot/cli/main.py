"""The command line: parses, hands over, and turns every error into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pilot.cli.codes import table
from pilot.cli.session import Session
from pilot.cli.ui import ReaderGone, Ui
from pilot.domain.errors import ConfigError, NotFound, PilotError, UsageError

_COMMANDS = {
    "init": "begin:init",
    "doctor": "doctor:doctor",
    "config": "settings:config",
    "serve": "work:serve",
    "run": "work:run",
    "enqueue": "work:enqueue",
    "list": "lists:list_",
    "show": "show:show",
    "why": "show:why",
    "logs": "logs:logs",
    "events": "events:events",
    "status": "lists:status",
    "cancel": "act:cancel",
    "retry": "act:retry",
    "answer": "act:answer",
    "sync": "sync:sync",
    "pause": "act:pause",
    "resume": "act:resume",
    "plan": "plan:plan",
    "worker": "worker:worker",
    "queue": "queue:queue",
    "contract": "contract:contract",
    "backend": "backends:backend",
    "token": "token:token",
    "hash": "hash:hash_",
    "db": "db:db",
    "version": "main:version",
    "help": "main:help_",
}


_AWAY = frozenset(
    ("enqueue", "list", "show", "why", "logs", "events", "status", "cancel", "retry", "answer", "pause", "resume")
) | {"plan", "worker", "queue", "contract", "version", "help"}
"""What can be done with a server elsewhere; everything else is an affair of one machine."""


class _Commands(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"pilot.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog="Exit codes: `pilot help exit-codes`.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="This pilot.yaml (else $PILOT_CONFIG, ./pilot.yaml, …).",
)
@click.option("--server", metavar="URL", help="Talk to that `pilot serve` (else $PILOT_SERVER), not to the store.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The token for it (else $PILOT_TOKEN, or this machine's own).",
)
@click.option("--debug", is_flag=True, help="Tracebacks, and more in the logs.")
@click.option("--version", "wants_version", is_flag=True, help="Print the version.")
@click.pass_context
def root(
    context: click.Context,
    *,
    config: Path | None,
    server: str | None,
    token_file: Path | None,
    debug: bool,
    wants_version: bool,
) -> None:
    """Tickets in, finished changes out: one at a time per repository, nothing lost, nothing done twice."""
    session: Session = context.obj
    session.config = config
    session.debug = debug
    session.token_file = token_file
    command = context.invoked_subcommand
    if command in _AWAY:
        session.server = server or session.environ.get("PILOT_SERVER") or None
    elif server is not None and command is not None:
        raise UsageError(f"`pilot {command}` works on this machine only; leave out --server, or run it over there")
    if wants_version:
        context.invoke(version, json=False)
        context.exit()
    if context.invoked_subcommand is None:
        session.ui.line(context.get_help())


@click.command()
@click.option("--json", is_flag=True, help="One JSON document.")
@click.pass_obj
def version(session: Session, json: bool) -> None:
    """Print the version."""
    from pilot import __version__

    if json:
        session.ui.document({"version": __version__, "python": sys.version.split()[0]})
    else:
        session.ui.line(f"pilot {__version__}")


@click.command("help")
@click.argument("topic", metavar="[COMMAND|exit-codes]", nargs=-1)
@click.pass_context
def help_(context: click.Context, topic: tuple[str, ...]) -> None:
    """Help on a command, or on exit codes."""
    session: Session = context.obj
    if topic == ("exit-codes",):
        session.ui.line(table())
        return
    inner = context.find_root()
    for word in topic:
        command = inner.command.get_command(inner, word) if isinstance(inner.command, click.Group) else None
        if command is None:
            raise NotFound(f"no command {' '.join(topic)!r}; `pilot --help` lists them")
        inner = click.Context(command, parent=inner, info_name=word)
    session.ui.line(inner.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdin", "stdout", "stderr"):  # closed by who started pilot (`>&-`): then to nobody
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a title that the terminal's encoding lacks is no reason to stop
            reconfigure(errors="replace")
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    session = Session(Ui(sys.stdout, sys.stderr, os.environ, json="--json" in own), os.environ)
    try:
        code = root(_hoisted(arguments), prog_name="pilot", standalone_mode=False, obj=session)
        session.ui.flush()
    except ReaderGone:
        # Nothing more for a reader that has left, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:  # noqa: BLE001  the last border: everything ends as one line and a code
        return _failed(session, error)
    return code if isinstance(code, int) else 0


_EVERYWHERE = ("--config", "--server", "--token-file")


def _hoisted(arguments: list[str]) -> list[str]:
    """Options of the whole program may stand behind the command, too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word in _EVERYWHERE:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{name}=" for name in _EVERYWHERE)) or word == "--debug":
            front.append(word)
        else:
            rest.append(word)
    return front + rest + arguments[end:]


def _failed(session: Session, error: Exception) -> int:
    if session.debug:
        import traceback

        session.ui.note(traceback.format_exc())
    match error:
        case ConfigError():
            hint = "`pilot config check` checks again"
            session.ui.failure("ConfigError", str(error), error.exit_code, hint)
            return error.exit_code
        case PilotError():
            session.ui.failure(type(error).__name__, str(error), error.exit_code)
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx is not None else "pilot"
            session.ui.failure("UsageError", error.format_message(), 2, f"`{path} --help` says how")
            return 2
        case click.ClickException():
            session.ui.failure("UsageError", error.format_message(), 2)
            return 2
    hint = "" if session.debug else "this is a bug; the same command with --debug shows where"
    session.ui.failure("InternalError", f"{type(error).__name__}: {error}", 1, hint)
    return 1


if __name__ == "__main__":
    sys.exit(main())
