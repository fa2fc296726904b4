"""Receive messages from a queue, hand them to a handler, and carry out its verdicts.

A message belongs to the queue, or it is in flight and belongs to the worker:

                  receive             take_call                     Done, or its dead letter is stored
    in the queue ─────────► in a lane ─────────► with the handler ────────────────► being deleted ─────► deleted
         ▲                   │     ▲                     │                                │
         │                   │     └──────── held ───────┤                                │
         └───────────────────┴──── returned, or lost ────┴────────────────────────────────┘

What always holds, and why:

- A message leaves the queue only by a delete, which comes after the commit, or after the dead letter is stored, and
  while the message is still hidden from other receivers. After any other end the message is received again.
- A message that another receiver may have is lost here: it is neither deleted nor counted as done, and no late answer
  makes it ours again. Its deadline counts from before an extension was sent, where SQS counts from its arrival.
- A returned message is not hidden again: extensions of it that are under way are waited for before its visibility
  timeout is ended.
- In a FIFO queue no message overtakes another one of its group. The group is a lane: in order, in one call of the
  handler at a time. While the first message is undecided, those behind it stay. When it returns or is lost, they
  return too, visible at once and the first one last: until SQS gives out that one, it gives out none of the group.

A visibility timeout (`in_flight`) is extended each third of it, so that two extensions may fail. SQS hides a message
for twelve hours after its receive at most: extensions and delays are cut to that, and the extension up to its end is
final.

                      due                      extended to the end
    SCHEDULED ───────────────────► EXTENDING ───────────────────────► FINAL
      │   ▲                          │   │                              │
      │   └── extended, or failed ───┘   │ past its deadline, refused   │
      └────── past its deadline ───────► LOST ◄── past its deadline ────┘

A lane (`group_scheduler`) that is READY is in a ring. A call takes one message of every such lane in turn, then a
second one: a lane with many messages delays no other lane. In a standard queue each message is a lane of its own: its
group id promises no order.

             add            take_call           held behind a dead letter
    EMPTY ────────► READY ───────────► BUSY ────────────────────────────► BUSY_AND_HELD
                     ▲ ▲               │ │ ▲                                 │     │
                     │ └─── decided ───┘ │ └────────── time is up ───────────┘     │ stored
                     │                   │ held                                    │
                     └── time is up ── HELD ◄──────────────────────────────────────┘
"""
