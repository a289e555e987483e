"""An agent made with the protocol's official library, for tests: `python acp_agent.py BEHAVIOUR`.

What it hears from its client that is worth knowing it writes into `heard` in its working directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import acp
from acp import schema

BEHAVIOUR = sys.argv[1]


def note(**facts: object) -> None:
    """Another line in `heard`."""
    with Path("heard").open("a") as file:
        file.write(json.dumps(facts, default=str) + "\n")


class Agent:
    """Answers as its behaviour says."""

    def on_connect(self, conn: Any) -> None:
        self.client = conn

    async def initialize(self, protocol_version: int, **more: Any) -> acp.InitializeResponse:
        if BEHAVIOUR == "silent":
            await asyncio.sleep(600)
        if BEHAVIOUR == "unwilling":
            raise acp.RequestError(-32603, "Internal error", {"details": "no settings found"})
        note(client=more.get("client_info"))
        methods: list[Any] = []
        if BEHAVIOUR.startswith("login"):
            methods = [schema.EnvVarAuthMethod(
                type="env_var", id="key", name="By key", vars=[schema.AuthEnvVar(name="SOME_KEY")]
            )]  # fmt: skip
        return acp.InitializeResponse(
            protocol_version=2 if BEHAVIOUR == "newer" else protocol_version,
            agent_capabilities=schema.AgentCapabilities(load_session=BEHAVIOUR == "replays"),
            auth_methods=methods,
        )

    async def authenticate(self, method_id: str, **more: Any) -> Any:
        note(way=method_id)
        self.entered = True
        return acp.AuthenticateResponse()

    async def new_session(self, cwd: str, **more: Any) -> acp.NewSessionResponse:
        if BEHAVIOUR.startswith("login") and not hasattr(self, "entered"):
            raise acp.RequestError(-32000, "Authentication required")
        note(cwd=cwd)
        return acp.NewSessionResponse(session_id="ses-1")

    async def load_session(self, session_id: str, **more: Any) -> acp.LoadSessionResponse:
        await self._say("old words\n")
        self.rest = asyncio.ensure_future(self._replays_on())
        return acp.LoadSessionResponse()

    async def _replays_on(self) -> None:
        """Some agents tell the conversation on when they have answered."""
        await asyncio.sleep(0.1)
        await self._say("older question?")

    async def prompt(self, prompt: list[Any], session_id: str, **more: Any) -> acp.PromptResponse:
        note(prompt=len(prompt[0].text))
        match BEHAVIOUR:
            case "replays":
                await self.rest
            case "asks":
                await self._asks(session_id)
            case "dies":
                sys.stderr.write("Error: connect ECONNREFUSED 127.0.0.1:9\n")
                sys.stderr.flush()
                os._exit(1)
            case "waits":
                await self._say("I wait.")
                self.over = asyncio.Event()
                await self.over.wait()
                return acp.PromptResponse(stop_reason="cancelled")
        await self._say("Done.")
        return acp.PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id: str, **more: Any) -> None:
        note(cancel=session_id)
        self.over.set()

    async def _asks(self, session_id: str) -> None:
        """Everything that a client may be asked."""
        call = schema.ToolCallUpdate(tool_call_id="1", title="push", kind="execute")
        options = [
            schema.PermissionOption(option_id="y", name="Yes", kind="allow_once"),
            schema.PermissionOption(option_id="n", name="No", kind="reject_once"),
        ]
        answer = await self.client.request_permission(session_id=session_id, tool_call=call, options=options)
        note(permission=answer.outcome.model_dump())
        for asked in (
            self.client.read_text_file(session_id=session_id, path="/etc/passwd"),
            self.client.write_text_file(session_id=session_id, path="/tmp/x", content="x"),
            self.client.create_terminal(session_id=session_id, command="id"),
            self.client.ext_method("new/thing", {}),
        ):
            try:
                await asked
                note(answered=True)
            except acp.RequestError as error:
                note(code=error.code)
        await self.client.ext_notification("new/news", {})

    async def _say(self, words: str) -> None:
        await self.client.session_update(session_id="ses-1", update=acp.update_agent_message_text(words))


if __name__ == "__main__":
    only_what_is_needed: Any = Agent()
    asyncio.run(acp.run_agent(only_what_is_needed))
