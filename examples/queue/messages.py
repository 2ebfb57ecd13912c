"""A queue of messages in SQLite from which nothing is lost, whoever dies when.

A message is waiting, taken or done. It is taken in the name of a *slot*: under fcgimgr the name of the process, which a
replacement inherits and which no two living processes share. A slot has one message in hand at a time; so one that is
taken in my name when I ask for work was left by my predecessor, and is mine again at once. Messages of a slot that
never comes back (the program was made smaller) are anybody's after LEASE seconds.

So a message may be worked on twice, when a process dies between the work and its commit, but never not at all. Work
that must happen exactly once belongs in the transaction of `finish`.
"""

import sqlite3
import time

LEASE = 60.0
"""Seconds after which a message that was taken and not finished may be taken by another slot. Longer than any work."""

PATIENCE = 30.0
"""Seconds that one waits for the others that use the file."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id       INTEGER PRIMARY KEY,
    body     TEXT NOT NULL,
    taken_by TEXT,
    taken_at REAL,
    done     INTEGER NOT NULL DEFAULT 0    -- how often it was finished: 1, but for the case that LEASE was too short
);
CREATE INDEX IF NOT EXISTS unfinished ON messages (id) WHERE done = 0;
"""

TAKE = """
UPDATE messages SET taken_by = :slot, taken_at = :now
WHERE id = (
    SELECT id FROM messages
    WHERE done = 0 AND (taken_by IS NULL OR taken_by = :slot OR taken_at < :now - :lease)
    ORDER BY taken_by IS NOT :slot, id LIMIT 1
)
RETURNING id, body
"""


def connect(path):
    """Open (and at first make) the queue in the file `path`. Each statement commits by itself."""
    queue = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            queue.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # others do the same at this moment, for which SQLite itself does not wait
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    queue.executescript(SCHEMA)
    return queue


def put(queue, bodies):
    """Add messages, all of them or none."""
    queue.execute("BEGIN IMMEDIATE")
    queue.executemany("INSERT INTO messages (body) VALUES (?)", [(body,) for body in bodies])
    queue.execute("COMMIT")


def take(queue, slot):
    """Take the next message for `slot`: (id, body), or None when none is waiting."""
    taken = queue.execute(TAKE, {"slot": slot, "now": time.time(), "lease": LEASE}).fetchall()
    return taken[0] if taken else None


def finish(queue, message_id):
    """Say that the work on a message is done."""
    queue.execute("UPDATE messages SET done = done + 1 WHERE id = ?", (message_id,))


def counts(queue):
    """How many messages there are: (waiting, taken, done)."""
    return queue.execute(
        "SELECT ifnull(sum(done = 0 AND taken_by IS NULL), 0), ifnull(sum(done = 0 AND taken_by IS NOT NULL), 0),"
        " ifnull(sum(done > 0), 0) FROM messages"
    ).fetchone()
