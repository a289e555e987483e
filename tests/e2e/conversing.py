"""A pilot whose agent is the real Claude Code CLI, and whose model goes by a script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.claude import claude_binary
from tests.e2e.daemon import Home
from tests.e2e.model_server import ModelServer, Request, Turn, text, tool


def write(name: str, content: str = "hi", **more: Any) -> Turn:
    """The agent writes a file of its checkout."""
    return {**tool("Write", file_path=f"${{cwd}}/{name}", content=content), **more}


def bash(command: str) -> Turn:
    """The agent runs a command in its checkout."""
    return tool("Bash", command=command)


def asks(question: str, *options: str) -> Turn:
    """The agent ends with a question."""
    block = json.dumps({"question": question, "options": options, "default": None})
    return text(f"I can't decide this.\n\n```pilot-question\n{block}\n```\n")


def conversing(home: Home, scripts: Mapping[str, Sequence[Turn]], **claude: Any) -> ModelServer:
    """A model that knows what to say to each task id; `home` uses it, with these settings of claude-code."""
    model = ModelServer({"scripts": [{"when": task_id, "turns": turns} for task_id, turns in scripts.items()]})
    home.environment |= {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "dummy"}
    own = {"command": claude_binary(), **claude}
    home.configure(executor={**home.settings["executor"], "type": "claude-code", "claude-code": own})
    return model


def heard(request: Request) -> str:
    """Everything that the model was told in a request: the conversation, oldest first, as one text."""
    parts: list[str] = []
    for message in request.body["messages"]:
        content = message["content"]
        for block in [{"text": content}] if isinstance(content, str) else content:
            parts.append(str(block.get("text") or block.get("content") or json.dumps(block)))
    return "\n".join(parts)
