-- Lock the old table against every other user until the end of the transaction.

DO $$
BEGIN
    EXECUTE pg_catalog.format(
        'LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', (SELECT old_table FROM simplu_adoption_log.adoption)
    );
END
$$;
