"""What has to be kept out of everything that is shown."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from pilot.config.schema import Settings
from pilot.config.secrets import secrets_of


def test_every_secret_of_the_settings_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN KEY-----\n")
    settings = Settings.model_validate(
        {
            "store": "postgresql://u:in%20store@h/d",
            "server": {"callbacks": {"secret": SecretStr("callback")}},
            "sources": {
                "github": {
                    "app": {"id": 1, "installation": 2, "private_key_file": key},
                    "webhook_secret": ["new", "old"],
                },
                "linear": {"api_key": SecretStr("linear"), "webhook_secret": "one"},
                "telegram": {"token": SecretStr("telegram"), "allowed_users": [1]},
            },
            "executor": {
                "environment": {"set": {"API_KEY": SecretStr("api key"), "CI": SecretStr("1")}},
                "profiles": {"x": {"type": "codex", "environment": {"set": {"TOKEN": SecretStr("of a profile")}}}},
                "settings": {"password": "of a plug-in", "size": "5"},
            },
            "notify": {
                "webhook": ["https://u:of-hook@h/in", "https://h/services/T00000000/B00000000", "http://localhost:8000"]
            },
            "projects": [
                {"name": "a", "url": "https://token-of-url@h/x.git"},
                {"name": "b", "path": "/b", "executor": {"environment": {"set": {"MY_SECRET": SecretStr("own")}}}},
            ],
        }
    )

    assert secrets_of(settings) == {
        "in%20store", "in store", "callback", "-----BEGIN KEY-----", "new", "old", "linear", "one", "telegram",
        "api key", "of a profile", "of a plug-in", "token-of-url", "own",
        "of-hook", "https://h/services/T00000000/B00000000",
    }  # fmt: skip


def test_defaults_have_none() -> None:
    assert secrets_of(Settings()) == frozenset()
