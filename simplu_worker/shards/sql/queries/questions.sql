-- What a question needs beside its own statement (shards/questions/).

-- name: inspect_reader
-- The role, one that it is or may become and that can do more than read (NULL if there is none), and whether the
-- policies show it the rows of one tenant at most.
SELECT
    current_user::pg_catalog.text AS name,
    (
        SELECT able.rolname::pg_catalog.text
        FROM pg_catalog.pg_roles AS able
        WHERE
            pg_catalog.pg_has_role(able.oid, 'MEMBER'::pg_catalog.text)
            AND (
                able.rolsuper
                OR able.rolreplication -- it makes and drops replication slots, in no transaction
                OR able.rolname IN (
                    'pg_signal_backend', 'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'
                )
                OR EXISTS (
                    SELECT
                    FROM pg_catalog.pg_class AS resources
                    JOIN pg_catalog.pg_class AS ours
                        ON ours.relnamespace = resources.relnamespace AND ours.relowner = resources.relowner
                    WHERE
                        resources.oid = 'public.resources'::pg_catalog.regclass::pg_catalog.oid
                        AND ours.relkind = 'r'
                        AND pg_catalog.has_table_privilege(
                            able.oid, ours.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'::pg_catalog.text
                        )
                )
            )
        ORDER BY able.rolname <> current_user, able.rolname
        LIMIT 1
    ) AS able,
    pg_catalog.row_security_active('public.resources'::pg_catalog.regclass)
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_policy
        CROSS JOIN LATERAL pg_catalog.unnest(pg_policy.polroles) AS granted (role)
        WHERE
            pg_policy.polrelid = 'public.resources'::pg_catalog.regclass::pg_catalog.oid
            AND pg_policy.polpermissive
            AND pg_policy.polcmd IN ('r', '*')
            AND pg_policy.polname NOT IN ('simplu_reader', 'simplu_writer')
            AND (granted.role = 0::pg_catalog.oid OR pg_catalog.pg_has_role(granted.role, 'USAGE'::pg_catalog.text))
    ) AS sees_one_tenant;

-- name: name_tenant
-- The tenant whose rows the policies show to the role, until the end of the transaction.
SELECT pg_catalog.set_config('simplu.tenant', $1::pg_catalog.text, true);
