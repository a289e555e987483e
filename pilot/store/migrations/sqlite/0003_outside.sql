-- The outside world: where tasks come from, what is owed to it, and the pull requests that came of them.

-- JSON: its ticket, in its source's words
ALTER TABLE executions ADD COLUMN origin TEXT;

-- what has begun, and goes on though its project starts nothing new
CREATE INDEX executions_begun ON executions (project_id, priority, id)
  WHERE status = 'queued' AND due = 1 AND attempt > 0;

-- finish | pr_open | checks_passed | merged: when the project's next task may start
ALTER TABLE projects ADD COLUMN next_after TEXT NOT NULL DEFAULT 'finish';
-- how many pull requests may be open before that; NULL: any number
ALTER TABLE projects ADD COLUMN max_open_prs INTEGER;

-- 1: it tells people (`notify`), so that somebody takes what is owed to them
ALTER TABLE nodes ADD COLUMN notifies INTEGER NOT NULL DEFAULT 0;

CREATE TABLE refusals (                    -- requests that were turned down, each once
  project_id   INTEGER NOT NULL,           -- 0: of no project
  key          TEXT NOT NULL,
  source       TEXT NOT NULL,
  task_id      TEXT NOT NULL,
  actor        TEXT NOT NULL,
  reason       TEXT NOT NULL,
  url          TEXT NOT NULL,
  at           INTEGER NOT NULL,
  PRIMARY KEY (project_id, key)
) WITHOUT ROWID;
CREATE INDEX refusals_task ON refusals (task_id, at);

CREATE TABLE inbox (                       -- webhooks, stored before they are acknowledged
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  source        TEXT NOT NULL,
  delivery      TEXT NOT NULL,
  digest        TEXT NOT NULL,             -- sha256 of the body: delivery ids are not signed
  event         TEXT NOT NULL,
  action        TEXT NOT NULL,
  payload       TEXT NOT NULL,
  received_at   INTEGER NOT NULL,
  tries         INTEGER NOT NULL DEFAULT 0,
  available_at  INTEGER NOT NULL,
  claimed_by    TEXT,
  claimed_until INTEGER NOT NULL DEFAULT 0,
  claims        INTEGER NOT NULL DEFAULT 0,  -- rises each time it is taken: an older claim writes nothing
  handled_at    INTEGER,
  error         TEXT
);
CREATE UNIQUE INDEX inbox_delivery ON inbox (source, delivery);
CREATE UNIQUE INDEX inbox_digest ON inbox (source, digest);
CREATE INDEX inbox_owed ON inbox (source, available_at, id) WHERE handled_at IS NULL;
CREATE INDEX inbox_claimed ON inbox (claimed_by) WHERE handled_at IS NULL AND claimed_by IS NOT NULL;
CREATE INDEX inbox_old ON inbox (handled_at) WHERE handled_at IS NOT NULL;

