"""Which file, which state directory, which store: the same for quick commands and for all others."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pilot.config.load import load
from pilot.config.locate import ensure_state_dir, locate, read_env
from pilot.config.parse import MAX_BYTES
from pilot.domain.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; $HOME is `home` in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "work"


def write(path: Path, text: str = "store: sqlite\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def environ(here: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(here.parent / "home"), **more}


def refusal(config: Path | None, env: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        locate(config, env)
    with pytest.raises(ConfigError):
        load(config, env)
    assert caught.value.exit_code == 2
    return str(caught.value)


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def test_the_nearest_of_five_places_is_taken(here: Path) -> None:
    home, xdg = here.parent / "home", here.parent / "xdg"
    env = environ(here, XDG_CONFIG_HOME=str(xdg), PILOT_CONFIG="../other.yaml")
    places = [
        write(here / "named.yaml"),
        write(here.parent / "other.yaml"),
        write(here / "pilot.yaml"),
        write(xdg / "pilot" / "pilot.yaml"),
        write(home / ".pilot" / "pilot.yaml"),
    ]

    def found(config: Path | None) -> Path | None:
        located = locate(config, env)
        assert load(config, env).path == located.config_path
        return located.config_path and located.config_path.resolve()

    assert found(Path("named.yaml")) == places[0]
    assert found(None) == places[1]
    del env["PILOT_CONFIG"]
    for place in places[2:]:
        assert found(None) == place
        place.unlink()
    assert found(None) is None


def test_without_xdg_the_place_is_dot_config(here: Path) -> None:
    path = write(here.parent / "home" / ".config" / "pilot" / "pilot.yaml")

    assert locate(None, environ(here)).config_path == path
    assert locate(None, environ(here, XDG_CONFIG_HOME="relative/is/ignored")).config_path == path


def test_a_file_that_is_named_has_to_be_there(here: Path) -> None:
    assert "named by --config" in refusal(Path("nope.yaml"), environ(here))
    assert "named by $PILOT_CONFIG" in refusal(None, environ(here, PILOT_CONFIG="nope.yaml"))


@pytest.mark.parametrize(
    ("text", "more", "state_dir", "store"),
    [
        ("", {}, "home/.pilot", "sqlite:///{root}/home/.pilot/pilot.db"),
        ("", {"PILOT_HOME": "~/s"}, "home/s", "sqlite:///{root}/home/s/pilot.db"),
        ("state_dir: ~/t", {"PILOT_HOME": "/s"}, "home/t", "sqlite:///{root}/home/t/pilot.db"),
        ("", {"PILOT_HOME": "s 1%"}, "work/s 1%", "sqlite:///{root}/work/s%201%25/pilot.db"),
        ("state_dir: st", {}, "conf/st", "sqlite:///{root}/conf/st/pilot.db"),
        ("state_dir: ${D}/x", {"D": "st"}, "conf/st/x", "sqlite:///{root}/conf/st/x/pilot.db"),
        ("store: sqlite:///p.db", {}, "home/.pilot", "sqlite:///{root}/conf/p.db"),
        ("store: sqlite:///~/a b.db", {}, "home/.pilot", "sqlite:///{root}/home/a%20b.db"),
        ("store: sqlite:////v/p.db", {}, "home/.pilot", "sqlite:////v/p.db"),
        ("{store: &s 'postgresql://u@h/d', projects: []}", {}, "home/.pilot", "postgresql://u@h/d"),
        (
            "projects:\n- {name: a, url: &u /x}\nstore: ${S:-sqlite}",
            {},
            "home/.pilot",
            "sqlite:///{root}/home/.pilot/pilot.db",
        ),
    ],
)
def test_quick_commands_and_all_others_mean_the_same_store(
    here: Path, text: str, more: dict[str, str], state_dir: str, store: str
) -> None:
    root = here.parent
    config = write(root / "conf" / "pilot.yaml", text)

    located = locate(config, environ(here, **more))
    settings = load(config, environ(here, **more)).settings

    assert located.state_dir == settings.state_dir == root / state_dir
    assert located.store_url == settings.store_url == store.format(root=root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store: mysql://x/y", "pilot.yaml:1:1: store: expected sqlite, sqlite:////path/pilot.db, or"),
        ("store: postgres://x/y", "pilot.yaml:1:1: store: write postgresql://"),
        ("store: [sqlite]", "pilot.yaml:1:1: store: expected"),
        ("state_dir: 12", "pilot.yaml:1:1: state_dir: expected"),
        ("store: ${NOPE}", "pilot.yaml:1:8: store: the variable NOPE is not set"),
        ("store: sqlite\nstore: sqlite", "pilot.yaml:2:1: store: is here twice; the first is in line 1"),
        ("- a", "pilot.yaml:1:1: expected keys with values"),
        ("a: [", "pilot.yaml:2:1: not YAML"),
    ],
)
def test_what_keeps_the_store_from_being_found_is_told(here: Path, text: str, says: str) -> None:
    write(here / "pilot.yaml", text)

    assert refusal(None, environ(here)).startswith(says)


def test_quick_commands_do_not_mind_what_is_wrong_elsewhere(here: Path) -> None:
    write(here / "pilot.yaml", "sources: {github: {token: '${NOPE}'}}\nnope: 1\nstate_dir: /x\n")

    assert locate(None, environ(here)).state_dir == Path("/x")


def test_quick_commands_load_nothing_heavy() -> None:
    heavy = ("pydantic", "asyncio", "typing_extensions", "pilot.config.schema")
    code = f"import sys, pilot.config.locate; print([name for name in {heavy} if name in sys.modules])"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "[]\n"


def test_a_file_that_anyone_can_write_is_refused(here: Path) -> None:
    write(here / "pilot.yaml").chmod(0o666)
    assert "anyone can write to it" in refusal(None, environ(here))

    (here / "pilot.yaml").chmod(0o664)
    write(here / ".env", "A=1").chmod(0o602)
    assert ".env: anyone can write to it" in refusal(None, environ(here))


def test_a_file_of_another_user_counts_only_when_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(here / "pilot.yaml", "state_dir: /x")
    of_another_user(config, monkeypatch)

    assert "belongs to another user" in refusal(None, environ(here))
    assert locate(config, environ(here)).state_dir == Path("/x")


def test_what_is_no_file_or_too_large_is_refused(here: Path) -> None:
    os.mkfifo(here / "fifo")  # nobody writes to it: reading would wait for ever
    (here / "huge").write_bytes(b"#" * (MAX_BYTES + 1))
    (here / "latin").write_bytes(b"a: 1\nb: \xe9\n")

    assert "fifo: not a file" in refusal(Path("fifo"), environ(here))
    assert "can't be read: Is a directory" in refusal(here, environ(here))
    assert "huge: larger than 32 MiB" in refusal(Path("huge"), environ(here))
    assert "latin:2:4: not UTF-8 text (byte 0xe9)" in refusal(Path("latin"), environ(here))


def test_variables_come_from_the_environment_then_from_dot_env(here: Path) -> None:
    write(here / "pilot.yaml", "state_dir: /${A}/${B}/${C:-c}/${F:-f}/$$D/$E\n")
    write(here / ".env", "A=file\nB=file\n").chmod(0o600)

    assert locate(None, environ(here, A="real", F="")).state_dir == Path("/real/file/c/f/$D/$E")


def test_a_place_that_can_not_be_looked_at_is_passed_by(here: Path) -> None:
    env = {"HOME": "/dev/null", "XDG_CONFIG_HOME": "/" + "x" * 300}

    assert locate(None, env).config_path is None


def test_a_working_directory_that_is_gone_is_told(here: Path) -> None:
    here.rmdir()

    assert refusal(None, environ(here)) == "the working directory has been removed: cd to another one"


def test_dot_env_is_read_as_shells_and_others_write_it() -> None:
    variables, odd = read_env(
        "# comment\nA=1\n export B = two words # comment\nC='$x # y'\r\n"
        'D="a\\nb\n c" # comment\nE=\nF= # comment\nG=a#b\nwhat is this\nH="open\nI=#x\n'
    )

    assert variables == {
        "A": "1",
        "B": "two words",
        "C": "$x # y",
        "D": "a\nb\n c",
        "E": "",
        "F": "",
        "G": "a#b",
        "I": "#x",
    }
    assert odd == [10, 11]


def test_dot_env_that_others_read_is_warned_of(here: Path) -> None:
    write(here / "pilot.yaml")
    write(here / ".env", "A=1\n???\n").chmod(0o644)

    odd, readable = load(None, environ(here)).warnings

    assert odd.endswith(".env:2:1: left out, it is no NAME=value")
    assert "chmod 600" in readable


def test_the_state_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        ensure_state_dir(path)
    finally:
        os.umask(before)
    ensure_state_dir(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_an_unsafe_state_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(ConfigError, match="anyone can write to it; chmod 700"):
        ensure_state_dir(path)

    path.chmod(0o700)
    of_another_user(path, monkeypatch)
    with pytest.raises(ConfigError, match="belongs to another user"):
        ensure_state_dir(path)


def test_a_state_directory_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file" / "state", tmp_path / "file"):
        with pytest.raises(ConfigError, match="a file is in its way"):
            ensure_state_dir(path)
    with pytest.raises(ConfigError, match="can't be made: File name too long"):
        ensure_state_dir(tmp_path / ("x" * 300))
