"""The composition root: settings → concrete objects → one loop. Only here are concrete classes named together.

`context` puts the objects together, `serve` and `direct` are the two ways to run them.
"""

from pilot.app.context import Context, enqueue, open_context
from pilot.app.direct import DirectRequest, run_direct
from pilot.app.serve import serve

__all__ = ["Context", "DirectRequest", "enqueue", "open_context", "run_direct", "serve"]
