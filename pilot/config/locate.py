"""Where the configuration and the state are: found and read without the cost of the whole schema.

Quick commands need no more than this; `load` starts with it, so both always mean the same file and store.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from pilot.config.document import Document, Problem, Table
from pilot.config.parse import MAX_BYTES, Unreadable, parse
from pilot.domain.errors import ConfigError

DATABASE = "pilot.db"
_REFERENCE = re.compile(r"\$(?:\$|\{([^{}]*)\})|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENV = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*"""
    r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|((?:(?<==)\#|[^\s'"#])[^\r\n]*?)?)[ \t]*(?:(?<=[ \t])\#[^\r\n]*)?\r?$""",
    re.MULTILINE,
)
_ENV_ODD = re.compile(r"\s*[^\s#]")
_ENV_ESCAPES = {"n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Located:
    """`config_path`: absolute, None when there is no file. `state_dir`: absolute, need not exist yet.

    `store_url` may hold a password.
    """

    config_path: Path | None
    state_dir: Path
    store_url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """The configuration's text and what it is read with; the text is empty where there is no file.

    `base` is where its relative paths start; `variables` are `environ` with those of `.env` below them.
    """

    path: Path | None
    name: str
    text: str
    base: Path
    variables: Mapping[str, str]
    environ: Mapping[str, str]
    warnings: Sequence[str] = ()

    def read(self, only: Sequence[str] = ()) -> Document:
        """The tree, with `${VAR}` put in. Raises `ConfigError` where there is none to be had."""
        try:
            document = parse(self.text, self.expand, only)
        except Unreadable as error:
            raise _refused(error.problem.render(self.name)) from None
        if not isinstance(document.data, Table | None):
            problem = Problem(*document.place, (), "expected keys with values, such as `projects:`")
            raise _refused(problem.render(self.name))
        return document

    def expand(self, text: str) -> tuple[str, list[str]]:
        """A scalar with `${VAR}`, `${VAR:-default}` and `$$` replaced, and what is wrong with them."""
        wrong: list[str] = []

        def replace(match: re.Match[str]) -> str:
            reference = match[0]
            if reference == "$$":
                return "$"
            name, default_sign, default = (match[1] or "").partition(":-")
            if not _NAME.fullmatch(name):
                wrong.append(f"{reference} is not ${{NAME}} or ${{NAME:-default}}; for a shell write ${reference}")
                return ""
            if default_sign:
                return self.variables.get(name) or default
            if name not in self.variables:
                where = f"in the environment or in {self.base / '.env'}"
                wrong.append(f"the variable {name} is not set: set it {where}, or write ${{{name}:-default}}")
            return self.variables.get(name, "")

        return _REFERENCE.sub(replace, text), wrong

    def place(self, text: str) -> Path:
        """A path from the file: `~` is $HOME, and relative ones start at the file."""
        if text == "~" or text.startswith("~/"):
            return Path(home(self.environ) + text[1:])
        return self.base / os.path.expanduser(text)  # noqa: PTH111  leaves an unknown ~user as it is


def locate(config: Path | None, environ: Mapping[str, str]) -> Located:
    """Find the file, and of its keys read `state_dir` and `store`. Raises `ConfigError`."""
    source = find(config, environ)
    document = source.read(only=("state_dir", "store"))
    problems = [problem for problem in document.problems if problem.path[:1] in ((), ("state_dir",), ("store",))]
    given: dict[str, str] = {}
    for key, check in (("state_dir", state_dir_problem), ("store", store_problem)):
        spot = document.find((key,))
        if not spot.exact or (spot.odd and spot.odd.broken):
            continue
        if what := check(spot.value):
            problems.append(Problem(spot.line, spot.column, (key,), what))
        else:
            given[key] = spot.value
    if problems:
        raise ConfigError([problem.render(source.name) for problem in problems])
    state_dir = source.place(given.get("state_dir") or default_state_dir(environ))
    return Located(source.path, state_dir, store_url(given.get("store", "sqlite"), state_dir, source.place))


def find(config: Path | None, environ: Mapping[str, str]) -> Source:
    """The first of `--config`, `$PILOT_CONFIG`, `./pilot.yaml` and the user's own; none is no error."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise _refused("the working directory has been removed: cd to another one") from None
    if named := str(config or "") or environ.get("PILOT_CONFIG"):
        path = here / os.path.expanduser(named)  # noqa: PTH111
        try:
            path.stat()
        except FileNotFoundError:
            origin = "--config" if config else "$PILOT_CONFIG"
            raise _refused(f"{path}: no such file, named by {origin}; `pilot init` writes one") from None
        except OSError:
            pass  # opening it says why
        return _source(path, here, environ)
    xdg = environ.get("XDG_CONFIG_HOME") or ""
    own = Path(xdg) if Path(xdg).is_absolute() else Path(home(environ), ".config")
    for path in (
        here / "pilot.yaml",
        own / "pilot" / "pilot.yaml",
        Path(home(environ), ".pilot", "pilot.yaml"),
    ):
        if os.path.exists(path):  # noqa: PTH110  unlike Path.exists, no error where one may not look
            return _source(path, here, environ, found=True)
    return Source(None, "pilot.yaml", "", here, environ, environ)


def _source(path: Path, here: Path, environ: Mapping[str, str], *, found: bool = False) -> Source:
    name = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    text, _ = _read(path, name, found=found)
    env_file = path.parent / ".env"
    if not env_file.is_file():
        return Source(path, name, text, path.parent, environ, environ)
    env_name = str(env_file)
    env_text, mode = _read(env_file, env_name, found=found)
    of_file, odd = read_env(env_text)
    warnings = [f"{env_name}:{line}:1: left out, it is no NAME=value" for line in odd]
    if mode & stat.S_IROTH:
        warnings.append(f"{env_name}: any user can read it; if it holds secrets: chmod 600 {env_name}")
    return Source(path, name, text, path.parent, of_file | dict(environ), environ, warnings)


def _read(path: Path, name: str, *, found: bool) -> tuple[str, int]:
    """The text and the file's mode; refuses what somebody else could have written."""
    try:
        # O_NONBLOCK: a fifo would wait for its writer for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_file(status, name, found=found)
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(f"{name}: can't be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise _refused(f"{name}: larger than {MAX_BYTES // 1024**2} MiB")
    try:
        return data.decode("utf-8-sig"), status.st_mode
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise _refused(f"{name}:{line}:{column}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def _check_file(status: os.stat_result, name: str, *, found: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refused(f"{name}: not a file")
    if status.st_mode & stat.S_IWOTH:
        raise _refused(f"{name}: anyone can write to it, and it says which programs run: chmod o-w {name}")
    if found and status.st_uid not in (0, os.geteuid()):
        # A directory one steps into must not decide what one's own pilot runs.
        raise _refused(f"{name}: belongs to another user (uid {status.st_uid}); trust it with --config {name}")


def read_env(text: str) -> tuple[dict[str, str], list[int]]:
    """The variables of a `.env` file, and the lines that say nothing it understands.

    NAME=value, `export`, comments; quoted values may have lines, double quotes know \\n, \\t, \\" and \\\\.
    Nothing is put in for `$…`.
    """
    variables: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        name, single, double, bare = match.groups()
        if double is not None:
            double = re.sub(r"\\(.)", lambda escape: _ENV_ESCAPES.get(escape[1], escape[1]), double)
        variables[name] = single or double or bare or ""
        return "\n" * match[0].count("\n")

    rest = _ENV.sub(take, text)
    return variables, [number for number, line in enumerate(rest.split("\n"), 1) if _ENV_ODD.match(line)]


def home(environ: Mapping[str, str]) -> str:
    """$HOME, else what the user database says."""
    try:
        return environ.get("HOME") or str(Path.home())
    except RuntimeError:
        raise _refused("there is no home directory: set HOME") from None


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Where the state is when the file does not say."""
    named = environ.get("PILOT_HOME") or "~/.pilot"
    return named if named.startswith("~") else os.path.abspath(named)  # noqa: PTH100


def state_dir_problem(text: object) -> str:
    """Why this can't be a directory's name, or nothing."""
    return "" if isinstance(text, str) and text and "\0" not in text else "expected a directory's path, as text"


def store_problem(text: object) -> str:
    """Why this can't be a store, or nothing."""
    known = r"sqlite|sqlite:///[^\0]+|postgresql://[^/\0]*/[^\0]+"
    if isinstance(text, str) and re.fullmatch(known, text):
        return ""
    if isinstance(text, str) and text.startswith("postgres://"):
        return "write postgresql:// for postgres://"
    return "expected sqlite, sqlite:////path/pilot.db, or postgresql://user@host/db"


def store_url(text: str, state_dir: Path, place: Callable[[str], Path]) -> str:
    """The store's URL, a SQLite path in it absolute and quoted."""
    if text == "sqlite":
        return f"sqlite:///{quote(str(state_dir / DATABASE))}"
    if text.startswith("sqlite:///"):
        return f"sqlite:///{quote(str(place(unquote(text.removeprefix('sqlite:///')))))}"
    return text


def ensure_state_dir(path: Path) -> None:
    """Make the directory, for its owner only. Raises `ConfigError` when it is not safe or can't be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    except FileExistsError:
        raise _refused(f"state_dir {path}: a file is in its way; set another state_dir") from None
    except OSError as error:
        raise _refused(f"state_dir {path}: can't be made: {error.strerror}") from None
    if status.st_uid != os.geteuid():
        owner = f"belongs to another user (uid {status.st_uid})"
        raise _refused(f"state_dir {path}: {owner}; chown it, or set another state_dir")
    if status.st_mode & stat.S_IWOTH:
        raise _refused(f"state_dir {path}: anyone can write to it; chmod 700 {path}")


def _refused(problem: str) -> ConfigError:
    return ConfigError([problem])
