"""Commits that a Postgres shard lost, and the position from which the stream is read again for it.

A shard may have lost its last commits: a replica without them was promoted, or the shard was restored. It has a row for
each stream shard, which shows what survived. What a reader knows of its row (`shard_positions.py`):

                 adopted                   invalidated
    ──► UNREAD ────┬───► PROVISIONAL ────┬────────────► STALE ───┐
          ▲        ├───► SETTLED ────────┤                       │
          │        └─────────────────────┼───────────────────────┘  adopted again
          └──────────────────────────────┘  taken back: a lane was opened in between, which reads the row itself

A reader sends operations to a shard only while the row is PROVISIONAL or SETTLED: known, and the operations that it
lacks are being read again. A PROVISIONAL row was read while operations were pending at the parents. What the shard
lacks of these is unknown, so the row is read again when the parents have ended or release tenants, and gets
`parents_done` only after that. A row is STALE when it has an unknown token (another reader, a move, or lost commits),
when the parents release tenants, and after an error that nobody foresaw. A write does not make it known again; the
token of a move may (`recovery_plan.py`).

Why no loss goes unnoticed, and nothing is applied behind it; `tests/model/` finds by search what goes wrong otherwise:

- Every batch writes the row in its own transaction. So the row is lost together with the effects, and a row that
  survives claims no more than the effects that survive. The claim is that of before the batch: the result of the batch
  is known too late, and an operation of it may not be applied.
- Every write leaves a new random fencing token, and succeeds only if the row has a token that the reader knows;
  otherwise the whole transaction is rolled back. Known are the token last read or committed, and those of attempts with
  an unknown outcome, until the next commit or read. The row stays locked until the commit, so of two readers one waits,
  and then finds another token. It confirms its lease before it adopts the row: otherwise two readers would each make
  the other read the stream again.
- The reader reads the row before it writes anything. At the first contact it compares the row with the position where
  it began to read, for it has all later records in memory; otherwise with its *dispatch* position. If the row is
  behind, all tenants of the shard are read again from the row on. If there is no row, they are read again from the time
  at which the first tenant of the shard was made, less `TENANT_WAIT_SECONDS`: no operation that arrived before was ever
  applied there. The log drops the operations that did survive.
- A tenant that was moved to the shard since the reader began may have lost operations on its former shard, which the
  reader does not have in memory. Then the first contact also compares with the dispatch position. Without a row there
  is no token that a move would change. So a reader that makes the row names the moved tenants that it saw on the shard,
  and makes no row if these have changed: then it reads the shard's state once more.
- The row is adopted in the step that decides what is read again, and the hold of the backfill begins in the step in
  which that is returned: nothing is sent in between.
"""
