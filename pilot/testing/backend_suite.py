"""Where the suite was."""

from pilot.testing import BackendSuite as BackendSuite
from pilot.testing import Lost as Lost
from pilot.testing import Script as Script
from pilot.testing import Seen as Seen
from pilot.testing import Stage as Stage
