-- What runs is few rows, and `executions_slot` holds them all: each index more is written at every claim and every end.
DROP INDEX executions_node;
DROP INDEX executions_lease;

CREATE OR REPLACE FUNCTION events_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- Most events are owed to nobody. To find that out costs less than to look for who is owed them.
  IF NOT EXISTS (
      SELECT 1 FROM new_events v WHERE v.type IN ('execution.asked', 'execution.failed', 'execution.answered',
        'execution.cancelled', 'delivery.failed', 'pull.repairs_used_up', 'backend.parked'))
    AND NOT EXISTS (
      SELECT 1 FROM new_events v JOIN executions e ON e.id = v.execution_id
      WHERE e.origin IS NOT NULL OR e.callback_url IS NOT NULL)
  THEN
    RETURN NULL;
  END IF;
  INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, event_id, payload, available_at, created_at)
  SELECT lane, execution_id, project_id, kind, key, fence, event_id, payload, at, at
  FROM (
    SELECT v.id AS event_id, 3 AS rank, 'task:' || e.project_id || ':' || e.task_id AS lane, e.id AS execution_id,
      e.project_id AS project_id, 'report' AS kind, 'report:' || v.id AS key, e.fence AS fence,
      '{"type":' || to_json(v.type)::text || '}' AS payload, v.at AS at
    FROM new_events v JOIN executions e ON e.id = v.execution_id
    WHERE e.origin IS NOT NULL AND v.type IN
      ('execution.queued', 'execution.started', 'execution.requeued', 'execution.asked', 'execution.answered',
       'execution.completed', 'execution.failed', 'execution.cancelled', 'pull.opened', 'pull.checks', 'pull.merged',
       'pull.closed', 'pull.repair_queued', 'pull.repairs_used_up', 'delivery.failed')
      -- a report that could not be given is not reported
      AND (v.type <> 'delivery.failed' OR v.data::jsonb ->> 'kind' = 'publish')
    UNION ALL
    SELECT v.id, 2, 'notify', e.id, coalesce(v.project_id, e.project_id), 'notify', 'notify:' || v.id,
      coalesce(e.fence, 0), '{"type":' || to_json(v.type)::text || ',"data":' || v.data || '}', v.at
    FROM new_events v LEFT JOIN executions e ON e.id = v.execution_id
    WHERE v.type IN ('execution.asked', 'execution.failed', 'execution.answered', 'execution.cancelled',
        'delivery.failed', 'pull.repairs_used_up', 'backend.parked')
      AND CASE
        -- only who was told of it hears how it ended
        WHEN v.type IN ('execution.answered', 'execution.cancelled') THEN
          EXISTS (SELECT 1 FROM outbox o WHERE o.execution_id = v.execution_id AND o.kind = 'notify')
          OR EXISTS (SELECT 1 FROM new_events b WHERE b.execution_id = v.execution_id AND b.id < v.id
            AND b.type IN ('execution.asked', 'execution.failed', 'pull.repairs_used_up')
            AND coalesce(b.data::jsonb ->> 'direct', 'false') IN ('false', '0')
            AND EXISTS (SELECT 1 FROM nodes WHERE notifies = 1))
        WHEN v.type = 'delivery.failed' AND v.data::jsonb ->> 'kind' IN ('notify', 'tell') THEN false
        ELSE EXISTS (SELECT 1 FROM nodes WHERE notifies = 1) AND (v.type = 'backend.parked'
          OR coalesce(v.data::jsonb ->> 'direct', 'false') IN ('false', '0'))
      END
    UNION ALL
    SELECT v.id, 1, 'callback:' || e.id, e.id, e.project_id, 'callback', 'callback:' || v.id, e.fence,
      '{"type":' || to_json(v.type)::text || ',"url":' || to_json(e.callback_url)::text || '}', v.at
    FROM new_events v JOIN executions e ON e.id = v.execution_id
    WHERE e.callback_url IS NOT NULL
      AND v.type IN ('execution.completed', 'execution.failed', 'execution.cancelled', 'execution.asked')
  ) owed
  ORDER BY event_id, rank;
  RETURN NULL;
END
$$;
