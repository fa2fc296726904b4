"""The way of an operation from "decoded" to "settled", the same for every source.

A source decodes, and sends entries (`results.Entry`), each with its chain, the unit of order: a tenant of a stream
shard, a group of a FIFO queue, one message of a standard queue. The pipeline knows nothing of streams and queues; it
asks of a source what `pipeline.EntrySource` and `results.BatchSender` name.

              home known                          batch              BatchDecided
    send ─────────────────────► in a lane ──────────────► in flight ──────────────► settled by the source
      │                           ▲   ▲                    │  │  │
      │ home unknown        found │   └─── not taken yet ──┘  │  └─ its tenant is not there ─┐
      └───────────────► in the lookup ◄───────────────────────┼──────────────────────────────┘
                              │                               │ LaneEmptied, BatchCrashed
                       Waited │ Overdue                       ▼
                              └───────────────────────► put back into the source, or given up

A lane (`lane.py`) belongs to one source and one Postgres shard. It has one batch in flight, made up of all tenants in
turn (`results.py`), and is first in, first out for each of them:

                  next batch                  its shard took it, or it crashed
    WAITING ────────────────────► IN_FLIGHT ───────────────────────────────────► DECIDED
      ▲ ▲                             │                                             │
      │ └──── put back, or emptied ───┘                                             │
      └──────────────────────────── the source has dealt with it ───────────────────┘

What always holds, and why it keeps the order of each chain:

- The entries of a tenant are in one place at a time, in order: in one lane, or in the lookup; they move together. A
  source with chains of several tenants sends the run of one tenant after the run before is settled.
- A result is dealt with in the step in which it is returned, without an `await` in between.
- What is put back leaves with all of its chain behind it. In flight it cannot leave: its outcome counts no more, and
  whoever sends it again finds it in the shard's log.
- Whether a batch without an answer was committed is unknown. It is sent again, first of all; the log drops what is in
  it. After a second of that the source gets all of the lane.
- A batch that crashes is the trouble of its shard and its source (`bulkheads.py`).

A checkpoint trusts a commit, because a shard that lost some is read for again. A message is deleted only after
`commit_safety`, since a queue cannot be read again.

Sources do not share a lane: what waits for the trouble of one would wait for that of the other.
"""
