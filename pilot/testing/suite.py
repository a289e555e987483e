"""What every backend promises, whatever agent it drives: the conformance suite of the `Backend` port.

A backend's test file has a class of this kind and says how its agent talks:

    class TestMine(BackendSuite):
        def backend(self, program: Path) -> Backend:
            return Mine(command=str(program))

        def says(self, text: bytes) -> bytes: ...

`program` is an executable that plays the agent: it follows a script of steps, in any protocol that can be
written down as bytes on standard output. What can be overridden stands in `stage.Talk`.
"""

from __future__ import annotations

from pilot.testing.endings import Endings
from pilot.testing.given import Given
from pilot.testing.outcomes import Outcomes
from pilot.testing.outputs import Outputs
from pilot.testing.sessions import Sessions
from pilot.testing.standing import Standing


class BackendSuite(Outcomes, Sessions, Endings, Outputs, Given, Standing):
    """Subclass it as `Test…`; override what is different in your agent."""
