"""For tests of backends, here and in plug-ins: `BackendSuite`. Needs pytest, which pilot itself does not."""
