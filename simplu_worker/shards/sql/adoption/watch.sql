-- Record every change of the old table from now on. Waits for the transactions that write to it, and blocks new ones
-- until the end of its own. Idempotent.

DO $$
DECLARE
    old_table regclass := (SELECT adoption.old_table FROM simplu_adoption_log.adoption);
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER simplu_note_change AFTER INSERT OR UPDATE OR DELETE ON %s '
        'FOR EACH ROW EXECUTE FUNCTION simplu_adoption_log.note_change()', old_table
    );
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER simplu_note_truncation AFTER TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION simplu_adoption_log.note_truncation()', old_table
    );
END
$$;
