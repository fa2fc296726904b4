-- The journal of transfers, and the rows that their transactions lock. A command writes only with its token.

-- name: open_transfer
-- Begin, or begin again, as the command with the token $4. Without a detail $6 that of before stays, but for what its
-- command noted about itself.
INSERT INTO public.transfers AS known (tenant_id, kind, place, token, step, detail)
VALUES ($1, $2, $3, $4, $5, coalesce($6::pg_catalog.text::pg_catalog.jsonb, '{}'))
ON CONFLICT (tenant_id, kind) DO UPDATE SET
    place = excluded.place, token = excluded.token, step = excluded.step, writes = 0,
    detail = CASE
        WHEN $6::pg_catalog.text IS NULL THEN known.detail - '{error,stopped,seenAt}'::pg_catalog.text[]
        ELSE excluded.detail
    END,
    started_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp();

-- name: note_transfer
-- The step $4, and the detail $5 unless null. If given, only after $6 writes. The row stays locked.
UPDATE public.transfers
SET
    step = $4::pg_catalog.text, detail = coalesce($5::pg_catalog.text::pg_catalog.jsonb, detail), writes = writes + 1,
    updated_at = pg_catalog.clock_timestamp()
WHERE tenant_id = $1 AND kind = $2 AND token = $3 AND ($6::bigint IS NULL OR writes = $6::bigint);

-- name: note_command
-- The command with the token $3 runs, and what else $4 tells; with $5 it has gone on. Never sets the step: a commit that
-- this statement has waited for stays.
UPDATE public.transfers
SET
    detail = detail || (
        $4::pg_catalog.text::pg_catalog.jsonb
        || pg_catalog.jsonb_build_object('seenAt'::pg_catalog.text, pg_catalog.clock_timestamp())
    ),
    updated_at = CASE WHEN $5 THEN pg_catalog.clock_timestamp() ELSE updated_at END
WHERE
    tenant_id = $1 AND kind = $2 AND token = $3
    AND step IN ('open', 'committed', 'undoing', 'replacing', 'copied');

-- name: take_transfer
-- Leave the token $3 and the step $4 in the row, so that the command before writes no more; waits for its transaction.
-- What that noted about itself goes. One that is done is taken for a cleanup alone.
UPDATE public.transfers
SET
    token = $3, step = $4::pg_catalog.text, detail = detail - '{error,stopped,seenAt}'::pg_catalog.text[],
    updated_at = pg_catalog.clock_timestamp()
WHERE tenant_id = $1 AND kind = $2 AND (step <> 'done' OR $4::pg_catalog.text = 'cleaning')
RETURNING :transfer_columns;

-- name: drop_transfer
DELETE FROM public.transfers WHERE tenant_id = $1 AND kind = $2;

-- name: lock_tenant_for
-- Begins each transaction that writes the rows of the tenant $1 in the state $2 with the token $3: no other command has
-- come, or comes before the commit.
SELECT business_type, epoch, :server_run
FROM public.tenants
WHERE id = $1 AND state = $2 AND move_token = $3
FOR SHARE;
