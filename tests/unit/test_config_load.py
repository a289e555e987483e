"""What a person gets to read who wrote something wrong, and what is read when all is right."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest
import yaml

from pilot.config.idle import idle
from pilot.config.load import Loaded, load, mask
from pilot.config.render import MASK
from pilot.domain.errors import ConfigError

CANARY = "canary-7d2f"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file goes; it is shown by its name alone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pilot.yaml"


def loaded(config: Path, text: str, **variables: str) -> Loaded:
    config.write_text(text)
    return load(None, {"HOME": "/home/x", **variables})


def problems(config: Path, text: str, **variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(config, text, **variables)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def problem(config: Path, text: str, **variables: str) -> str:
    (one,) = problems(config, text, **variables)
    return one


def test_without_a_file_all_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    found = load(None, {"HOME": "/home/x"})

    assert found.path is None
    assert found.settings.server.port == 7337
    assert found.settings.state_dir == Path("/home/x/.pilot")


def test_a_file_without_a_word_is_one_without_problems(config: Path) -> None:
    assert loaded(config, "# nothing yet\n").settings.projects == ()


BROKEN = """\
srever: {port: 80}
server:
  port: "80"
  host: no
executor:
  type: claud-code
  timeout: 1h30
  claude_code: {}
  routes:
    - {use: command, match: {labels: docs, kind: bild, title: "("}}
projects:
  - name: api
    path: ~/src/api
    worksapce: clone
    gates: [{name: a, run: x, timeout: 0s}, {name: a, run: ""}]
  - name: api
    url: ext::sh -c id
    path: x
    base: ${NOPE}
  - {name: b}
sources:
  github: {label: "${ALSO_NOT}"}
