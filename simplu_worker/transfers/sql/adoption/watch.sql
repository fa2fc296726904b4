-- Record every change of the old table from now on. Waits for transactions that write to it. Idempotent.

DO $$
DECLARE
    old_table pg_catalog.regclass := (SELECT adoption.old_table FROM simplu_adoption_log.adoption);
BEGIN
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER simplu_note_change AFTER INSERT OR UPDATE OR DELETE ON %s '
        'FOR EACH ROW EXECUTE FUNCTION simplu_adoption_log.note_change()', old_table
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER simplu_note_truncation AFTER TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION simplu_adoption_log.note_change()', old_table
    );
END
$$;
