-- Several machines: on whose disk work lies, and who has been heard of since.

-- names the disk on which it keeps workspaces and mirrors; '': not said
ALTER TABLE nodes ADD COLUMN place text COLLATE "C" NOT NULL DEFAULT '';
-- rises with every heartbeat: whether a node was heard of says no clock
ALTER TABLE nodes ADD COLUMN beats bigint NOT NULL DEFAULT 0;
CREATE INDEX nodes_place ON nodes (place) WHERE place <> '';

-- where what was begun of it lies: it goes on there as long as a node of that place is up. NULL: nowhere
ALTER TABLE executions ADD COLUMN place text COLLATE "C";

CREATE TABLE places (                      -- whose node has left in order, and may be back soon
  place        text COLLATE "C" PRIMARY KEY,
  until        bigint NOT NULL            -- as long as that is expected
);
