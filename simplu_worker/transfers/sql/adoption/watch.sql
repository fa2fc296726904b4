-- Record every change of the old table from now on. Waits for transactions that write to it. Idempotent.

CREATE OR REPLACE TRIGGER simplu_note_change AFTER INSERT OR UPDATE OR DELETE ON public.resources
FOR EACH ROW EXECUTE FUNCTION simplu_adoption_log.note_change();

CREATE OR REPLACE TRIGGER simplu_note_truncation AFTER TRUNCATE ON public.resources
FOR EACH STATEMENT EXECUTE FUNCTION simplu_adoption_log.note_change();
