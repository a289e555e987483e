-- Workers elsewhere, written plans, and who may ask over HTTP.

-- 1: nobody has to do it; completed as soon as what it waits for is
ALTER TABLE executions ADD COLUMN instant INTEGER NOT NULL DEFAULT 0;
-- names what it makes: made once per project, and pointed to afterwards
ALTER TABLE executions ADD COLUMN dedupe TEXT;
-- the first execution of its plan's submission: the same for all that belongs to one run of a plan, retries, too
ALTER TABLE executions ADD COLUMN plan_run INTEGER;
-- what it waited for, and whose end ended it
ALTER TABLE executions ADD COLUMN because INTEGER;
CREATE INDEX executions_plan ON executions (project_id, plan, plan_run) WHERE plan IS NOT NULL;
CREATE INDEX executions_run ON executions (plan_run, id) WHERE plan_run IS NOT NULL;
CREATE INDEX executions_dedupe ON executions (project_id, dedupe) WHERE dedupe IS NOT NULL;

-- with what a worker chooses by and what is counted, so that nobody has to look at the rows for it
DROP INDEX executions_ready;
CREATE INDEX executions_ready ON executions (project_id, priority, id, lane, kind, available_at, status, due)
  WHERE status = 'queued' AND due = 1;
DROP INDEX executions_ended;
CREATE INDEX executions_ended ON executions (status, finished_at, kind, failure_class, started_at)
  WHERE finished_at IS NOT NULL;
CREATE INDEX executions_held ON executions (status, kind) WHERE status IN ('blocked', 'needs_human');

CREATE TABLE results (                     -- by its dedupe key, what was made
  project_id   INTEGER NOT NULL,
  key          TEXT NOT NULL,
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  at           INTEGER NOT NULL,
  PRIMARY KEY (project_id, key)
) WITHOUT ROWID;
CREATE INDEX results_execution ON results (execution_id);

CREATE TABLE artifacts (                   -- files that came with a result, by what is in them
  sha256       TEXT PRIMARY KEY,
  size         INTEGER NOT NULL,
  content      BLOB NOT NULL,
  created_at   INTEGER NOT NULL
);
CREATE TABLE artifact_uses (               -- whose they are; what nobody has is removed with the history
  sha256       TEXT NOT NULL REFERENCES artifacts (sha256),
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  PRIMARY KEY (sha256, execution_id)
) WITHOUT ROWID;
CREATE INDEX artifact_uses_execution ON artifact_uses (execution_id);

CREATE TABLE tokens (                      -- of the HTTP API; the secret itself is nowhere
  id           TEXT PRIMARY KEY,           -- its public part
  name         TEXT NOT NULL,
  digest       TEXT NOT NULL,              -- sha256 of the secret: 256 random bits need no slow hash
  scopes       TEXT NOT NULL,              -- JSON: read, work, admin
  created_at   INTEGER NOT NULL,
  created_by   TEXT NOT NULL,
  expires_at   INTEGER,
  last_used_at INTEGER,
  revoked_at   INTEGER
) WITHOUT ROWID;

CREATE TABLE audit (                       -- every call over HTTP that was to change something
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  at           INTEGER NOT NULL,
  token        TEXT NOT NULL,              -- its id
  actor        TEXT NOT NULL,              -- the token's name, and the worker's where it said one
  peer         TEXT NOT NULL,
  method       TEXT NOT NULL,
  path         TEXT NOT NULL,
  status       INTEGER NOT NULL            -- of the answer
);
CREATE INDEX audit_at ON audit (at);

-- Who asked to be called back is, whatever code path ended it.
CREATE TRIGGER events_callback AFTER INSERT ON events
WHEN NEW.type = 'execution.completed' OR NEW.type = 'execution.failed' OR NEW.type = 'execution.cancelled'
  OR NEW.type = 'execution.asked'
BEGIN
  INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, event_id, payload, available_at, created_at)
  SELECT 'callback:' || e.id, e.id, e.project_id, 'callback', 'callback:' || NEW.id, e.fence, NEW.id,
    json_object('type', NEW.type, 'url', e.callback_url), NEW.at, NEW.at
  FROM executions e WHERE e.id = NEW.execution_id AND e.callback_url IS NOT NULL;
END;
