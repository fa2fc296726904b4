-- Rename the old table, and move ours to its place. Only its indexes can have names of ours: they are renamed, too. The
-- last statement fails, and with it the swap, if anything of ours has not moved.

DO $$
DECLARE
    ours CONSTANT pg_catalog.oid := 'simplu_adoption'::pg_catalog.regnamespace;
    old_table CONSTANT pg_catalog.regclass := 'public.resources'::pg_catalog.regclass;
    home CONSTANT pg_catalog.text := (SELECT nspname FROM pg_catalog.pg_class
        JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = old_table::pg_catalog.oid);
    command pg_catalog.text;
BEGIN
    FOR command IN
        SELECT pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', name, old_table)
        FROM pg_catalog.unnest('{simplu_note_change,simplu_note_truncation}'::pg_catalog.text[]) AS made (name)
        UNION ALL
        SELECT pg_catalog.format(
            'ALTER INDEX %s RENAME TO %I', indexrelid::pg_catalog.regclass,
            pg_catalog.left(theirs.relname::pg_catalog.text, 46) || '_before_adoption'::pg_catalog.text
        )
        FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_class AS theirs ON theirs.oid = pg_index.indexrelid
        JOIN pg_catalog.pg_class ON pg_class.relname = theirs.relname AND pg_class.relnamespace = ours
        WHERE pg_index.indrelid = old_table::pg_catalog.oid
        UNION ALL
        SELECT pg_catalog.format('ALTER TABLE %s RENAME TO resources_before_adoption', old_table)
        UNION ALL
        SELECT pg_catalog.format('ALTER ROUTINE %s SET SCHEMA %I', oid::pg_catalog.regprocedure, home)
        FROM pg_catalog.pg_proc
        WHERE pronamespace = ours
        UNION ALL
        SELECT pg_catalog.format('ALTER TABLE %s SET SCHEMA %I', oid::pg_catalog.regclass, home)
        FROM pg_catalog.pg_class
        WHERE relnamespace = ours AND relkind IN ('r', 'p', 'v', 'm', 'f')
        UNION ALL
        SELECT pg_catalog.format('ALTER TYPE %s SET SCHEMA %I', oid::pg_catalog.regtype, home)
        FROM pg_catalog.pg_type
        WHERE typnamespace = ours AND typtype IN ('d', 'e')
    LOOP
        EXECUTE command;
    END LOOP;
    DROP SCHEMA simplu_adoption RESTRICT;
END
$$;
