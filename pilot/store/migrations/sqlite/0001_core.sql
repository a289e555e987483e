-- Times are UTC milliseconds. JSON is text. The states are those of domain/execution.py.

CREATE TABLE store (                       -- one row: which database this is
  id           TEXT NOT NULL,              -- part of the marker that every agent process carries
  created_at   INTEGER NOT NULL
);

CREATE TABLE projects (
  id           INTEGER PRIMARY KEY,
  key          TEXT NOT NULL UNIQUE,       -- identity: host and real path of git's common directory, or the URL
  name         TEXT NOT NULL,              -- handle
  path         TEXT NOT NULL,
  max_running  INTEGER NOT NULL DEFAULT 1 CHECK (max_running >= 1),
  running      INTEGER NOT NULL DEFAULT 0 CHECK (running >= 0),
  fence        INTEGER NOT NULL DEFAULT 0  -- rises with every claim, never reset
);
CREATE INDEX projects_name ON projects (name);

CREATE TABLE executions (
  id               INTEGER PRIMARY KEY AUTOINCREMENT,  -- FIFO goes by id, never by a time
  project_id       INTEGER NOT NULL REFERENCES projects (id),
  project          TEXT NOT NULL,
  project_path     TEXT NOT NULL,
  task_id          TEXT NOT NULL,
  title            TEXT NOT NULL,
  body             TEXT NOT NULL,
  source           TEXT NOT NULL,
  kind             TEXT NOT NULL,
  labels           TEXT NOT NULL,
  priority         INTEGER NOT NULL,
  lane             INTEGER NOT NULL,
  status           TEXT NOT NULL CHECK (status IN
                     ('blocked', 'queued', 'running', 'needs_human', 'completed', 'failed', 'cancelled')),
  reason           TEXT,
  due              INTEGER NOT NULL DEFAULT 0,         -- 1: available_at has passed; only these are in the claim index
  available_at     INTEGER NOT NULL,
  deps_left        INTEGER NOT NULL DEFAULT 0,         -- parents that have not completed
  has_dependents   INTEGER NOT NULL DEFAULT 0,
  slot             INTEGER,
  node             TEXT,
  fence            INTEGER NOT NULL DEFAULT 0,
  lease_until      INTEGER,
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  reserved_for     TEXT,                               -- node of a direct run
  attempt          INTEGER NOT NULL DEFAULT 0,
  failures         INTEGER NOT NULL DEFAULT 0,         -- those that count against max_attempts
  losses           INTEGER NOT NULL DEFAULT 0,         -- nodes that died under it, in a row
  streak           INTEGER NOT NULL DEFAULT 0,         -- failures of failure_class in a row
  mark             TEXT,                               -- fingerprint of the last failure
  max_attempts     INTEGER NOT NULL,
  failure_class    TEXT,
  error            TEXT,
  outcome          TEXT,
  backend          TEXT NOT NULL,
  model            TEXT,
  session_id       TEXT,
  feedback         TEXT,                               -- what the next attempt is told: an answer, a failure
  workspace        TEXT,
  branch           TEXT,
  base_sha         TEXT,
  head_sha         TEXT,
  delivery         TEXT NOT NULL DEFAULT 'none',
  pr_url           TEXT,
  checks           TEXT NOT NULL DEFAULT 'none',
  input_tokens     INTEGER,
  output_tokens    INTEGER,
  cost_usd         REAL,
  payload          TEXT,
  options          TEXT NOT NULL DEFAULT '{}',
  plan             TEXT,
  artifacts        TEXT,
  callback_url     TEXT,
  parent           INTEGER REFERENCES executions (id),
  idempotency_key  TEXT,
  input_hash       TEXT,
  created_at       INTEGER NOT NULL,
  started_at       INTEGER,
  finished_at      INTEGER,
  CHECK ((status = 'running') = (slot IS NOT NULL)),
  CHECK ((status = 'running') = (node IS NOT NULL)),
  CHECK ((status = 'running') = (lease_until IS NOT NULL)),
  CHECK ((status IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
  CHECK (status <> 'blocked' OR deps_left > 0),
  CHECK (status <> 'needs_human' OR reason IS NOT NULL)
);
-- The two that carry the promise: no code path can run two in a slot, or hold one task twice.
CREATE UNIQUE INDEX executions_slot ON executions (project_id, slot) WHERE status = 'running';
CREATE UNIQUE INDEX executions_open_task ON executions (project_id, task_id)
  WHERE status IN ('blocked', 'queued', 'running', 'needs_human');
CREATE UNIQUE INDEX executions_idempotency ON executions (project_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX executions_ready ON executions (project_id, priority, id) WHERE status = 'queued' AND due = 1;
CREATE INDEX executions_later ON executions (available_at) WHERE status = 'queued' AND due = 0;
CREATE INDEX executions_node ON executions (node) WHERE status = 'running';
CREATE INDEX executions_lease ON executions (lease_until) WHERE status = 'running';
CREATE INDEX executions_reserved ON executions (reserved_for) WHERE reserved_for IS NOT NULL
  AND status IN ('blocked', 'queued', 'running', 'needs_human');
CREATE INDEX executions_ended ON executions (status, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX executions_project ON executions (project_id, id);
CREATE INDEX executions_task ON executions (task_id);
CREATE INDEX executions_parent ON executions (parent) WHERE parent IS NOT NULL;

CREATE TABLE idempotency_keys (            -- of requests that were answered with an execution of another's
  project_id   INTEGER NOT NULL,
  key          TEXT NOT NULL,
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  PRIMARY KEY (project_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_execution ON idempotency_keys (execution_id);

CREATE TABLE dependencies (
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  depends_on   INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  PRIMARY KEY (execution_id, depends_on)
) WITHOUT ROWID;
CREATE INDEX dependencies_on ON dependencies (depends_on);

CREATE TABLE attempts (
  execution_id  INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  number        INTEGER NOT NULL,
  fence         INTEGER NOT NULL,
  node          TEXT NOT NULL,
  phase         TEXT,
  backend       TEXT NOT NULL,
  model         TEXT,
  session_id    TEXT,
  started_at    INTEGER NOT NULL,
  finished_at   INTEGER,
  outcome       TEXT,
  failure_class TEXT,
  detail        TEXT,
  excerpt       TEXT,
  summary       TEXT,                      -- the agent's last words
  gates         TEXT,
  tree          TEXT,
  head_sha      TEXT,
  input_tokens  INTEGER,
  output_tokens INTEGER,
  cost_usd      REAL,
  PRIMARY KEY (execution_id, number)
) WITHOUT ROWID;

CREATE TABLE output (
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  attempt      INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  at           INTEGER NOT NULL,
  kind         TEXT NOT NULL,
  data         BLOB NOT NULL,
  PRIMARY KEY (execution_id, attempt, seq)
);

CREATE TABLE events (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  at           INTEGER NOT NULL,
  type         TEXT NOT NULL,
  execution_id INTEGER,
  project_id   INTEGER,
  data         TEXT NOT NULL
);
CREATE INDEX events_execution ON events (execution_id, id) WHERE execution_id IS NOT NULL;

CREATE TABLE questions (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  execution_id INTEGER NOT NULL REFERENCES executions (id) ON DELETE CASCADE,
  attempt      INTEGER NOT NULL,
  text         TEXT NOT NULL,
  options      TEXT NOT NULL,
  preset       TEXT,                       -- the default answer
  asked_at     INTEGER NOT NULL,
  answer       TEXT,
  answered_by  TEXT,
  answered_at  INTEGER
);
CREATE UNIQUE INDEX questions_open ON questions (execution_id) WHERE answered_at IS NULL;
CREATE INDEX questions_execution ON questions (execution_id);

CREATE TABLE outbox (                      -- effects owed to the outside, written with what causes them
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  execution_id INTEGER REFERENCES executions (id) ON DELETE CASCADE,
  kind         TEXT NOT NULL,
  key          TEXT NOT NULL UNIQUE,       -- the same effect is owed once
  fence        INTEGER NOT NULL,
  payload      TEXT NOT NULL,
  tries        INTEGER NOT NULL DEFAULT 0,
  available_at INTEGER NOT NULL,
  delivered_at INTEGER,
  error        TEXT,
  created_at   INTEGER NOT NULL
);
CREATE INDEX outbox_owed ON outbox (available_at, id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_execution ON outbox (execution_id) WHERE execution_id IS NOT NULL;

CREATE TABLE nodes (
  id           TEXT PRIMARY KEY,
  kind         TEXT NOT NULL,
  host         TEXT NOT NULL,
  boot_id      TEXT NOT NULL,
  pid          INTEGER NOT NULL,
  start_ticks  INTEGER NOT NULL,
  version      TEXT NOT NULL,
  max_running  INTEGER NOT NULL,           -- executions at once; 0: not said
  state        TEXT NOT NULL,              -- up | draining
  choosy       INTEGER NOT NULL DEFAULT 0, -- 1: serves what node_projects says; 0: has not said
  started_at   INTEGER NOT NULL,
  seen_at      INTEGER NOT NULL,
  lease_until  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE node_projects (               -- what a node can reach; it claims nothing else
  node_id      TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  project_id   INTEGER NOT NULL,
  PRIMARY KEY (node_id, project_id)
) WITHOUT ROWID;

CREATE TABLE parks (                       -- backends that take no work, for every node
  backend      TEXT PRIMARY KEY,
  failure      TEXT NOT NULL,
  reason       TEXT NOT NULL,
  until        INTEGER,                    -- NULL: until a person says so
  since        INTEGER NOT NULL,
  execution_id INTEGER
) WITHOUT ROWID;

CREATE TABLE pauses (                      -- a set of owners: one's resume does not undo another's pause
  project_id   INTEGER NOT NULL,           -- 0: all projects
  owner        TEXT NOT NULL,
  reason       TEXT NOT NULL,
  since        INTEGER NOT NULL,
  PRIMARY KEY (project_id, owner)
) WITHOUT ROWID;
