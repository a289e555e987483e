-- What runs is few rows, and `executions_slot` holds them all: each index more is written at every claim and every end.
DROP INDEX executions_node;
DROP INDEX executions_lease;
