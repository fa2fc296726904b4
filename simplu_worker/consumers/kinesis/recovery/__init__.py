"""Commits that a Postgres shard lost, and the position from which the stream is read again for it.

A shard may have lost its last commits: a replica without them was promoted, or the shard was restored. It has a row for
each stream shard, which shows what survived. What a reader knows of its row:

                 adopted                   invalidated
    ──► UNREAD ────┬───► PROVISIONAL ────┬────────────► STALE ───┐
          ▲        ├───► SETTLED ────────┤                       │
          │        └─────────────────────┼───────────────────────┘  adopted again
          └──────────────────────────────┘  taken back: a lane was opened in between, which reads the row itself

A reader sends operations to a shard only while the row is PROVISIONAL or SETTLED: known, and the operations that it
lacks are being read again. A PROVISIONAL row was read while operations were pending at the parents; it is read again
when these have ended or release tenants, and gets `parents_done` only after that.

Why no loss goes unnoticed, and nothing is applied behind it (`tests/model/`):

- Every batch writes the row in its own transaction, with the claim of before the batch. So the row is lost together
  with the effects, and a row that survives claims no more than the effects that survive.
- Every write leaves a new random fencing token, and succeeds only if the row has a token that the reader knows: the
  token last read or committed, and those of attempts with an unknown outcome, until the next commit or read. A reader
  that finds another token confirms its lease before it adopts the row: otherwise two readers would make each other read
  the stream again.
- The reader reads the row before it writes anything. At the first contact it compares the row with the position where
  it began to read, otherwise with its *dispatch* position. If the row is behind, all tenants of the shard are read
  again from the row on; without a row from the time at which the first tenant of the shard was made, less
  `TENANT_WAIT_SECONDS`. The log drops the operations that did survive.
- A tenant that was moved to the shard since the reader began may have lost operations on its former shard. Then the
  first contact also compares with the dispatch position. A reader that makes the row names the moved tenants that it
  saw on the shard, and makes no row if these have changed.
- The row is adopted in the step that decides what is read again, and the hold of the backfill begins in the step in
  which that is returned: nothing is sent in between.
"""
