"""Requests to GitHub, one after the other, over PyGithub in a thread of its own.

PyGithub gives the connection, the logins and the renewal of an App's tokens. Its requests are made one by one, its own
waiting and repeating is off (it sleeps in the thread, and repeats writes), and its objects are left alone: they ask for
more than they were told to, and hide 304 and 307.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pilot.clients.github_errors import GitHubError, NotFound, RateLimited, Unavailable, refusal
from pilot.clients.github_login import Login, requesters
from pilot.clients.github_values import Rate, rate
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from github.Requester import Requester

TIMEOUT = 15
"""Seconds without a byte after which the thread gives a request up."""
DEADLINE = 60.0
"""Seconds after which nobody waits for an answer any more, though it may still trickle in."""
PAGES = 100
"""Pages of one list that are read at most; a list that is cut would be taken for a whole one."""
PAGE = 100
"""Items of a page, GitHub's most."""

T = TypeVar("T")

_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
_GRAPHQL = "/graphql"
_STATUS = {"NOT_FOUND": 404, "FORBIDDEN": 403, "RATE_LIMITED": 429, "RATE_LIMIT": 429}
_LINKS = re.compile(r'<([^>]*)>\s*;\s*rel="(\w+)"')


@dataclass(frozen=True, slots=True)
class Answer:
    """What GitHub said. Header names are lower case; `data` is None for an empty body."""

    status: int
    headers: Mapping[str, str]
    data: Any

    def link(self, relation: str) -> str | None:
        """The address of another page: "next", "prev", "last"."""
        return next((url for url, rel in _LINKS.findall(self.headers.get("link", "")) if rel == relation), None)


class Wire:
    """The way to GitHub for one login. All requests are in line; after a rate limit none leaves before it is over."""

    def __init__(
        self,
        login: Login,
        *,
        base_url: str,
        clock: Callable[[], int],
        spacing: float,
        waits: Sequence[float],
    ) -> None:
        self._login = login
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._spacing = spacing
        self._waits = tuple(waits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="github")
        self._made: tuple[Requester, Requester | None] | None = None  # only the thread touches it
        self._turn = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._next_write = 0.0
        self._paused_until = 0
        self._rate = Rate()

    @property
    def rate(self) -> Rate:
        """What the last answers said of the rate limit."""
        return replace(self._rate, paused_until=self._paused_until)

    @property
    def plain_http(self) -> bool:
        """The configured server is spoken to without TLS."""
        return self._base_url.startswith("http://")

    async def aclose(self) -> None:
        """Let go of the connection, behind a request that is under way. Requests that wait in line are dropped."""
        try:
            async with asyncio.timeout(TIMEOUT + 1):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        except TimeoutError:
            pass  # an answer that trickles in: the thread ends with it
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def token(self) -> str:
        """The token of the moment, for git; an App's is good for most of an hour. A rate limit does not matter here."""

        def current() -> str:
            auth = self._requesters()[0].auth
            return "" if auth is None else auth.token

        return await self._in_thread("token", current, held_back=False)

    async def get(
        self, path: str, parameters: Mapping[str, Any] | None = None, *, etag: str | None = None, as_app: bool = False
    ) -> Answer:
        """Read; broken connections and 5xx are tried again a few times. With `etag` the answer may be a 304."""
        return await self._patiently(lambda: self._once("GET", path, parameters, etag=etag, as_app=as_app))

    async def query(self, document: str, variables: Mapping[str, Any]) -> Any:
        """Read by GraphQL, for what REST doesn't tell: the answer's `data`. Tried again like `get`."""
        body = {"query": document, "variables": dict(variables)}
        answer = await self._patiently(lambda: self._once("POST", _GRAPHQL, None, body=body))
        data = answer.data if isinstance(answer.data, dict) else {}
        if errors := data.get("errors"):
            first = errors[0] if isinstance(errors, list) and isinstance(errors[0], dict) else {}
            status = _STATUS.get(str(first.get("type")), 422)
            said = {"message": str(first.get("message", ""))}
            raise self._limited(refusal(f"POST {_GRAPHQL}", status, answer.headers, said, self._clock()))
        return data.get("data")

    async def write(self, method: str, path: str, body: Any = None) -> Answer:
        """Change something; sent once, at a distance from the write before. Moved for good: sent to where it went."""
        async with self._writing:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next_write - loop.time())
            try:
                answer = await self._once(method, path, None, body=body)
                if answer.status in (307, 308):  # nothing was done yet; PyGithub takes this for success
                    answer = await self._once(method, self._local(answer.headers.get("location", "")), None, body=body)
            finally:
                self._next_write = loop.time() + self._spacing
        if answer.status >= 300:
            raise Unavailable(f"{method} {path}: GitHub sends from one place to another (HTTP {answer.status})")
        return answer

    async def follow(self, url: str) -> Answer:
        """Read the page that a link names."""
        return await self.get(self._local(url))

    async def pages(
        self,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        first: Answer | None = None,
        relation: str = "next",
    ) -> AsyncIterator[Answer]:
        """All pages of a list, by the links that GitHub gives. `first`: the first page, if it was read already."""
        page = first or await self.get(path, {**(parameters or {}), "per_page": PAGE})
        for _ in range(PAGES):
            yield page
            following = page.link(relation)
            if following is None:
                return
            page = await self.follow(following)
        raise Unavailable(f"GET {path}: more than {PAGES} pages")

    async def items(
        self, path: str, parameters: Mapping[str, Any] | None = None, *, under: str | None = None
    ) -> list[Any]:
        """All items of a list; `under`: the field that holds them, where a page is an object."""
        found: list[Any] = []
        async for page in self.pages(path, parameters):
            found += listed(path, page.data, under)
        return found

    def _local(self, url: str) -> str:
        """The path of an address that GitHub gave; it must be one of the same server's API."""
        if not url.startswith(f"{self._base_url}/"):
            raise Unavailable(f"GitHub sends to another server than {self._base_url}: {one_line(url, 80)}")
        return url.removeprefix(self._base_url)

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        for wait in self._waits:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(wait)
        return await ask()

    async def _once(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, Any] | None,
        *,
        body: Any = None,
        etag: str | None = None,
        as_app: bool = False,
    ) -> Answer:
        call = f"{method} {urlsplit(path).path}"
        headers = {"Accept": "application/vnd.github+json"} | ({} if etag is None else {"If-None-Match": etag})

        def send() -> Answer:
            account, app = self._requesters()
            requester = app if as_app and app is not None else account
            where = requester.graphql_url if path == _GRAPHQL else path
            status, got, text = requester.requestJson(method, where, dict(parameters or {}), headers, body)
            return Answer(status, got, _parsed(status, text))

        answer = await self._in_thread(call, send)
        self._note(answer)
        if answer.status >= 400:
            raise self._limited(refusal(call, answer.status, answer.headers, answer.data, self._clock()))
        return answer

    async def _in_thread(self, call: str, work: Callable[[], T], *, held_back: bool = True) -> T:
        """Have the thread do it, in turn; its time starts when its turn comes."""

        def translated() -> T:
            with _in_our_words(call, self._clock):
                return work()

        async with self._turn:
            if held_back and self._clock() < self._paused_until:
                raise RateLimited(f"{call}: held back until GitHub's rate limit is over", self._paused_until)
            try:
                async with asyncio.timeout(DEADLINE):
                    return await asyncio.get_running_loop().run_in_executor(self._thread, translated)
            except TimeoutError:
                raise Unavailable(f"{call}: no whole answer within {DEADLINE:.0f} s") from None
            except GitHubError as error:
                raise self._limited(error) from error.__cause__

    def _limited(self, error: GitHubError) -> GitHubError:
        if isinstance(error, RateLimited):
            self._paused_until = max(self._paused_until, error.until)
        return error

    def _note(self, answer: Answer) -> None:
        if answer.headers.get("x-ratelimit-resource", "core") == "core":
            self._rate = rate(answer.headers) or self._rate

    def _requesters(self) -> tuple[Requester, Requester | None]:
        if self._made is None:
            self._made = requesters(self._login, base_url=self._base_url, timeout=TIMEOUT)
        return self._made

    def _close(self) -> None:
        for requester in self._made or ():
            if requester is not None:
                requester.close()


