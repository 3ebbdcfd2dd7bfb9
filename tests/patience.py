"""How long a test waits for another process: a guard against deadlocks, never a measure of speed."""

DEADLINE_S = 1800.0
