"""One repository has one key, however it is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pilot.domain.errors import UsageError
from pilot.runner.identity import find_repository, machine, repository_key, url_key, without_secrets
from tests.core.worksite import git, repository


def test_every_way_to_a_repository_gives_its_key(tmp_path: Path) -> None:
    repo = repository(tmp_path / "api")
    git(repo, "worktree", "add", "-q", str(tmp_path / "linked"))
    (tmp_path / "link").symlink_to(repo)
    (tmp_path / "deep").symlink_to(repo / "src")
    key = f"{machine()}:{os.path.realpath(repo)}/.git"

    ways: list[str | Path] = [
        repo,
        repo / "src",
        tmp_path / "link",
        tmp_path / "link/src",
        tmp_path / "deep",
        f"{repo}/src/../",
    ]
    ways += [tmp_path / "linked", tmp_path / "linked/src", repo / ".git", repo / ".git/refs"]

    assert {repository_key(way)[0] for way in ways} == {key}
    assert repository_key(repo / "src")[1] == repo
    assert repository_key(tmp_path / "linked/src")[1] == tmp_path / "linked"
    assert find_repository(tmp_path / "deep") == repo


def test_a_git_directory_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "apart"
    place.mkdir()
    git(place, "init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere"))

    assert repository_key(place) == (f"{machine()}:{tmp_path}/elsewhere", place)


def test_a_submodule_is_a_repository_of_its_own(tmp_path: Path) -> None:
    sub, repo = repository(tmp_path / "sub"), repository(tmp_path / "api")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(sub), "lib")

    assert repository_key(repo / "lib/src") == (f"{machine()}:{repo}/.git/modules/lib", repo / "lib")
    assert repository_key(repo)[0] != repository_key(repo / "lib")[0]


def test_a_bare_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "api.git")

    assert repository_key(tmp_path / "api.git") == (f"{machine()}:{tmp_path}/api.git", tmp_path / "api.git")
    assert repository_key(tmp_path / "api.git/refs/heads")[1] == tmp_path / "api.git"


def test_no_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    assert find_repository(tmp_path) is None
    with pytest.raises(UsageError, match="in no git repository"):
        repository_key(tmp_path)
    with pytest.raises(FileNotFoundError):
        repository_key(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "forms",
    [
        [
            "git@github.com:acme/api.git",
            "ssh://git@github.com/acme/api.git",
            "ssh://git@github.com:22/acme/api",
            "ssh://git@ssh.github.com:443/Acme/API.git",
            "https://github.com/acme/api",
            "https://user:token@GitHub.com:443/acme/api.git/",
            "git://github.com//acme/api.git",
            "github.com:acme/api",
        ],
        ["git@git.corp:team/Sub/api.git", "ssh://git@git.corp:2222/team/Sub/api", "https://git.corp/team/Sub/api.git"],
        ["https://git.corp/a%20b/c", "https://git.corp/a b/c.git"],
    ],
)
def test_the_forms_of_one_address(forms: list[str]) -> None:
    assert len({url_key(form) for form in forms}) == 1


def test_addresses_that_differ() -> None:
    urls = [
        "https://git.corp/a/b",
        "https://git.corp/a/B",
        "https://git.corp:8443/a/b",
        "https://git.corp/a/b.c",
        "h:a/b",
    ]
    assert len({url_key(url) for url in urls}) == len(urls)
    assert "token" not in url_key("https://user:token@git.corp/a/b")


def test_a_local_address_is_the_repository_at_that_path(tmp_path: Path) -> None:
    repo = repository(tmp_path / "a pi")

    assert url_key(f"file://{tmp_path}/a%20pi") == url_key(str(repo)) == repository_key(repo)[0]
    assert url_key(f"file://{tmp_path}/nowhere").endswith(f":{tmp_path}/nowhere")


def test_ten_thousand_projects_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = repository(tmp_path / "api")
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr("subprocess.Popen", None)
    started = time.process_time()
    for _ in range(1000):
        repository_key(repo / "src")

    assert time.process_time() - started < 1.0, "a tenth of a second is usual; a process each would take three"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:token@host:8443/o/r@2.git", "https://host:8443/o/r@2.git"),
        ("https://token@host/o/r", "https://host/o/r"),
        ("ssh://git:secret@host/o/r", "ssh://git@host/o/r"),
        ("git@host:o/r.git", "git@host:o/r.git"),
        ("file:///srv/a@b:c/r", "file:///srv/a@b:c/r"),
        ("/srv/a@b", "/srv/a@b"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_pipe_is_no_repository_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".git")

    assert find_repository(tmp_path) is None
