-- A container that its policy starts again: how often since the user's start, and whether it waits for that now (its state
-- is `running` meanwhile, for it has a monitor).
ALTER TABLE containers ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN resting INTEGER NOT NULL DEFAULT 0;
