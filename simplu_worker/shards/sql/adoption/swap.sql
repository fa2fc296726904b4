-- Rename the old table, and move ours to its place. Only indexes of the old table can have names of ours (all other
-- conflicts were excluded before): they are renamed as well. The last statement fails, and with it the whole swap, if
-- anything of ours has not moved.

DO $$
DECLARE
    old_table regclass;
    home text;
    named record;
BEGIN
    SELECT adoption.old_table, adoption.home INTO STRICT old_table, home FROM simplu_adoption_log.adoption;
    EXECUTE format('DROP TRIGGER IF EXISTS simplu_note_change ON %s', old_table);
    EXECUTE format('DROP TRIGGER IF EXISTS simplu_note_truncation ON %s', old_table);
    FOR named IN
        SELECT pg_class.relname AS name
        FROM pg_index
        JOIN pg_class ON pg_class.oid = pg_index.indexrelid
        JOIN pg_class AS ours ON ours.relname = pg_class.relname
        WHERE pg_index.indrelid = old_table AND ours.relnamespace = 'simplu_adoption'::regnamespace
    LOOP
        EXECUTE format(
            'ALTER INDEX %I.%I RENAME TO %I', home, named.name, left(named.name, 46) || '_before_adoption'
        );
    END LOOP;
    EXECUTE format('ALTER TABLE %s RENAME TO resources_before_adoption', old_table);
    FOR named IN
        SELECT relname AS name, relkind AS kind
        FROM pg_class
        WHERE relnamespace = 'simplu_adoption'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
    LOOP
        EXECUTE format('ALTER TABLE simplu_adoption.%I SET SCHEMA %I', named.name, home);
    END LOOP;
    FOR named IN
        SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'simplu_adoption'::regnamespace
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET SCHEMA %I', named.name, home);
    END LOOP;
    FOR named IN
        SELECT oid::regtype AS name
        FROM pg_type
        WHERE typnamespace = 'simplu_adoption'::regnamespace AND typtype IN ('d', 'e')
    LOOP
        EXECUTE format('ALTER TYPE %s SET SCHEMA %I', named.name, home);
    END LOOP;
    DROP SCHEMA simplu_adoption RESTRICT;
END
$$;
