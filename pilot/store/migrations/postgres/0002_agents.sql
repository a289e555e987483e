-- Several agents: who does it instead, whose allowance is used up, what may be spent.

-- backends that do it, in this order, while `backend` is parked
ALTER TABLE executions ADD COLUMN fallback text COLLATE "C" NOT NULL DEFAULT '[]';
-- 1: left to remote workers
ALTER TABLE executions ADD COLUMN external bigint NOT NULL DEFAULT 0;
-- the part of cost_usd from before a person's last answer
ALTER TABLE executions ADD COLUMN forgiven_usd double precision NOT NULL DEFAULT 0;

-- whose allowance it uses up; '': not known
ALTER TABLE attempts ADD COLUMN account text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN sandbox text COLLATE "C";
-- millionths of a dollar, set aside at its claim
ALTER TABLE attempts ADD COLUMN reserved bigint;
-- 1: it is to find out whether a park is over
ALTER TABLE attempts ADD COLUMN probe bigint NOT NULL DEFAULT 0;
-- by hash: an agent says it, of any length
CREATE INDEX attempts_session ON attempts USING hash (session_id) WHERE session_id IS NOT NULL;

-- its spending limits; NULL: none
ALTER TABLE nodes ADD COLUMN per_execution_usd double precision;
ALTER TABLE nodes ADD COLUMN per_day_usd double precision;

CREATE TABLE node_accounts (               -- whose allowance a node uses up where it runs a backend for a project
  node_id      text COLLATE "C" NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  project_id   bigint NOT NULL,
  backend      text COLLATE "C" NOT NULL,
  account      text COLLATE "C" NOT NULL,
  PRIMARY KEY (node_id, project_id, backend)
);

-- nothing has used it so far
DROP TABLE parks;
CREATE TABLE parks (                       -- (backend, account) that take no work, for every node
  backend      text COLLATE "C" NOT NULL,
  account      text COLLATE "C" NOT NULL,              -- '': whatever the account
  failure      text COLLATE "C" NOT NULL,
  reason       text COLLATE "C" NOT NULL,
  until        bigint,                    -- NULL: until a person says so. In the past: one claim may try it
  since        bigint NOT NULL,
  changed_at   bigint NOT NULL,           -- parked again, or opened by a person
  tries        bigint NOT NULL DEFAULT 1, -- times in a row that it was found used up
  execution_id bigint,
  probe_id     bigint,                    -- the claim that tries it, as long as it runs under this fence
  probe_fence  bigint,
  PRIMARY KEY (backend, account)
);

CREATE TABLE spending (                    -- millionths of a dollar, by the UTC day of the claim
  day          bigint PRIMARY KEY,        -- since 1970-01-01
  spent        bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
  reserved     bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0)  -- by attempts that run, or whose cost nobody told
);
