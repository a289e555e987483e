-- Several agents: who does it instead, whose allowance is used up, what may be spent.

-- backends that do it, in this order, while `backend` is parked
ALTER TABLE executions ADD COLUMN fallback TEXT NOT NULL DEFAULT '[]';
-- 1: left to remote workers
ALTER TABLE executions ADD COLUMN external INTEGER NOT NULL DEFAULT 0;
-- the part of cost_usd from before a person's last answer
ALTER TABLE executions ADD COLUMN forgiven_usd REAL NOT NULL DEFAULT 0;

-- whose allowance it uses up; '': not known
ALTER TABLE attempts ADD COLUMN account TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN sandbox TEXT;
-- millionths of a dollar, set aside at its claim
ALTER TABLE attempts ADD COLUMN reserved INTEGER;
-- 1: it is to find out whether a park is over
ALTER TABLE attempts ADD COLUMN probe INTEGER NOT NULL DEFAULT 0;
CREATE INDEX attempts_session ON attempts (session_id) WHERE session_id IS NOT NULL;

-- its spending limits; NULL: none
ALTER TABLE nodes ADD COLUMN per_execution_usd REAL;
ALTER TABLE nodes ADD COLUMN per_day_usd REAL;

CREATE TABLE node_accounts (               -- whose allowance a node uses up where it runs a backend for a project
  node_id      TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  project_id   INTEGER NOT NULL,
  backend      TEXT NOT NULL,
  account      TEXT NOT NULL,
  PRIMARY KEY (node_id, project_id, backend)
) WITHOUT ROWID;

ALTER TABLE parks RENAME TO parks_by_backend;
CREATE TABLE parks (                       -- (backend, account) that take no work, for every node
  backend      TEXT NOT NULL,
  account      TEXT NOT NULL,              -- '': whatever the account
  failure      TEXT NOT NULL,
  reason       TEXT NOT NULL,
  until        INTEGER,                    -- NULL: until a person says so. In the past: one claim may try it
  since        INTEGER NOT NULL,
  changed_at   INTEGER NOT NULL,           -- parked again, or opened by a person
  tries        INTEGER NOT NULL DEFAULT 1, -- times in a row that it was found used up
  execution_id INTEGER,
  probe_id     INTEGER,                    -- the claim that tries it, as long as it runs under this fence
  probe_fence  INTEGER,
  PRIMARY KEY (backend, account)
) WITHOUT ROWID;
INSERT INTO parks (backend, account, failure, reason, until, since, changed_at, execution_id)
  SELECT backend, '', failure, reason, until, since, since, execution_id FROM parks_by_backend;
DROP TABLE parks_by_backend;

CREATE TABLE spending (                    -- millionths of a dollar, by the UTC day of the claim
  day          INTEGER PRIMARY KEY,        -- since 1970-01-01
  spent        INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
  reserved     INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0)  -- by attempts that run, or whose cost nobody told
);
