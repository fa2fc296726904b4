-- Record every change of the old table from now on. Waits for transactions that write to it. Idempotent.

DO $$
DECLARE
    old_table pg_catalog.text := (
        SELECT pg_catalog.format('%I.%I'::pg_catalog.text, pg_namespace.nspname, pg_class.relname)
        FROM simplu_adoption_log.adoption
        JOIN pg_catalog.pg_class ON pg_class.oid = adoption.old_table::pg_catalog.oid
        JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    );
BEGIN
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER simplu_note_change AFTER INSERT OR UPDATE OR DELETE ON %s '
        'FOR EACH ROW EXECUTE FUNCTION simplu_adoption_log.note_change()', old_table
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER simplu_note_truncation AFTER TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION simplu_adoption_log.note_truncation()', old_table
    );
END
$$;