notify: {telegram: [1]}
budget:
"""


def test_everything_that_is_wrong_is_told_at_once_with_its_place(config: Path) -> None:
    assert [line.split(": ", 2)[:2] for line in problems(config, BROKEN)] == [
        ["pilot.yaml:1:1", "srever"],
        ["pilot.yaml:3:3", "server.port"],
        ["pilot.yaml:4:3", "server.host"],
        ["pilot.yaml:6:3", "executor.type"],
        ["pilot.yaml:7:3", "executor.timeout"],
        ["pilot.yaml:8:3", "executor.claude_code"],
        ["pilot.yaml:10:8", "executor.routes.0.use"],
        ["pilot.yaml:10:30", "executor.routes.0.match.labels"],
        ["pilot.yaml:10:44", "executor.routes.0.match.kind"],
        ["pilot.yaml:10:56", "executor.routes.0.match.title"],
        ["pilot.yaml:14:5", "projects.0.worksapce"],
        ["pilot.yaml:15:31", "projects.0.gates.0.timeout"],
        ["pilot.yaml:15:46", "projects.0.gates.1.name"],
        ["pilot.yaml:15:55", "projects.0.gates.1.run"],
        ["pilot.yaml:16:5", "projects.1.name"],
        ["pilot.yaml:16:5", "projects.1"],
        ["pilot.yaml:17:5", "projects.1.url"],
        ["pilot.yaml:19:11", "projects.1.base"],
        ["pilot.yaml:20:5", "projects.2"],
        ["pilot.yaml:22:3", "sources.github"],
        ["pilot.yaml:22:19", "sources.github.label"],
        ["pilot.yaml:23:10", "notify.telegram"],
        ["pilot.yaml:24:1", "budget"],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("projets: []", "1:1: projets: unknown key (did you mean 'projects'?)"),
        (
            "executor: {sandbox_paths: {write: [/usr/..]}}",
            "1:36: executor.sandbox_paths.write.0: / is everything; name what agents need, or set sandbox: none",
        ),
        (
            "executor: {opencode: {server_url: 'localhost:4096'}}",
            "1:23: executor.opencode.server_url: expected an address such as https://host/path",
        ),
        ("executor: {opencode: {model: sonnet}}", "1:23: executor.opencode.model: expected a model as provider/model"),
        ("budget: {x: 1}", "1:10: budget.x: unknown key: known here are per_day_usd, per_execution_usd"),
        ("server: {port: [1]}", "1:10: server.port: expected a whole number, got a list"),
        ("server: {port: '80'}", "1:10: server.port: expected a whole number, got text (write it without quotes)"),
        ("server: {port: 70000}", "1:10: server.port: has to be at most 65535"),
        ("server: {host: 1.5}", '1:10: server.host: expected text, got a number (quote it: "1.5")'),
        ("server: {host: ''}", "1:10: server.host: must not be empty"),
        ("server: x", "1:1: server: expected keys with values, got text"),
        ("server: {callbacks: {allow_private: 'no'}}", "1:22: server.callbacks.allow_private: expected true or false,"),
        ("executor: {acp: {argv: gemini}}", "1:18: executor.acp.argv: expected a list, got text (write [a, b],"),
        (
            "executor: {sandbox: bubblewarp}",
            "'bubblewarp' is not one of auto, bubblewrap, none (did you mean 'bubblewrap",
        ),
        ("executor: {environment: {set: {A-B: x}}}", "set.A-B: expected the name of an environment variable"),
        ("executor: {environment: {set: {A: 1}}}", "set.A: expected text, got a number (quote it)"),
        ("executor: {codex: {model: --x}}", "executor.codex.model: must not begin with '-'"),
        ("executor: {profiles: {x: {}}}", "1:23: executor.profiles.x.type: is missing: Its type,"),
        ("budget: {per_day_usd: -1}", "budget.per_day_usd: has to be more than 0"),
        ("budget: {per_execution_usd: 0}", "budget.per_execution_usd: has to be more than 0"),
        ("budget: {per_day_usd: .nan}", "budget.per_day_usd: expected a number, got text"),
        ("notify: {webhook: [ftp://x]}", "notify.webhook.0: expected an address such as https://host/path"),
        ("projects: [{path: x}]", "1:12: projects.0.name: is missing"),
        ("projects: [{name: a b, path: x}]", "projects.0.name: expected a name of letters"),
        ("projects: [{name: a, path: x, github: a}]", "projects.0.github: expected owner/repo"),
        ("projects: [{name: a, url: 'ext::sh -c id'}]", "projects.0.url: expected a repository's address"),
        ("projects: [{name: a, path: ''}]", "projects.0.path: expected a path, got empty text"),
        (
            "sources: {telegram: {token: t, allowed_users: [1], base_url: https://x}}",
            "base_url: expected an address that ends in /bot",
        ),
        ("sources: {github: {token: t, poll_interval: 500ms}}", "poll_interval: has to be at least 1s"),
        ("sources: {telegram: {token: t}}", "sources.telegram.allowed_users: is missing: Users, by numeric id"),
        ("sources: {telegram: {token: t, allowed_users: []}}", "allowed_users: must not be empty"),
        ("sources: {github: {}}", "1:11: sources.github: has a token or an app"),
        (
            "sources: {github: {token: t, app: {id: 1, installation: 2, private_key: k}}}",
            "sources.github: has a token or an app, not both",
        ),
        (
            "sources: {github: {app: {id: 1, installation: 2}}}",
            "sources.github.app: has a private_key or a private_key_file",
        ),
        ("sources: {failing_ci: {}}", "sources.failing_ci: needs sources.github"),
        ("retry: {quota: {counts: true}}", "a limit of the agent's provider never uses up attempts"),
        ("retry: {cancelled: {max: 1}}", "1:9: retry.cancelled: unknown key: known here are agent, auth,"),
    ],
)
def test_each_mistake_is_told_in_words(config: Path, text: str, says: str) -> None:
    assert says in problem(config, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server: {host: no}", 'expected text, got false (no is false in YAML; quote it: "no")'),
        ("projects: [{name: 012, path: x}]", 'expected text, got a number (quote it: "012")'),
        ("projects: [{name: a, path: off}]", 'expected a path, got false (off is false in YAML; quote it: "off")'),
        ("dispatcher: {max_running: 012}", "(012 is octal in YAML 1.1: write 12, or 10)"),
        ("dispatcher: {max_running: 1e3}", "(1e3 is a number in some versions of YAML only: write its digits out)"),
        ("dispatcher: {max_running: 1_000}", "(1_000 is a number in some versions of YAML only: write its digits out)"),
        (
            "dispatcher: {lease: 12:30}",
            "expected a duration such as 500ms, 30s, 10m, 1h30m (12:30 is a number in base 60",
        ),
        ("dispatcher: {lease: 30}", "(a number needs its unit: 30s, 30m)"),
        ("dispatcher: {lease: 1e3}", "(1e3 is a number in some versions"),
        ("no: 1", "no: a key has to be text: quote it, 'no'"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_looks_comes_with_a_hint(config: Path, text: str, says: str) -> None:
    assert says in "\n".join(problems(config, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "projects: [{name: a, path: x}, {name: a, path: y}]",
            "projects.1.name: 'a' is the name of projects.0 already",
        ),
        ("projects: [{name: a, path: x}, {name: b, path: x}]", "projects.1.path: is projects.0 already"),
        ("projects: [{name: a}]", "projects.0: a project has a path or a url"),
        ("projects: [{name: a, path: x, url: 'h:x'}]", "projects.0: a project has a path or a url, not both"),
        (
            "projects: [{name: a, path: x, gates: [{name: t, run: x}, {name: t, run: y}]}]",
            "projects.0.gates.1.name: 't' is",
        ),
        ("executor: {type: codx}", "executor.type: no agent 'codx' (did you mean 'codex'?): there are claude-code,"),
        ("executor: {routes: [{use: nobody}]}", "executor.routes.0.use: no agent 'nobody': there are"),
        ("executor: {type: command}", "executor.type: of type command, which needs command.argv"),
        (
            "executor: {routes: [{use: p}], profiles: {p: {type: command}}}",
            "profiles.p.type: of type command, which needs",
        ),
        ("executor: {fallback: [codx]}", "executor.fallback.0: no agent 'codx' (did you mean 'codex'?)"),
        ("executor: {fallback: [command]}", "executor.fallback.0: of type command, which needs command.argv"),
        ("executor: {fallback: [codex, claude-code]}", "executor.fallback.1: 'claude-code' is asked before that"),
        ("executor: {fallback: [codex, codex]}", "executor.fallback.1: 'codex' is asked before that already"),
        ("executor: {routes: [{use: acp, fallback: [nobody]}]}", "executor.routes.0.fallback.0: no agent 'nobody'"),
        ("executor: {routes: [{use: acp, fallback: [acp]}]}", "executor.routes.0.fallback.0: 'acp' is asked before"),
        ("executor: {fallback: [external]}", "executor.fallback.0: 'external' runs nothing here"),
        ("executor: {profiles: {p: {type: external}}, fallback: [p]}", "executor.fallback.0: 'p' runs nothing here"),
        ("projects: [{name: a, path: x, executor: {fallback: [codx]}}]", "projects.0.executor.fallback.0: no agent"),
        ("executor: {settings: [a]}", "executor.settings: expected keys with values, got a list"),
        ("executor: {profiles: {p: {type: q}, q: {type: codex}}}", "executor.profiles.p.type: no agent 'q'"),
        ("executor: {profiles: {codex: {type: acp}}}", "executor.profiles.codex: 'codex' is a type;"),
        ("executor: {type: acp, acp: {argv: []}}", "executor.type: of type acp, which needs acp.argv"),
        ("projects: [{name: a, path: x, executor: {type: reviewr}}]", "projects.0.executor.type: no agent 'reviewr'"),
        ("notify: {telegram: [1]}", "notify.telegram: needs sources.telegram"),
    ],
)
def test_what_contradicts_itself_is_told_alone_and_among_others(config: Path, text: str, says: str) -> None:
    alone, among = problems(config, text), problems(config, f"{text}\nnope: 1\n")

    assert says in "\n".join(alone)
    assert among[: len(alone)] == alone
    assert "nope: unknown key" in among[-1]


def test_a_plug_in_is_known_by_its_entry_point(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "plug-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pilot.backends]\nmy-agent = plug:make\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert loaded(config, "executor: {type: my-agent}").settings.executor.type == "my-agent"
    assert "(did you mean 'my-agent'?)" in problem(config, "executor: {type: my-agnet}")


def test_variables_that_are_not_set_are_told_all_at_once_and_nothing_else_about_them(config: Path) -> None:
    text = "server: {port: '${A}', host: '${B}:${C}'}\nexecutor: {type: '${D}', routes: [{use: '${E}'}]}\n"

    told = problems(config, text, A="")[1:]  # A is set, and is no port

    assert [line.split(": ", 2)[1] for line in told] == ["server.host"] * 2 + ["executor.type", "executor.routes.0.use"]
    assert "the variable B is not set: set it in the environment or in " in told[0]
    assert "/.env, or write ${B:-default}" in told[0]


def test_a_variable_may_stand_for_more_than_text(config: Path) -> None:
    text = """
        server: {port: "${PORT}", public_url: "${URL:-}", callbacks: {allow_private: "${P:-yes}"}}
        dispatcher: {lease: "${LEASE:-2m}"}
        sources:
          github: {token: "${TOKEN}", webhook_secret: "${HOOK:-}"}
          telegram: {token: t, allowed_users: ["${U}"]}
    """
    settings = loaded(config, text, PORT="0", TOKEN="0123", U="-7").settings

    assert settings.server.port == 0
    assert settings.server.public_url is None
    assert settings.server.callbacks.allow_private is True
    assert settings.dispatcher.lease == 120
    assert settings.sources.github is not None
    assert settings.sources.github.token is not None
    assert settings.sources.github.token.get_secret_value() == "0123"
    assert settings.sources.github.webhook_secret is None
    assert settings.sources.telegram is not None
    assert settings.sources.telegram.allowed_users == (-7,)


def test_variables_are_put_into_scalars_only_after_the_file_is_read(config: Path) -> None:
    settings = loaded(
        config,
        "projects: [{name: a, path: x, setup: ['${A}', '$$${A}', '$A $(x) $$', '$${A}']}]\n",
        A="], name: evil, x: [",
    ).settings

    assert settings.projects[0].setup == ("], name: evil, x: [", "$], name: evil, x: [", "$A $(x) $", "${A}")


def test_a_variable_without_quotes_in_braces_is_no_yaml_and_gets_a_hint(config: Path) -> None:
    assert "(in { } or [ ], a ${…} needs quotes)" in problem(config, "budget: {per_day_usd: ${A}}", A="1")


@pytest.mark.parametrize("reference", ["${}", "${1A}", "${A-b}", "${A:?b}", "${#A}", "${A%.x}", "${A"])
def test_what_is_no_reference_of_ours_is_told_and_how_a_shell_gets_it(config: Path, reference: str) -> None:
    text = f"projects: [{{name: a, path: x, setup: ['{reference}']}}]"

    assert "is not ${NAME} or ${NAME:-default}; for a shell write $$" in problem(config, text, A="1")


def test_values_of_variables_are_in_no_message(config: Path) -> None:
    text = "server: {port: '${S}', public_url: '${S}'}\nexecutor: {sandbox: '${S}', type: '${S}'}\nstore: '${S}'\n"

    told = "\n".join(problems(config, text, S=CANARY))

    assert "server.port: expected a whole number, got what ${S} stands for" in told
    assert CANARY not in told


def in_the_file(found: Loaded) -> list[str]:
    """Warnings about what the file says, not about what comes to nothing."""
    return [line for line in found.warnings if line not in tuple(idle(found.settings))]


def test_secrets_are_in_no_text_of_settings_warnings_or_errors(config: Path) -> None:
    text = f"""\
        store: postgresql://u:{CANARY}@h/d
        server: {{callbacks: {{secret: {CANARY}}}}}
        sources:
          github: {{token: {CANARY}, webhook_secret: {CANARY}}}
          telegram: {{token: {CANARY}, allowed_users: [1]}}
        notify: {{webhook: ["https://hooks.h/services/{CANARY}", "http://h:9/?key={CANARY}", "https://h/"]}}
        executor: {{environment: {{set: {{API_KEY: {CANARY}, CI: "1"}}}}}}
        projects:
          - {{name: a, url: "https://{CANARY}@h/x.git"}}
          - {{name: b, url: "https://u:{CANARY}@h/y.git", executor: {{environment: {{set: {{TOKEN: {CANARY}}}}}}}}}
    """
    found = loaded(config, text)

    shown = yaml.safe_dump(mask(found.settings))
    assert CANARY not in shown
    assert "postgresql://***@h/d" in shown
    assert "https://***@h/x.git" in shown
    assert mask(found.settings)["notify"]["webhook"] == ["https://hooks.h/***", "http://h:9/***", "https://h/"]
    assert CANARY not in repr(found.settings.sources) + repr(found.settings.executor) + repr(found.settings.server)
    assert CANARY not in "\n".join(found.warnings)
    assert [line.split(": ", 2)[1] for line in in_the_file(found)] == [
        "store",
        "server.callbacks.secret",
        "sources.github.token",
        "sources.github.webhook_secret",
        "sources.telegram.token",
        "executor.environment.set.API_KEY",
        "projects.1.url",
        "projects.1.executor.environment.set.TOKEN",
    ]
    wrong = "\n".join(problems(config, text.replace("telegram: {token:", "telegram: {tokn:") + "\n        server: 1\n"))
    assert CANARY not in wrong


def test_secrets_from_variables_are_not_warned_of(config: Path) -> None:
    assert in_the_file(loaded(config, "sources: {github: {token: '${T}'}}", T="x")) == []


def test_a_secret_that_is_empty_is_none(config: Path) -> None:
    assert "sources.github.token: is empty: it needs a value" in problem(
        config, "sources: {github: {token: '${T}'}}", T=""
    )
    found = loaded(config, "sources: {github: {token: x, webhook_secret: '${T}'}}", T="").settings.sources.github
    assert found is not None
    assert found.webhook_secret is None


def test_a_webhooks_secret_may_be_two_while_one_is_changed(config: Path) -> None:
    text = "sources: {github: {token: '${T}', webhook_secret: SECRET}}"
    for said, secrets in (("'${A}'", ["1"]), ("['${A}', '${B}']", ["1", "2"])):
        found = loaded(config, text.replace("SECRET", said), T="x", A="1", B="2")
        assert found.settings.sources.github is not None
        assert [s.get_secret_value() for s in found.settings.sources.github.webhook_secret or ()] == secrets
        assert in_the_file(found) == []
        assert mask(found.settings)["sources"]["github"]["webhook_secret"] == ["***"] * len(secrets)
    assert "webhook_secret" in problem(config, text.replace("SECRET", "[a, b, c]"), T="x")
    assert "webhook_secret: must not be empty" in problem(config, text.replace("SECRET", "[]"), T="x")
    assert "webhook_secret: must not be empty" in problem(config, text.replace("SECRET", "''"), T="x")
    assert "(quote it)" in problem(config, text.replace("SECRET", "12"), T="x")
    assert in_the_file(loaded(config, text.replace("SECRET", f"[{CANARY}, '${{A}}']"), T="x", A="1")) != []


def test_labels_are_named_after_the_one_that_asks(config: Path) -> None:
    text = "sources: {github: {token: '${T}', label: Robot, labels: {done: finished}}}"
    github = loaded(config, text, T="x").settings.sources.github

    assert github is not None
    shown = github.shown()
    assert (shown.running, shown.done, shown.failed) == ("Robot:running", "finished", "Robot:failed")
    assert shown.needs_human == "Robot:needs-human"


PULLS = "sources: {github: {token: '${T}'}}\nprojects: [{name: a, path: /a, github: o/r, next_after: merged%s}]"


def test_what_waits_for_pull_requests_needs_them(config: Path) -> None:
    assert loaded(config, PULLS % "", T="x").settings.projects[0].next_after == "merged"
    assert "next_after: waits for pull requests, which need publish: pull_request" in problem(
        config, PULLS % ", publish: branch", T="x"
    )
    assert "need the project's `github: owner/repo` and sources.github" in problem(
        config, "projects: [{name: a, path: /a, max_open_prs: 2}]"
    )
    assert loaded(config, "projects: [{name: a, path: /a, next_after: finish}]").warnings == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("projects: [{name: a, path: /a, github: o/a}]", "no pull requests without sources.github"),
        ("sources: {github: {token: '${T}'}}", "sources.github: no project says"),
        ("sources: {linear: {api_key: '${T}'}}", "sources.linear: no project says"),
        ("sources: {todo_scan: {}}\nprojects: [{name: a, url: 'https://h/x.git'}]", "no project has a path"),
    ],
    ids=["pull requests", "github", "linear", "todo_scan"],
)
def test_what_comes_to_nothing_is_said(config: Path, text: str, words: str) -> None:
    (warning,) = loaded(config, text, T="x").warnings
    assert words in warning


def test_a_route_for_a_project_that_is_not_here_is_warned_of(config: Path) -> None:
    text = "executor: {routes: [{use: codex, match: {project: ap}}]}\nprojects: [{name: api, path: x}]"

    assert loaded(config, text).warnings == (
        "pilot.yaml:1:42: executor.routes.0.match.project: no project of this file is named 'ap' (did you mean 'api'?)",
    )


def test_paths_start_at_the_file_or_at_home(config: Path) -> None:
    text = (
        "projects: [{name: a, path: ~/a}, {name: b, path: b}, {name: c, path: /c}, {name: d, path: '~nobody-here/d'}]"
    )

    paths = [project.path for project in loaded(config, text).settings.projects]

    assert paths == [Path("/home/x/a"), config.parent / "b", Path("/c"), config.parent / "~nobody-here/d"]


def test_merged_mappings_serve_many_projects_and_keep_their_lines(config: Path) -> None:
    text = (
        "projects:\n- &a {name: a, path: x, draft: false}\n- {<<: *a, name: b, path: y}\n- {<<: *a, name: c, pth: z}\n"
    )

    told = problems(config, text)
    assert told[0].startswith("pilot.yaml:2:16: projects.2.path: is projects.0 already")
    assert told[1].startswith("pilot.yaml:4:21: projects.2.pth: unknown key (did you mean 'path'?)")
    assert loaded(config, text.replace("pth", "path")).settings.projects[2].draft is False


def test_the_shown_settings_can_be_read_again_and_are_the_same(config: Path) -> None:
    text = """
        dispatcher: {lease: 90s, poll_interval: 250ms}
        executor:
          type: reviewer
          profiles: {reviewer: {type: command, command: {argv: [x]}, timeout: 5m}}
          routes: [{match: {kind: test, labels: [a]}, use: codex}]
        projects: [{name: a, path: /x, executor: {claude-code: {model: null}}, linear: {team: ENG}}]
        retry: {network: {max: null, backoff: 1s}, unknown: {parks: for_a_person, last: needs_human}}
        budget: {per_day_usd: 5}
    """
    first = loaded(config, text).settings
    again = loaded(config, yaml.safe_dump(mask(first))).settings

    assert mask(again) == mask(first)
    assert again.retry_rules() == first.retry_rules()
    assert again.executor_for(again.projects[0]) == first.executor_for(first.projects[0])
    assert again.executor.resolve("reviewer") == first.executor.resolve("reviewer")


def test_a_project_among_thousands_is_small(config: Path) -> None:
    projects = "".join(
        f"- {{name: p{i}, path: ~/src/p{i}, base: main, github: acme/p{i}, executor: {{type: opencode}},"
        f" gates: [{{name: test, run: make test, timeout: 5m}}]}}\n"
        for i in range(2_000)
    )
    loaded(config, "")  # what is made once
    gc.collect()
    tracemalloc.start()
    try:
        settings = loaded(config, f"projects:\n{projects}").settings
        gc.collect()
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(settings.projects) == 2_000
    assert now / 2_000 < 6 * 1024


def test_what_a_plug_in_is_told_is_plain_and_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "pilot.yaml"
    path.write_text(
        'executor:\n  settings: {words: [a, {b: 1}], oct: 010, api_key: "$${x}", deep: {token: t0p}}\n'
        "  profiles: {other: {type: codex, settings: {words: c}}}\n"
    )
    found = load(path, {"HOME": str(tmp_path)})
    settings = found.settings.executor.settings

    assert dict(settings) == {
        "words": ["a", {"b": 1}], "oct": "010", "api_key": "${x}", "deep": {"token": "t0p"},
    }  # fmt: skip
    assert type(settings["words"]) is list
    assert type(settings["deep"]) is dict
    # a profile's keys lie over the executor's
    assert found.settings.executor.resolve("other").settings["words"] == "c"
    assert found.settings.executor.resolve("other").settings["deep"] == {"token": "t0p"}
    # what may be a secret is not shown, and better not written there
    shown = mask(found.settings)["executor"]["settings"]
    assert (shown["api_key"], shown["deep"], shown["words"]) == (MASK, {"token": MASK}, ["a", {"b": 1}])
    assert "t0p" not in repr(found.settings)
    assert [line for line in found.warnings if "executor.settings.deep.token: a secret stands in the file" in line]
