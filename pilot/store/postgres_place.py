"""Where a PostgreSQL store is, and what of that may be shown."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pilot.domain.errors import UsageError


class Place:
    """Where a store is. `name` is what may be shown."""

    def __init__(self, url: str) -> None:
        try:
            given = conninfo_to_dict(url)
            ports = str(given.get("port") or "1").split(",")
            if not all(port.isdecimal() for port in ports if port) or any(
                "@" in str(given.get(word) or "") for word in ("host", "dbname")
            ):
                raise psycopg.ProgrammingError  # what stands there may be meant as a password
        except psycopg.Error:
            # not with what libpq says: it quotes what it did not understand, which may be part of a password
            raise UsageError(
                "the store's URL is no postgresql:// URL as PostgreSQL understands it: in a user or a password, write "
                "%40 for @, %3A for :, %2F for / and %25 for %; behind a ? are only libpq's own parameters"
            ) from None
        user, host = given.get("user"), given.get("host") or given.get("hostaddr") or ""
        port, name = given.get("port"), given.get("dbname") or ""
        self.name = f"postgresql://{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}/{name}"
        self._secrets = [str(given[word]) for word in ("password", "sslpassword", "passfile") if given.get(word)]
        own: dict[str, str | int] = {
            "application_name": "pilot", "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5,
            "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 6000, "client_encoding": "utf8",
        }  # fmt: skip
        self.conninfo = make_conninfo(url, **{key: value for key, value in own.items() if key not in given})

    def said(self, text: str) -> str:
        """A message without anything secret."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
