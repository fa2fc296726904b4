"""Which operations are held, which cursor sends a tenant's operations, and up to where the checkpoint may go. Pure.

A hold has a target that takes no operations now, the target's tenants, and the records still to be read for them: those
of the parents, then the own ones from a position on. A catch-up reads the union of what its holds have still to read.

                 the target                    a catch-up starts,               it meets the
                  is back                      or takes it along                main reader
    ──► HELD ─────────────────► READY ──────────────────────────► CATCHING_UP ─────────────────► no hold
         ▲                        │                                    │
         └────────────────────────┴────────────────────────────────────┘
           the target fails again, or more is to be read again (`lower`)

A hold also ends, in any state, when its last tenant gets another owner; a backfill, whose tenants its Postgres shard
names, does not.

The operations of a tenant are sent by one cursor: the main reader, or the catch-up of the hold that owns the tenant.

- *unique*: the sets of tenants of the holds are disjoint. A name goes before its slot, which holds inherited by a lease
  row may have; all other tenants are the main reader's;
- *handed in*: of all operations of a tenant, its owner still reads those that are not settled, or they are in memory:
  in one lane or in the lookup of homes, in the order of the stream.

Five verbs change an owner:

- *split*: a hold gets a tenant. It reads again from the first operation in memory on, and these are dropped;
- *give* (`meet_resident`): a backfill meets a tenant on its shard. The tenant goes to the one of both that comes to all
  that the other has not read; where neither does, it gets a hold of its own for both;
- *join*: a hold that is ready is caught up by a running catch-up that still comes to all of it;
- *meet*: a catch-up has reached the main reader, which gets the tenants; nothing is dropped;
- *restart* (`lower`): a hold leaves its catch-up, and reads again from a lower position.

Why no operation is lost or overtaken (`tests/model/`):

- A reader has at most one batch in flight to a Postgres shard, and one lane to it, first in first out for each tenant.
- A hold's operations leave the reader only through a catch-up, even if the target answers earlier.
- Of a tenant over its share the newest operations leave memory, and its hold begins before the first of these.
- After a failure, in a catch-up too, a hold begins before the first operation whose commit is not *known*.
- A catch-up meets the main reader only when its next record is the main reader's next one at *dispatch*, in one step
  without an await.
- The main reader may lose a tenant to any hold at any time, with its operations in memory. A catch-up that comes to
  earlier ones drops these first; of those that come out of the lookup of homes, those are dropped that their owner has
  still to read. The outcome of one in flight does not count.
- The checkpoint (`Ownership.floor`) is the lowest position of the main reader, the holds and the catch-ups, also of a
  catch-up that has ended with operations pending.
"""
