-- What nodes run themselves, apart from what is left to workers: a node that looks for work passes by a long queue of
-- theirs without reading it.
CREATE INDEX executions_local ON executions (project_id, priority, id)
  WHERE status = 'queued' AND due = 1 AND external = 0;
