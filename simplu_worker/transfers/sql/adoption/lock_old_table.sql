-- Lock the old table against every other user until the end of the transaction.

LOCK TABLE public.resources IN ACCESS EXCLUSIVE MODE;
