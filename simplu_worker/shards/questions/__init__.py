"""Questions of people: one statement, asked of a shard as a role that may only read, with a bounded answer.

No text can tell what a statement does, for it may call any function. So these make it safe:

- The role is neither a superuser, nor one that replicates, signals other sessions, reaches the server's files or writes
  our tables, and is no member of such a role (`inspect_reader`).
- The transaction is READ ONLY and always rolled back, with what large objects, notifications or `set_config` have done
  in it. Its first snapshot is taken before the statement, so that no function can make it a writing one.
- The statement is a subquery in another one: the server's own parser admits nothing there that writes, no INTO, and no
  second statement, as nothing but prepared statements are sent.
- Advisory locks are released with the transaction, also on a server behind a pooler.
"""
