"""What an agent finds in its sandbox, and what it does not; by programs that are run in it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from pilot.config.executor import SandboxSettings
from pilot.domain.agent import Places
from pilot.domain.errors import ConfigError
from pilot.runner.sandbox_machine import Missing, check, find_sandbox, probe
from pilot.runner.sandbox_system import shown
from tests.core.cell import MARKER, bwrap, cell, script, words
from tests.core.worksite import git

SWITCHES = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness")


async def test_work_is_done_as_outside(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    said = await c.sh(
        "pwd; echo 1 > new; mkdir -p deep/er; git add -A; git commit -qm work; git log -1 --format=%s; git branch; "
        "printf 'all:\\n\\techo made' > Makefile; make -s; node -p 6*7; python3 -c 'print(7*7)'; echo x > /tmp/x; "
        "cat /tmp/x; echo in | cat; [ -w /dev/null ]; getent hosts localhost > /dev/null; echo $HOME"
    )
    assert said.split("\n") == [
        str(c.path), "work", "  main", "* pilot/GH-7", "made", "42", "49", "x", "in", str(c.home)
    ]  # fmt: skip
    assert (c.path / "new").read_text() == "1\n"
    assert git(c.path, "log", "-1", "--format=%s") == "work"
    assert await c.sh("cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text().strip("\n")


async def test_nobody_else_s_files_are_there(tmp_path: Path) -> None:
    secrets = {
        "ann/.ssh/id_ed25519": "key", "ann/.netrc": "password", "pilot.yaml": "projects:", ".env": "TOKEN=1",
        "state/pilot.db": "rows", "state/token": "t0ken", "state/workspaces/8-gh-8/other/file": "other",
        "state/homes/2/home/cache": "other", "api/private": "the user's own checkout",
    }  # fmt: skip
    c = await cell(tmp_path)
    for name, text in secrets.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    here = os.path.relpath(tmp_path, c.path)
    await c.refused(
        *(f"cat {words(tmp_path / name)}" for name in secrets),
        *(f"cat {here}/{name}" for name in secrets),
        *(f"ln -sf {words(tmp_path / name)} link && cat link" for name in secrets),
        *(f"cat /proc/1/root{words(tmp_path / name)} || cat /proc/self/cwd/{here}/{name}" for name in secrets),
        "cat /etc/shadow", "cat /etc/gshadow", "cat /etc/sudoers", "ls ~root/.ssh", "ls /var/run/docker.sock",
        f"cat {words(c.workspace.home / 'workspace.json')}",
    )  # fmt: skip
    names = set((await c.sh(f"ls -A / {words(tmp_path)} {words(tmp_path / 'state')} ~")).split())
    assert not names & {"root", "home", "srv", "mnt", "sys", "pilot.yaml", ".env", "pilot.db", "token", ".ssh", "homes"}


async def test_nothing_outside_can_be_written(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    objects = c.site.repo / ".git/objects"
    await c.refused(
        f"echo x > {words(outside / 'x')}",
        f"ln -s {words(outside)} out && echo x > out/x",
        "echo x > /usr/bin/x", "echo x > /etc/x", "echo x > /x", "mkdir /opt/x",
        f"echo x > {words(objects / 'x')}",
        # the same again, so that nothing comes of it where it works
        *(f"cat {switch} > /tmp/v; cat /tmp/v > {switch}" for switch in SWITCHES),
        "echo h > /proc/sysrq-trigger",
        f"mv {words(c.path)} {words(c.path)}2", f"rmdir {words(c.path)}",
    )  # fmt: skip
    await c.sh(f"echo x > {words(c.workspace.home / 'x')} || true; mkdir -p {words(c.site.state / 'homes/2')} || true")
    assert list(outside.iterdir()) == []
    assert {entry.name for entry in c.workspace.home.iterdir()} == {
        ".hold", ".lock", "api", "git", "home", "index", "scratch", "workspace.json"
    }  # fmt: skip
    assert not (c.site.state / "homes/2").exists()


async def test_what_is_mounted_stays_so(tmp_path: Path) -> None:
    """As root without `--cap-drop`, the first of these works."""
    c = await cell(tmp_path, workspace="worktree")
    config = c.site.repo / ".git/config"
    before = config.read_text()
    await c.refused(
        f"umount {words(c.site.repo / '.git')}",
        f"umount /proc/sys && echo x > {words(config)}",
        f"mount -o remount,rw {words(c.site.repo / '.git')}",
        "mount -t proc proc /tmp", "mount -t tmpfs none /mnt", "mount --bind /tmp /usr",
        "unshare -Urm true", "unshare -U true", "unshare -m true", "nsenter -t 1 -m true", "chroot / true",
        "mknod disk b 254 0",
        f"echo x >> {words(config)}", f"rm -f {words(config)}",
        "python3 -c 'import os; os.setns(os.open(\"/proc/1/ns/mnt\", 0), 0)'",
    )  # fmt: skip
    said = await c.sh("cat /proc/self/status")
    assert {line for line in said.split("\n") if line.startswith(("CapEff", "CapPrm", "CapBnd", "NoNewPrivs"))} == {
        "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"
    }  # fmt: skip
    assert config.read_text() == before


async def test_pilot_and_its_environment_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "c4n4ry")
    c = await cell(tmp_path)
    me = os.getpid()
    said = await c.sh("env; cat /proc/*/environ | tr '\\0' '\\n'; ls -d /proc/[0-9]*; cat /proc/[0-9]*/cmdline")
    assert "c4n4ry" not in said
    assert f"PILOT_RUN={MARKER}/" in said
    assert len([line for line in said.split("\n") if line.startswith("/proc/")]) < 8
    await c.refused(f"kill -0 {me}", f"kill -9 {me}", f"cat /proc/{me}/environ", f"ls /proc/{me}/root")


async def test_the_home_is_the_project_s_and_is_kept(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    (c.home / ".npmrc").write_text("//token")
    assert await c.sh("ls -A ~; mkdir -p ~/.cache/pip; echo warm > ~/.cache/pip/x") == ""
    assert await c.sh("cat ~/.cache/pip/x") == "warm"
    c.sandbox.close()

    d = await cell(tmp_path, id=8, at=c.site)
    assert await d.sh("cat ~/.cache/pip/x") == "warm"
    assert [entry.name for entry in c.home.iterdir()] == [".npmrc"]

    e = await cell(tmp_path, id=9, at=c.site)
    assert await e.sh("ls -A ~; touch ~/second") == "", "two at once never share a home"
    e.workspace.close()
    e.sandbox.close()
    d.sandbox.close()
    f = await cell(tmp_path, id=9, at=c.site)
    assert await f.sh("ls ~") == "second", "its sessions are there"


async def test_an_agent_s_places(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    own, other = c.home / ".agent", tmp_path / "config/agent"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "login.json").write_text("old")
        (folder / "settings.json").write_text("mine")
        (folder / "history").write_text("private")
    c.places = Places(
        state=(str(own), str(other)),
        logins=(str(own / "login.json"), str(other / "login.json"), str(own / "absent.json")),
        settings=(
            str(own / "settings.json"), str(other / "settings.json"), str(own / "more.json"), str(own / "more.toml"),
            str(own / "hooks"), str(other / "deep/er/hooks"),
        ),
    )  # fmt: skip
    for folder in (own, other):
        at = words(folder)
        assert await c.sh(f"cat {at}/login.json {at}/settings.json") == "oldmine"
        await c.sh(f"printf new > {at}/login.json; mkdir -p {at}/sessions; echo s > {at}/sessions/1")
        await c.refused(f"cat {at}/history", f"echo x > {at}/settings.json", f"rm -f {at}/settings.json")
        assert (folder / "login.json").read_text() == "new", "a token that was renewed is the user's"
        assert await c.sh(f"cat {at}/sessions/1") == "s"
        assert sorted(entry.name for entry in folder.iterdir()) == ["history", "login.json", "settings.json"]
    at = words(own)
    assert (
        await c.sh(f"cat {at}/more.json {at}/more.toml; ls -A {at}/hooks; ls -A {words(other)}/deep/er/hooks")
    ) == "{}"
    await c.refused(
        f"echo x > {at}/more.json", f"echo x > {at}/more.toml", f"touch {at}/hooks/x", f"rmdir {at}/hooks",
        f"mv {at} ~/moved", f"mv {words(other)}/deep ~/moved", f"mv {words(other)}/deep/er ~/moved",
        f"rm -f {at}/more.json",
    )  # fmt: skip
    assert await c.sh(f"touch {at}/absent.json; ls {at}/absent.json")
    assert "No such file" in await c.fails(f"cat {at}/absent.json"), "a login that an agent made is not for the next"


async def test_what_steers_an_agent_and_is_its_own_is_new_for_each_run(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    mine = c.home / ".agent.json"
    mine.write_text("private")
    c.places = Places(state=(str(c.home / ".agent"),), fresh=(str(mine), str(c.home / ".agent/orders.json")))
    for _ in range(2):
        await c.sh(
            "test ! -e ~/.agent.json; test ! -e ~/.agent/orders.json; echo x | tee ~/.agent.json ~/.agent/orders.json"
        )
    assert mine.read_text() == "private"


async def test_no_program_can_be_left_in_a_folder_of_path(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    c.env["PATH"] = f"{c.home}/bin:{c.home}/.local/bin:{c.env['PATH']}"
    await c.refused(
        *(f"mkdir -p ~/{folder}; echo evil > ~/{folder}/make" for folder in ("bin", ".local/bin")),
        "mv ~/.local ~/moved", "rmdir ~/bin",
    )  # fmt: skip
    await c.sh("mkdir -p ~/.local/share; touch ~/.local/share/x")
    assert not (c.home / "bin").exists()


async def test_a_link_that_an_agent_left_shows_nothing_more(tmp_path: Path) -> None:
    shared, secret = tmp_path / "shared", tmp_path / "ann/.ssh/key"
    (shared / "deep").mkdir(parents=True)
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    named = [str(shared / "link"), str(shared / "deep/er/key")]
    c = await cell(tmp_path, paths=SandboxSettings(read=named, write=[str(shared), *named]))
    at = words(shared)
    await c.sh(f"ln -s {words(secret.parent)} {at}/link; ln -s {words(secret.parent)} {at}/deep/er")
    await c.refused(f"cat {words(secret)}", f"cat {at}/link/key", f"cat {at}/deep/er/key", f"echo x > {words(secret)}")
    assert secret.read_text() == "secret"


@pytest.mark.parametrize(
    "trap", ["{target}", "/oldroot{target}", "/newroot{target}", "../../../../../../oldroot{target}"]
)
async def test_traps_left_in_the_home_catch_nobody(tmp_path: Path, trap: str) -> None:
    """Bubblewrap follows links to where it mounts, and makes what is not there: outside, too."""
    c = await cell(tmp_path)
    target = tmp_path / "outside"
    target.mkdir()
    own = c.home / ".agent"
    (c.home / ".login").write_text("user's")
    link = trap.format(target=target)
    c.places = Places()
    await c.sh(
        f"ln -s {link} ~/.agent; ln -s {link}/made ~/.login; mkdir ~/.setting; touch ~/.setting/x; chmod 0 ~/.setting ~"
    )
    c.places = Places(
        state=(str(own),),
        logins=(str(c.home / ".login"),),
        settings=(str(own / "s.json"), str(c.home / ".setting.json")),
    )
    await c.sh("ls -lA ~ ~/.agent; [ -d ~/.agent ]; [ ! -L ~/.agent ]; cat ~/.login | grep user")
    assert list(target.iterdir()) == []


async def test_programs_of_the_user_run_and_their_secrets_stay(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    ann = c.home
    (ann / ".local/share").mkdir(parents=True)
    (ann / ".local/share/keys").write_text("secret")
    script(ann / ".local/share/tool/versions/1.2", "#!/bin/sh\necho tool $@")
    (ann / ".local/bin").mkdir()
    (ann / ".local/bin/tool").symlink_to("../share/tool/versions/1.2")
    prefix = ann / ".nvm/versions/node/v1"
    script(
        prefix / "lib/node_modules/pkg/cli.js", "#!/usr/bin/env node\nconsole.log(require('./dep'), process.argv[2])"
    )
    (prefix / "lib/node_modules/pkg/dep.js").write_text("module.exports = 'dep'")
    (prefix / "bin").mkdir()
    (prefix / "bin/pkg").symlink_to("../lib/node_modules/pkg/cli.js")
    (ann / ".nvm/secret").write_text("secret")
    script(ann / ".pyenv/libexec/run", "#!/bin/sh\necho shimmed")
    script(ann / ".pyenv/shims/shimmed", f"#!/bin/sh\nexec {ann}/.pyenv/libexec/run")
    (ann / "direct").symlink_to(".local/bin/tool")
    c.env["PATH"] = f"{prefix}/bin:{ann}/.local/bin:{ann}/.pyenv/shims:{c.env['PATH']}:bin:."

    assert (await c.run("which", "sh"))[0] == 0, "by way of /etc/alternatives, on some systems"
    assert await c.run("pkg", "a") == (0, "dep a")
    assert await c.run("tool", "b c") == (0, "tool b c")
    assert await c.run(str(ann / "direct")) == (0, "tool")
    assert await c.sh("pkg 1; tool 2; shimmed") == "dep 1\ntool 2\nshimmed"
    await c.refused(f"cat {words(ann)}/.local/share/keys", f"cat {words(ann)}/.nvm/secret")
    await c.refused(f"echo x > {words(prefix)}/bin/x", f"rm {words(ann)}/.local/bin/tool")
    assert await c.run(sys.executable, "-c", "import structlog; print(1)") == (0, "1")
    strange = script(tmp_path / "a=b/tool", "#!/bin/sh\necho strange")
    assert await c.run(str(strange)) == (0, "strange")
    await c.sh("mkdir bin; printf '#!/bin/sh\\necho > bin/x; echo mine' > bin/mine; chmod +x bin/mine")
    assert await c.run("bin/mine") == (0, "mine"), "what is in the workspace can be written there, as before"


async def test_what_agents_write_shows_them_nothing_more(tmp_path: Path) -> None:
    """Links in a folder of PATH, interpreters and environments are followed only where no agent can have made them."""
    (tmp_path / "tools").mkdir()
    c = await cell(tmp_path, paths=SandboxSettings(write=(str(tmp_path / "tools"),)))
    secret = script(tmp_path / "secret/key", "#!/bin/sh\n")
    bins = (c.path / "venv/bin", tmp_path / "tools/bin")
    c.env["PATH"] += "".join(f":{folder}" for folder in bins)
    for folder in bins:
        at = words(folder)
        await c.sh(
            f"mkdir -p {at}; ln -s {secret} {at}/key; ln -s {secret} {at}/python; touch {at}/../pyvenv.cfg; "
            f"echo home = {secret.parent} > {at}/../pyvenv.cfg; printf '#!{secret}\\n' > {at}/run; "
            f"printf '#!/bin/sh\\necho ran' > {at}/ok; chmod +x {at}/run {at}/ok"
        )
        await c.refused(f"cat {at}/key", f"cat {words(secret)}", f"ls {words(secret.parent)}")
        for program in ("key", "run"):
            code, _ = await c.run(str(folder / program))
            assert code != 0
        assert await c.run(str(folder / "ok")) == (0, "ran")
    assert await c.run("ok") == (0, "ran")


@pytest.mark.parametrize(
    ("program", "error"),
    [("no-such-program", FileNotFoundError), ("./none", FileNotFoundError), ("./README", PermissionError),
     ("/usr", PermissionError), ("./script", FileNotFoundError)],
)  # fmt: skip
async def test_what_can_t_be_started_is_said_as_outside(tmp_path: Path, program: str, error: type[OSError]) -> None:
    c = await cell(tmp_path)
    script(c.path / "script", "#!/no/such/interpreter\n")
    os.mkfifo(c.path / "pipe", 0o777)
    with pytest.raises(error):
        await c.run(program)


async def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    c.workspace.path = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        await c.run("true")


async def test_what_the_operator_shows_besides(tmp_path: Path) -> None:
    for name in ("tools/a", "data/b", "pilot.yaml", ".env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("shown")
    (tmp_path / "ann/.npmrc").parent.mkdir()
    (tmp_path / "ann/.npmrc").write_text("registry")
    (tmp_path / "link").symlink_to(tmp_path)
    read = (tmp_path, tmp_path / "link", tmp_path / "ann/.npmrc")
    c = await cell(tmp_path, paths=SandboxSettings(read=tuple(map(str, read)), write=(str(tmp_path / "data"),)))
    (c.site.state / "pilot.db").write_text("rows")
    (c.home / ".netrc").write_text("password")

    assert await c.sh(
        f"cd {words(tmp_path)}; cat tools/a link/tools/a; echo new > data/b; ls -A state link/state/workspaces || true"
    )
    assert (tmp_path / "data/b").read_text() == "new\n"
    await c.refused(
        f"echo x > {words(tmp_path)}/tools/a",
        f"cat {words(tmp_path)}/state/pilot.db",
        f"cat {words(tmp_path)}/ann/.netrc",
    )
    for name in ("pilot.yaml", ".env", "link/pilot.yaml", "link/.env"):
        assert await c.sh(f"cat {words(tmp_path)}/{name}") == ""
    await c.refused(f"cat {words(tmp_path)}/link/state/pilot.db")
    assert (tmp_path / "pilot.yaml").read_text() == "shown"
    assert await c.sh("cat ~/.npmrc") == "registry"
    await c.refused("echo x > ~/.npmrc")


async def test_a_socket_below_the_link_of_every_system(tmp_path: Path) -> None:
    run = "/run" if os.access("/run", os.W_OK) else f"/run/user/{os.getuid()}"
    with tempfile.TemporaryDirectory(dir=run, prefix="pilot-test-") as folder, socket.socket(socket.AF_UNIX) as there:
        there.bind(f"{folder}/docker.sock")
        there.listen()
        named = f"/var{folder}/docker.sock"
        c = await cell(tmp_path, paths=SandboxSettings(write=(named,)))
        asks = f"import socket; socket.socket(socket.AF_UNIX).connect({named!r}); print('heard')"
        assert await c.sh(f'python3 -c "{asks}"') == "heard"


async def test_everything_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "all").symlink_to("/")
    with pytest.raises(ConfigError, match="/ is everything"):
        await cell(tmp_path, paths=SandboxSettings(read=(str(tmp_path / "all"),)))


async def test_only_what_everybody_may_read_is_read(tmp_path: Path) -> None:
    """Pilot may be root; an agent of its is not to be, though its files are."""
    c = await cell(tmp_path)
    listed = await c.sh("find /etc -type f; find /opt -maxdepth 1")
    for name in listed.split("\n"):
        assert Path(name).stat().st_mode & 0o004, name


async def test_what_not_everybody_may_read_is_covered_wherever_it_is(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    for name, mode in {
        "open": 0o644,
        "keys/private": 0o600,
        "keys/public": 0o644,
        "mine/x": 0o644,
        "one": 0o600,
    }.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).touch()
        (etc / name).chmod(mode)
    (etc / "mine").chmod(0o700)
    (etc / "link").symlink_to("one")

    assert list(shown(str(etc / "one"), "/blank")) == []
    assert list(shown(str(etc / "link"), "/blank")) == ["--symlink", "one", str(etc / "link")]
    said = " ".join(shown(str(etc), "/blank")).replace(str(etc), "/e")
    assert sorted(said.split(" --")) == [
        "--ro-bind /e /e", "ro-bind /blank /e/keys/private", "ro-bind /blank /e/one", "tmpfs /e/mine"
    ]  # fmt: skip


async def test_where_there_is_no_bubblewrap(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    missing = Missing("bubblewrap (bwrap) is not installed", "install the package bubblewrap")
    assert find_sandbox("none", bwrap()) is None
    assert find_sandbox("auto", bwrap()) == find_sandbox("bubblewrap", bwrap()) == bwrap()
    assert find_sandbox("auto", missing) is None
    with pytest.raises(ConfigError, match="is not installed; install the package bubblewrap, or set sandbox: none"):
        find_sandbox("bubblewrap", missing)
    assert [check(wanted, missing).ok for wanted in ("auto", "bubblewrap", "none")] == [None, False, None]
    assert check("auto", bwrap()).ok is True
    assert "not installed" in check("auto", missing).detail


async def test_one_that_refuses_to_work_is_none(tmp_path: Path) -> None:
    script(tmp_path / "bwrap", "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1")
    found = probe({"PATH": str(tmp_path)})
    assert isinstance(found, Missing)
    assert "No permissions" in found.why
    assert "user name spaces" in found.remedy


async def test_a_home_inside_what_may_not_be_one(tmp_path: Path) -> None:
    c = await cell(tmp_path)
    for home in ("/", "", "/usr", "/etc/x", "relative"):
        c.env["HOME"] = home
        assert await c.sh("echo ok") == "ok"
    c.env["HOME"] = str(tmp_path)  # the state, the workspace and the repository are all below it
    assert await c.sh("echo x > new; touch ~/mine; ls -A ~ | sort | head -3; git status --short") != ""
    await c.refused(f"ls {words(c.site.state / 'homes')}")
    assert not (tmp_path / "mine").exists()
    assert not list(c.kept.glob("state/*")), "no mount points are left in a home that is kept"
    shutil.rmtree(c.kept)
