"""For tests of backends, here and in plug-ins: `BackendSuite`. Needs pytest, which pilot itself does not."""

from __future__ import annotations

from pilot.testing.fence import Fence
from pilot.testing.memory import Peak
from pilot.testing.script import Script
from pilot.testing.seen import Lost, Seen
from pilot.testing.stage import SECRET, SESSION, Stage, Talk
from pilot.testing.suite import BackendSuite

__all__ = ["SECRET", "SESSION", "BackendSuite", "Fence", "Lost", "Peak", "Script", "Seen", "Stage", "Talk"]
