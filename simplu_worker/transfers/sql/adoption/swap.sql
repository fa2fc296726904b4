-- Rename the old table, and move ours to its place. Only its indexes can have names of ours: they are renamed, too. The
-- last statement fails, and with it the swap, if anything of ours has not moved.

DO $$
DECLARE
    old_oid pg_catalog.oid;
    old_table pg_catalog.text;
    home pg_catalog.text;
    named record;
BEGIN
    SELECT
        pg_class.oid, pg_catalog.format('%I.%I'::pg_catalog.text, pg_namespace.nspname, pg_class.relname), adoption.home
    INTO STRICT old_oid, old_table, home
    FROM simplu_adoption_log.adoption
    JOIN pg_catalog.pg_class ON pg_class.oid = adoption.old_table::pg_catalog.oid
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace;
    EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS simplu_note_change ON %s', old_table);
    EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS simplu_note_truncation ON %s', old_table);
    FOR named IN
        SELECT pg_class.relname AS name
        FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_class ON pg_class.oid = pg_index.indexrelid
        JOIN pg_catalog.pg_class AS ours ON ours.relname = pg_class.relname
        WHERE
            pg_index.indrelid = old_oid
            AND ours.relnamespace = 'simplu_adoption'::pg_catalog.regnamespace::pg_catalog.oid
    LOOP
        EXECUTE pg_catalog.format(
            'ALTER INDEX %I.%I RENAME TO %I', home, named.name, pg_catalog.left(named.name, 46) || '_before_adoption'
        );
    END LOOP;
    EXECUTE pg_catalog.format('ALTER TABLE %s RENAME TO resources_before_adoption', old_table);
    FOR named IN
        SELECT relname AS name, relkind AS kind
        FROM pg_catalog.pg_class
        WHERE
            relnamespace = 'simplu_adoption'::pg_catalog.regnamespace::pg_catalog.oid
            AND relkind IN ('r', 'p', 'v', 'm', 'f')
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE simplu_adoption.%I SET SCHEMA %I', named.name, home);
    END LOOP;
    FOR named IN
        SELECT oid::pg_catalog.regprocedure AS name
        FROM pg_catalog.pg_proc
        WHERE pronamespace = 'simplu_adoption'::pg_catalog.regnamespace::pg_catalog.oid
    LOOP
        EXECUTE pg_catalog.format('ALTER ROUTINE %s SET SCHEMA %I', named.name, home);
    END LOOP;
    FOR named IN
        SELECT oid::pg_catalog.regtype AS name
        FROM pg_catalog.pg_type
        WHERE typnamespace = 'simplu_adoption'::pg_catalog.regnamespace::pg_catalog.oid AND typtype IN ('d', 'e')
    LOOP
        EXECUTE pg_catalog.format('ALTER TYPE %s SET SCHEMA %I', named.name, home);
    END LOOP;
    DROP SCHEMA simplu_adoption RESTRICT;
END
$$;
