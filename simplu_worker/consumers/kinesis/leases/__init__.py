"""The lease table of the Kinesis Client Library, and the rules of taking leases.

Replicas, and workers of the KCL, share a stream through this table alone. The actual owner of a lease reads its stream
shard:

                   take                 read to the end            not needed any more
    unowned ────────────────► owned ──────────────────────► ended ─────────────────────► deleted
       ▲                      │ │ ▲
       └────── release ───────┘ └─┘ take by another worker, or a hand-over by a leader of the KCL 3.x

Another worker takes a lease that its owner has not renewed for the lease duration, one of an owner that has too much,
or one that a person has asked for. In a hand-over the row names the next owner, and as checkpoint owner the actual one,
which reads until it releases the lease.

- Every write of an owner expects that owner, a renewal or a take the counter seen last too; so of two writers one
  learns that it lost. The counter alone is not enough: a leader of the KCL 3.x begins a hand-over without moving it.
  Children and hash ranges are facts of the stream, and may be written by anybody.
- An owner is alive while its counter moves, by the local monotonic clock alone.
- Two readers of one stream shard, as while a lease changes hands, do no harm (architecture, idea 2).
- Attributes of other programs survive: every write but a lease's creation names the attributes that it changes.
- Each replica decides alone, from one eventually consistent scan: a stale row only makes a write fail.
"""
