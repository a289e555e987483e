"""Webhooks of GitHub and Linear: is this really from them, and not a copy of an old one?

Only the body is signed. What stands in headers (the id of the delivery, the event's name) anybody could have changed
on a body that they once saw, so `digest` is a second key to know a delivery by, and what a webhook says is to be looked
up at the vendor before it counts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.store import wall_clock

LIMIT = 5 << 20
"""Bytes of a body. A server should stop reading there."""
WINDOW = 60_000
"""Milliseconds that Linear's time of sending may be off, either way; GitHub's webhooks have no time."""

_ID = re.compile(r"[A-Za-z0-9-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")


class NotAccepted(Exception):
    """A webhook that must not be acted upon; `status` is the HTTP status to answer with. Texts are safe to show."""

    status = 400


class Malformed(NotAccepted):
    """It lacks what every webhook has. 400."""


class TooLarge(NotAccepted):
    """The body is longer than `LIMIT`. 413."""

    status = 413


class Untrusted(NotAccepted):
    """Somebody else's signature, or a time outside the window. 401."""

    status = 401


@dataclass(frozen=True, slots=True)
class Delivery:
    """One genuine webhook. `event` is GitHub's name ("issues") or Linear's type ("Issue"), `id` the vendor's for it."""

    id: str
    event: str
    action: str
    digest: str
    payload: Mapping[str, Any]


class GitHubWebhook:
    """Verifies with any of the `secrets`, so that one can be changed for another while both are in use."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = _checked(secrets)

    def delivery(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """The delivery. Header names are lower case. Raises `NotAccepted`."""
        signature = headers.get("x-hub-signature-256")
        _verify(self._secrets, body, signature, prefix="sha256=")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Malformed("set the webhook's content type to application/json")
        delivery, event = headers.get("x-github-delivery", ""), headers.get("x-github-event", "")
        if not _ID.fullmatch(delivery) or not _NAME.fullmatch(event):
            raise Malformed("X-GitHub-Delivery or X-GitHub-Event is missing")
        return _delivery(delivery, event, body, _object(body))


class LinearWebhook:
    """The rules of Linear's own SDK, in its order; of the secrets any will do."""

    def __init__(self, secrets: Sequence[str], *, clock: Callable[[], int] = wall_clock) -> None:
        self._secrets = _checked(secrets)
        self._clock = clock

    def delivery(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """The delivery. Header names are lower case. Raises `NotAccepted`."""
        _verify(self._secrets, body, headers.get("linear-signature"), prefix="")
        payload = _object(body)
        sent = payload.get("webhookTimestamp")  # the header Linear-Timestamp is not signed
        if isinstance(sent, bool) or not isinstance(sent, int | float) or not math.isfinite(sent):
            raise Malformed("webhookTimestamp is missing or no number")
        if abs(self._clock() - sent) > WINDOW:
            raise Untrusted("it was sent too long ago, or the clocks differ by more than a minute")
        digest = hashlib.sha256(body).hexdigest()
        delivery = headers.get("linear-delivery", "")
        return _delivery(delivery if _ID.fullmatch(delivery) else digest, str(payload.get("type", "")), body, payload)


def _checked(secrets: Sequence[str]) -> tuple[bytes, ...]:
    if not secrets or not all(secrets):
        raise ValueError("a webhook without a secret would take anybody's word")
    return tuple(secret.encode() for secret in secrets)


def _verify(secrets: Sequence[bytes], body: bytes, signature: str | None, *, prefix: str) -> None:
    if not signature:
        raise Malformed("it has no signature; is a secret set where the webhook is?")
    if len(body) > LIMIT:
        raise TooLarge(f"the body is longer than {LIMIT >> 20} MiB")
    given = signature.encode(errors="replace")
    wanted = [f"{prefix}{hmac.new(secret, body, hashlib.sha256).hexdigest()}".encode() for secret in secrets]
    # all of them each time, so that the time taken does not tell which is in use
    if not any([hmac.compare_digest(given, each) for each in wanted]):  # noqa: C419
        raise Untrusted("the signature is wrong; is it the same secret on both sides?")


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        payload = json.loads(body.decode(errors="replace"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Malformed("the body is no JSON") from None
    if not isinstance(payload, dict):
        raise Malformed("the body is no JSON object")
    return payload


def _no_constant(name: str) -> float:
    """Python's NaN and Infinity are no JSON."""
    raise ValueError(name)


def _delivery(delivery: str, event: str, body: bytes, payload: Mapping[str, Any]) -> Delivery:
    action = payload.get("action")
    return Delivery(
        delivery, event, action if isinstance(action, str) else "", hashlib.sha256(body).hexdigest(), payload
    )