-- nothing has used it so far
DROP TABLE outbox;
CREATE TABLE outbox (                      -- effects owed to the outside, written with what causes them
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  lane          TEXT NOT NULL,             -- in order within it
  execution_id  INTEGER REFERENCES executions (id) ON DELETE CASCADE,
  project_id    INTEGER,
  kind          TEXT NOT NULL,
  key           TEXT NOT NULL UNIQUE,      -- the same effect is owed once
  fence         INTEGER NOT NULL,
  event_id      INTEGER,                   -- what caused it
  host          TEXT,                      -- whose nodes alone can do it; NULL: any
  payload       TEXT NOT NULL,
  tries         INTEGER NOT NULL DEFAULT 0,
  available_at  INTEGER NOT NULL,
  claimed_by    TEXT,
  claimed_until INTEGER NOT NULL DEFAULT 0,
  claims        INTEGER NOT NULL DEFAULT 0, -- rises each time it is taken: an older claim writes nothing
  delivered_at  INTEGER,                   -- done, or given up (then with its error)
  result        TEXT,
  error         TEXT,
  created_at    INTEGER NOT NULL
);
CREATE INDEX outbox_owed ON outbox (lane, id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_due ON outbox (available_at, id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_claimed ON outbox (claimed_by) WHERE delivered_at IS NULL AND claimed_by IS NOT NULL;
CREATE INDEX outbox_execution ON outbox (execution_id, id) WHERE execution_id IS NOT NULL;
CREATE INDEX outbox_old ON outbox (delivered_at) WHERE delivered_at IS NOT NULL;

CREATE TABLE pulls (                       -- our pull requests, as last seen
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id    INTEGER NOT NULL,
  execution_id  INTEGER NOT NULL REFERENCES executions (id),  -- the last whose work it holds
  task_id       TEXT NOT NULL,
  branch        TEXT NOT NULL,
  repo          TEXT NOT NULL,             -- owner/name
  base          TEXT NOT NULL,
  draft         INTEGER NOT NULL,
  number        INTEGER,
  url           TEXT,
  head_sha      TEXT NOT NULL,
  pushed_sha    TEXT,                      -- what our last push made of the remote branch
  state         TEXT NOT NULL CHECK (state IN ('owed', 'open', 'merged', 'closed', 'failed')),
  checks        TEXT NOT NULL DEFAULT 'none',
  red           TEXT NOT NULL DEFAULT '[]',
  repairs       INTEGER NOT NULL DEFAULT 0,
  used_up       INTEGER NOT NULL DEFAULT 0, -- 1: it has been told that there are no more repairs
  seen          TEXT NOT NULL DEFAULT '{}',
  error         TEXT,
  created_at    INTEGER NOT NULL,
  opened_at     INTEGER,
  ended_at      INTEGER,
  CHECK ((state IN ('merged', 'closed', 'failed')) = (ended_at IS NOT NULL))
);
CREATE UNIQUE INDEX pulls_live ON pulls (project_id, branch) WHERE state IN ('owed', 'open');
CREATE INDEX pulls_execution ON pulls (execution_id);
-- partial, so that nobody goes by it to the live ones
CREATE INDEX pulls_number ON pulls (project_id, number) WHERE number IS NOT NULL;

CREATE TABLE pull_executions (             -- whose work a pull request holds, oldest first
  pull_id       INTEGER NOT NULL REFERENCES pulls (id) ON DELETE CASCADE,
  execution_id  INTEGER NOT NULL,
  PRIMARY KEY (pull_id, execution_id)
) WITHOUT ROWID;
CREATE INDEX pull_executions_execution ON pull_executions (execution_id);

CREATE TABLE duties (                      -- what one node of all does at a time, and what it has to remember
  name         TEXT PRIMARY KEY,
  node         TEXT,
  until        INTEGER NOT NULL DEFAULT 0,
  state        TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;

CREATE TABLE sources (                     -- how each source does
  name         TEXT PRIMARY KEY,
  status       TEXT NOT NULL,              -- ok | paused | failing
  reason       TEXT NOT NULL,
  until        INTEGER,
  last_poll    INTEGER,                    -- the last one that worked
  changed_at   INTEGER NOT NULL
) WITHOUT ROWID;

-- Whoever writes an event owes what follows from it: no code path can forget that, and no crash come between.
-- What most events fail comes first, and no list: SQLite builds a table of it for each event.
CREATE TRIGGER events_report AFTER INSERT ON events
WHEN EXISTS (SELECT 1 FROM executions WHERE id = NEW.execution_id AND origin IS NOT NULL)
BEGIN
  INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, event_id, payload, available_at, created_at)
  SELECT 'task:' || e.project_id || ':' || e.task_id, e.id, e.project_id, 'report', 'report:' || NEW.id, e.fence,
    NEW.id, json_object('type', NEW.type), NEW.at, NEW.at
  FROM executions e WHERE e.id = NEW.execution_id AND NEW.type IN
    ('execution.queued', 'execution.started', 'execution.requeued', 'execution.asked', 'execution.answered',
     'execution.completed', 'execution.failed', 'execution.cancelled', 'pull.opened', 'pull.checks', 'pull.merged',
     'pull.closed', 'pull.repair_queued', 'pull.repairs_used_up', 'delivery.failed')
    -- a report that could not be given is not reported
    AND (NEW.type <> 'delivery.failed' OR NEW.data ->> 'kind' = 'publish');
END;

-- People are told by whoever of the nodes does that. `direct`: a person watches it run.
CREATE TRIGGER events_notify AFTER INSERT ON events
WHEN NEW.type = 'execution.asked' OR NEW.type = 'execution.failed' OR NEW.type = 'execution.answered'
  OR NEW.type = 'execution.cancelled' OR NEW.type = 'delivery.failed' OR NEW.type = 'pull.repairs_used_up'
  OR NEW.type = 'backend.parked'
BEGIN
  INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, event_id, payload, available_at, created_at)
  SELECT 'notify', e.id, coalesce(NEW.project_id, e.project_id), 'notify', 'notify:' || NEW.id, coalesce(e.fence, 0),
    NEW.id, json_object('type', NEW.type, 'data', json(NEW.data)), NEW.at, NEW.at
  FROM (SELECT 1) LEFT JOIN executions e ON e.id = NEW.execution_id
  WHERE CASE
    -- only who was told of it hears how it ended
    WHEN NEW.type IN ('execution.answered', 'execution.cancelled') THEN EXISTS
      (SELECT 1 FROM outbox o WHERE o.execution_id = NEW.execution_id AND o.kind = 'notify')
    WHEN NEW.type = 'delivery.failed' AND NEW.data ->> 'kind' IN ('notify', 'tell') THEN 0
    ELSE EXISTS (SELECT 1 FROM nodes WHERE notifies = 1)
      AND (NEW.type = 'backend.parked' OR coalesce(NEW.data ->> 'direct', 0) = 0)
  END;
END;