def path_of(repo: str) -> str:
    """A repository's path. Refuses what would be another path: names come from settings and from webhooks."""
    if not _REPOSITORY.fullmatch(repo) or {".", ".."} & set(repo.split("/")):
        raise NotFound(f"{repo[:100]!r} is no repository's name, owner/name")
    return f"/repos/{repo}"


def listed(path: str, data: Any, under: str | None = None) -> list[Any]:
    """The items of one page."""
    items = data.get(under) if under is not None and isinstance(data, dict) else data
    if not isinstance(items, list):
        raise Unavailable(f"GET {path}: GitHub's answer is no list")
    return items


def _parsed(status: int, text: str) -> Any:
    if not text or 300 <= status < 400:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if status < 400:
            raise
        return None  # a page of a proxy's; the status says enough


@contextmanager
def _in_our_words(call: str, clock: Callable[[], int]) -> Iterator[None]:
    """What PyGithub and the libraries under it raise, as this client's errors."""
    import requests
    from github import GithubException

    try:
        yield
    except GithubException as error:  # raised where PyGithub fetches an App's token
        raise refusal(
            f"{call}: token of the App's installation", error.status, error.headers or {}, error.data, clock()
        ) from error
    except requests.Timeout as error:
        raise Unavailable(f"{call}: no answer within {TIMEOUT} s") from error
    except requests.RequestException as error:
        raise Unavailable(f"{call}: {one_line(str(error) or type(error).__name__, 300)}") from error
    except (AssertionError, RuntimeError) as error:  # PyGithub's refusal to be sent to another host
        raise Unavailable(f"{call}: GitHub sends to another server: {one_line(str(error))}") from error
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"{call}: GitHub's answer is no JSON") from error
