"""Receive messages from a queue, hand them to a handler, and carry out its verdicts.

A message belongs to the queue, or it is in flight and belongs to the worker:

                  receive             take_call                     Done, or its dead letter is stored
    in the queue ─────────► in a lane ─────────► with the handler ────────────────► being deleted ─────► deleted
         ▲                   │     ▲                     │                                │
         │                   │     └──────── held ───────┤                                │
         └───────────────────┴──── returned, or lost ────┴────────────────────────────────┘

One table (`message_table`) has the messages in flight. One loop (`receiver`) starts what is due: polls, calls of the
handler, extensions of visibility timeouts. Each of these is a task that posts its result to the table and wakes the
loop. The task of a poll handles what it received, and deletes what its handler has done, together with what other tasks
leave while a delete is under way: what waits for nothing meets no other task of the receiver.

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

A visibility timeout is extended each third of it, so that two extensions may fail. After twelve hours SQS refuses that:
the message is lost.

                      due
    SCHEDULED ───────────────────► EXTENDING
      │   ▲                          │   │
      │   └── extended, or failed ───┘   │ past its deadline, refused
      └────── past its deadline ───────► LOST

A lane is ready when it has messages, none of which is with the handler, has a dead letter to store, or is held. A call
takes one message of every ready lane in turn, then a second one: a lane with many messages delays no other lane. In a
standard queue each message is a lane of its own: its group id promises no order.
"""
