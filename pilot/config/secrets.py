"""Every secret that settings hold, for whoever has to keep them out of what is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from pilot.config.fields import SECRET_NAME, Section
from pilot.config.schema import Settings

_GUESSED = 16
"""Characters of path and query: shorter ones anybody may guess, and write."""


def secrets_of(settings: Settings) -> frozenset[str]:
    """Their values; of an agent's environment those whose names say so; the passwords in addresses, and addresses
    that are passwords: whoever knows a webhook's may post there.
    """
    found = {*_of(settings), *_password(settings.store)}
    for project in settings.projects:
        found |= {*_password(project.url or "")}
    for url in settings.notify.webhook:
        found |= {*_password(url), *_capability(url)}
    github = settings.sources.github
    if github is not None and github.app is not None and github.app.private_key_file is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # whoever uses it says so
            found.add(github.app.private_key_file.read_text().strip())
    return frozenset(found - {""})


def _of(value: object) -> Iterator[str]:
    if isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _of(getattr(value, name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if SECRET_NAME.search(str(key)) and isinstance(one, (str, SecretStr)):
                yield one if isinstance(one, str) else one.get_secret_value()
            elif not isinstance(one, SecretStr):  # not `set: {CI: "1"}`
                yield from _of(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _of(one)
    elif isinstance(value, SecretStr):
        yield value.get_secret_value()


def _capability(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if len(parts.path + parts.query) >= _GUESSED:
        yield url


def _password(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        said = parts.password or (parts.username if parts.scheme in ("http", "https") else None)
    except ValueError:
        return
    if said:
        yield said
        yield unquote(said)
