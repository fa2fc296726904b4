-- Lock the old table against every other user until the end of the transaction.

DO $$
BEGIN
    EXECUTE pg_catalog.format(
        'LOCK TABLE %s IN ACCESS EXCLUSIVE MODE',
        (
            SELECT pg_catalog.format('%I.%I'::pg_catalog.text, pg_namespace.nspname, pg_class.relname)
            FROM simplu_adoption_log.adoption
            JOIN pg_catalog.pg_class ON pg_class.oid = adoption.old_table::pg_catalog.oid
            JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
        )
    );
END
$$;
