"""What one attempt does. Read `runner` (the steps in order), `attempt` (each step), `agent` (the run, watched) first.

Workspaces: `workspace` over `making` (the three kinds: `clone`, `worktree`, `in_place`), `space` (the record), `tree`,
`source`, `pristine`, `branches`, `joining` (where a plan's step starts), `gitdir`, all git through `git`. What a task
points to: `pointed`, opened by `confined`. Processes: `process` over `pipes`, `lines`, `ending`,
`proctree`.
"""
