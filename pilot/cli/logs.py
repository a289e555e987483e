"""`pilot logs`: what an agent said and did, as it happens if wanted."""

from __future__ import annotations

import codecs
import time
from typing import TYPE_CHECKING

import click

from pilot.cli.arguments import id_argument
from pilot.cli.session import Session, known
from pilot.domain.text import for_terminal

if TYPE_CHECKING:
    from pilot.store.history import History, Piece

_EVERY = 0.2  # seconds between looks
_BATCH = 200
_PROTOCOL = "raw"
_QUIET = frozenset({"stderr", "result", "pilot"})


@click.command()
@id_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the execution has ended.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Only this attempt's.")
@click.option("--raw", is_flag=True, help="The bytes as the agent wrote them (not on a terminal).")
@click.option("--json", is_flag=True, help="One JSON document; with -f one a line.")
@click.pass_obj
def logs(session: Session, id: int, follow: bool, attempt: int | None, raw: bool, json: bool) -> None:
    """What an execution's agents wrote. Survives restarts of the daemon."""
    from pilot.store.glance import answer

    if session.server:
        _logs_there(session, id, attempt, follow=follow, raw=raw, json=json)
        return
    with session.history() as history:
        known(answer(history.execution(id)), id)
        if json and not follow:
            session.ui.document({"output": _all(history, id, attempt)})
            return
        printer = _Printer(session, raw=raw, json=json)
        after = (0, 0)
        while True:
            # The state first: what is written before an end is then still read after it.
            ended = not follow or known(answer(history.execution(id)), id).status.final
            pieces = answer(history.output(id, attempt=attempt, after=after, limit=_BATCH))
            for piece in pieces:
                printer.show(piece)
                after = (piece.attempt, piece.seq)
            if not pieces:
                if ended:
                    break
                session.ui.flush()
                time.sleep(_EVERY)
        printer.end()


def _logs_there(session: Session, id: int, attempt: int | None, *, follow: bool, raw: bool, json: bool) -> None:
    from pilot.cli import remote

    pages = remote.pages(session, id, attempt, follow=follow, every=_EVERY * 2)
    if json and not follow:
        session.ui.document({"output": [piece for page in pages for piece in page]})
        return
    printer = _Printer(session, raw=raw, json=json)
    for page in pages:
        for piece in page:
            printer.show(remote.piece_of(piece))
        session.ui.flush()
    printer.end()


def _all(history: History, id: int, attempt: int | None) -> list[dict[str, object]]:
    from pilot.store.documents import piece_document
    from pilot.store.glance import answer

    documents: list[dict[str, object]] = []
    after = (0, 0)
    while pieces := answer(history.output(id, attempt=attempt, after=after, limit=_BATCH)):
        documents += [piece_document(piece) for piece in pieces]
        after = (pieces[-1].attempt, pieces[-1].seq)
    return documents


class _Printer:
    """Shows pieces one after the other: a heading per attempt, and characters that were cut in two put together."""

    def __init__(self, session: Session, *, raw: bool, json: bool) -> None:
        self._ui = session.ui
        self._raw = raw
        self._json = json
        self._attempt = 0
        self._kind = ""
        self._at_start = True
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(self, piece: Piece) -> None:
        """The next piece."""
        from pilot.store.documents import piece_document

        if self._json:
            self._ui.document_line(piece_document(piece))
        elif self._raw:
            # A command's own words or the protocol; what pilot made of them is not raw.
            if piece.kind in ("stdout", "stderr", _PROTOCOL):
                self._ui.raw(piece.data)
        elif piece.kind != _PROTOCOL:
            self._turn(piece)
            self._text(piece)

    def _turn(self, piece: Piece) -> None:
        if piece.attempt == self._attempt and piece.kind == self._kind:
            return
        self.end()
        if piece.attempt != self._attempt:
            self._ui.line(f"── attempt {piece.attempt} ──", "dim")
        self._attempt, self._kind = piece.attempt, piece.kind

    def _text(self, piece: Piece) -> None:
        text = self._decoder.decode(piece.data)
        if piece.kind in ("stdout", "stderr"):
            self._put(text)
            return
        mark = {"tool": "▸ ", "pilot": "• ", "result": "  "}.get(piece.kind, "")
        for line in text.rstrip("\n").split("\n"):
            self._ui.line(mark + line, "dim" if piece.kind in _QUIET else "")

    def _put(self, text: str) -> None:
        shown = for_terminal(text)
        if shown:
            self._ui.text(shown)
            self._at_start = shown.endswith("\n")

    def end(self) -> None:
        """No line is left half said."""
        if self._json or self._raw:
            return
        self._put(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        if not self._at_start:
            self._ui.line()
        self._at_start = True
