"""The rules that the models leave out, and what leaves each out in code: wrong designs, or why none can.

A design that is named here is one of `wrong_designs`, `wrong_whole` or `queue_histories`. Where the simulation does not
have the code, the test is named that is about the rule.
"""

from __future__ import annotations

from typing import Final

import msgspec
from simulation.queue_histories import WRONG_ABOUT_QUEUES
from simulation.wrong_designs import MORE_WRONG_DESIGNS, WRONG_ABOUT_GAPS, WRONG_DESIGNS
from simulation.wrong_whole import MORE_WRONG_IN_WHOLE, WRONG_IN_WHOLE

LOSSES: Final = "what a shard has lost is not read again"
NO_PARENTS: Final = "children do not read their parents' records again"
GLANCE: Final = "children read the rows of their parents and do not write their own"
LISTED: Final = "children leave to their parents what is listed there"
AT_MAIN: Final = "a hold for a share begins at the main reader"
NOT_STICKY: Final = "a hold is not sticky"
IGNORED: Final = "the checkpoint ignores holds"
TOKEN_BEFORE_LOSS: Final = "a reader follows a move from a token that is older than a loss"

BY_DESIGN: Final[dict[str, str]] = {
    "letters: by the clock": "an operation that may be a dead letter is applied once its tenant is registered",
    "letters: finished before they are stored": "a record is finished before its dead letter is stored",
    "letters: no margin": "a dead letter of an unknown tenant has no margin",
    "letters: clocks further apart than the margin allows": "clocks are further apart than the margin of a dead letter",
    "lease: renewed by the counter, under the name in the row": (
        "a renewal expects the counter alone, and knows itself by the owner in the row"
    ),
    "lease: held under the name in the row": "a worker takes the owner in its copy of a lease for itself",
    "lease: hand-over frees the lease": "a hand-over frees the lease",
    "lease: take keeps the checkpoint owner": "a take leaves the checkpoint owner",
    "group: applies without a token": "a batch is applied whatever token its row has",
    "group: positions first": "a row is written in a transaction before that of its batch",
    "failover: no backfill": LOSSES,
    "failover: batches do not compare": "a batch is applied whatever token its row has",
    "failover: compared only when there is a batch": "the rows of idle shards are not kept fresh",
    "failover: noticed only by a running reader": "a reader trusts the row that it finds first",
    "failover: no row is the reader's own position": "a shard without a row lacks nothing",
    "failover: from the highest in the log": "a backfill starts at the reader's checkpoint",
    "failover: backfill of tenants seen": "a backfill reads only for tenants known by name",
    "failover: rewinds below the lowest pending only": "a row is compared with the reader's checkpoint",
    "failover: row by route": "a row leaves out tenants without a shard",
    "failover: claims what its batch did not apply": "a row has what is read",
    "failover: token is a counter": "the token of a row is a counter",
    "failover: keeps tokens of unknown outcomes": "tokens of unknown outcomes are kept for ever",
    "failover: claim kept over an adoption": "a row keeps its content when another row is adopted",
    "failover: held and read to of two times": "the held tenants of a row are those of a second ago",
    "failover: names tenants seen only": "a row names only the held tenants that the reader has seen",
    "failover: child backfills without its parent": NO_PARENTS,
    "failover: waiting child backfills without its parent": NO_PARENTS,
    "failover: child backfills without its grandparent": "children do not read their grandparents' records again",
    "failover: child adopts without writing": GLANCE,
    "failover: waiting child adopts without writing": GLANCE,
    "failover: child leaves what is listed to its parent": LISTED,
    "failover: child leaves what is listed while it reads that again": LISTED,
    "failover: child sends what is free without adopting again": (
        "rows are not read again when tenants are released from the parents"
    ),
    "failover: parents done at SHARD_END": "the parents are noted as done at their end",
    "failover: parents done early": "the parents are noted as done when re-reading them starts",
    "gap: never holds": "a shard goes on over a gap",
    "gap: whatever the age of the row": "a row that has left the stream is a gap, however new it is",
    "gap: whether the fleet was stopped or not": "a fleet that was stopped has gaps",
    "gap: its own reads prove that it was not": "what a reader has read itself proves that its fleet was not stopped",
    "gap: a hold in memory alone": "a gap is known to the reader alone that found it",
    "ownership: a hold is lifted when its target answers": NOT_STICKY,
    "ownership: checkpoint and rows ignore holds": IGNORED,
    "ownership: a split hold begins at the main reader": "a hold begins at the main reader",
    "ownership: a hold joins a catch-up that has passed it": "a hold joins a catch-up that has passed it",
    "ownership: sent without a look at the backfill of the shard": "other operations overtake re-read ones",
    "ownership: a backfill goes by remembered routes": "a backfill goes by remembered routes",
    "ownership: a backfill takes no tenant from another catch-up": "a backfill takes no tenant from another hold",
    "ownership: a backfill takes from an owner that is behind it": (
        "a backfill takes tenants from an owner that is behind it"
    ),
    "ownership: given to a backfill that has passed the operation": (
        "a backfill takes tenants of which it has passed operations"
    ),
    "ownership: a backfill goes on though its shard loses again": "a backfill that loses again goes on where it is",
    "ownership: operations of a given tenant stay in their lane": (
        "operations of a tenant stay in their lane when a catch-up comes to them"
    ),
    "ownership: a backfill goes on while it asks": "a backfill goes on while it asks",
    "ownership: two pipelines hand a tenant to each other": (
        "a tenant of which neither hold comes to all is read again from its own operations on"
    ),
    "ownership: two pipelines leave a tenant to each other": (
        "a tenant of which neither hold comes to all is left as it is"
    ),
    "ownership: a backfill forgets the parents": NO_PARENTS,
    "ownership: a child adopts without writing": GLANCE,
    "ownership: parents done early": "the parents are noted as done when re-reading them starts",
    "ownership: a backfill owns its shard, no tenant individually": "a backfill goes by remembered routes",
    "ownership: the oldest are shed in place of the newest": (
        "the oldest operations of a tenant over its share leave memory"
    ),
    "ownership: a hold for a share begins at the main reader": AT_MAIN,
    "ownership: a hold for a share forgets what is still to be read": AT_MAIN,
    "ownership: a share of nothing": "a tenant over its share is never read again",
    "move and failover: positions are not carried": "positions stay behind when a tenant moves",
    "move and failover: the target's row stays though the source has none": (
        "a row stays when a tenant comes from a shard without one"
    ),
    "move and failover: a reader makes a row beside the move": (
        "a reader makes its row though a tenant was moved in since it found none"
    ),
    "move and failover: a reader follows a move from any token": "a reader follows a move from any row of the target",
    "move and failover: a reader follows without the carried token": (
        "a reader follows a move from any token of the source"
    ),
    "move and failover: a reader follows without a look at the source": (
        "a reader follows a move without a look at the source"
    ),
    "move and failover: a reader follows from a token that it has found": (
        "a reader follows a move from a token that it has found"
    ),
    "move and failover: a reader follows from a token that is older than a loss of the source": TOKEN_BEFORE_LOSS,
    "move and failover: a reader follows from a token that is older than a loss of the target": TOKEN_BEFORE_LOSS,
    "put back: the message at fault alone": "a message returns to its queue, and those behind it go on",
    "put back: goes on before the dead letter": "a message is deleted before its dead letter is stored",
    "put back: no log": "the log does not drop messages that were applied",
    "feed: beyond the horizon": "the feed reads beyond the oldest running transaction",
    "log order: beyond the horizon": "the feed reads beyond the oldest running transaction",
    "feed: cursor before the publish": "the feed writes its cursor before the delivery",
    "feed: publish before the commit is safe": "the feed publishes commits that may be lost",
    "feed: target before the source": "the feed of a target does not wait for the source",
    "log order: target before the source": "the feed of a target does not wait for the source",
    "feed: the target trusts a cursor that may go back": "the feed of a target trusts a cursor that may go back",
    "feed: no reset": "no incarnation begins with a promotion",
    "feed: a cursor that is written on the promoted server": "a cursor is written on a server that was promoted since",
    "feed: a destination that is out of the file counts as told": (
        "a destination that is out of the file counts as told"
    ),
    "feed: a destination counts as told before the delivery": "a reset counts as delivered when it is due",
    "put back: deleted before it is safe": "an order event is deleted before its commit is safe",
    "move and failover: messages are deleted early": "an order event is deleted before its commit is safe",
}


class Elsewhere(msgspec.Struct, frozen=True):
    """Why the simulation cannot leave rules out, and the test about each; empty where there is none."""

    why: str
    tests: dict[str, str]


MOVER: Final = "integration/moving/test_mover.py::"
UNNAMED: Final = "integration/moving/test_unnamed_changes.py::"
FAILPOINTS: Final = "integration/moving/test_failpoints.py::test_same_command_ends_a_move_whose_mover_was_killed"
LOST_TARGET: Final = "integration/moving/test_lost_commits.py::test_rows_that_a_promoted_standby_lacks_are_copied_again"
END_OF_FENCE: Final = f"{MOVER}test_worker_ends_a_fence_after_its_deadline_only"
TWO_MOVERS: Final = f"{MOVER}test_two_movers_exclude_each_other"
UNDONE: Final = f"{MOVER}test_move_is_undone_before_its_commit"
LOST_TENANT: Final = f"{MOVER}test_target_that_lost_the_tenant_after_the_commit_gets_it_again_as_of_the_fence"
CLEANED: Final = f"{MOVER}test_cleanup_deletes_what_the_tenant_left_and_the_way_back_copies_everything"
RESTORER: Final = "integration/restoring/test_restorer.py::"
CATCHES_UP: Final = f"{RESTORER}test_tenant_catches_up_from_the_log_and_the_positions_of_the_backup"
UNDONE_SINCE: Final = f"{RESTORER}test_tenant_is_as_of_the_backup_and_what_came_since_stays_undone"
FENCED: Final = f"{RESTORER}test_operations_wait_and_no_mover_or_worker_ends_the_fence_while_rows_are_replaced"
IMPORTER: Final = "integration/importing/test_importer.py::"
INCOMING: Final = "integration/importing/test_hold.py::test_operations_of_an_incoming_tenant_are_never_overdue"
SAFE_BEFORE: Final = f"{IMPORTER}test_tenant_is_safe_before_it_is_active_and_before_the_report"
ANY_CHANGES: Final = (
    "integration/adoption/test_adopter_properties.py::test_copy_comes_to_what_the_old_table_is_whatever_is_done_to_it"
)
KILLED_ADOPTER: Final = (
    "integration/adoption/test_adopter.py::test_adopt_goes_on_where_it_was_when_it_was_killed_anywhere"
)
ERASER: Final = "integration/commands/test_erase_resource.py::"
FEED: Final = "integration/feed/test_feed.py::"
LOST_COMMITS: Final = f"{FEED}test_events_of_lost_commits_are_taken_back_and_come_again"
GAP: Final = f"{FEED}test_feed_tells_of_a_gap_when_the_log_has_lost_what_it_did_not_read"
PAGE: Final = "integration/feed/test_feed_page.py::"
MOVED: Final = "integration/feed/test_feed.py::"
IN_TURN: Final = f"{MOVED}test_events_of_the_target_wait_for_the_source_when_a_tenant_moves"
ORDERS: Final = "integration/sqs/test_order_handler.py::"
SAFETY: Final = "integration/sqs/test_commit_safety.py::"
CHAIN: Final = "unit/consumers/sqs/orders/test_chain.py::"
GROUPS: Final = "apply/test_group_commit.py::"
POSITIONS: Final = "integration/apply/test_writer_positions.py::"
SLOW_REGISTRATION: Final = (
    "integration/tenants/test_provisioning.py::test_provision_is_undone_when_its_transaction_took_too_long"
)
ONLY_ITS_OWN: Final = (
    "integration/tenants/test_provisioning.py::test_provision_waits_for_no_shard_but_its_own_in_a_marked_map"
)
ASKED: Final = "integration/kinesis/test_lease_table.py::test_lease_is_given_away_until_it_is_taken_or_kept"
FOLLOWER: Final = "simulation/test_kcl_follower.py::"

ELSEWHERE: Final = (
    Elsewhere(
        "the mover is a command, which the simulation does not have",
        {
            "move: an expired fence is read as active": END_OF_FENCE,
            "move: a commit by the token alone": END_OF_FENCE,
            "move: no token": TWO_MOVERS,
            "move: the token is taken at the fence": TWO_MOVERS,
            "move: writes to the target do not check the token": UNDONE,
            "move: the end of a fence keeps the token": END_OF_FENCE,
            "move: the fence does not wait for batches": (
                "integration/moving/test_isolation.py::"
                "test_move_keeps_every_operation_whatever_isolation_is_the_default"
            ),
            "move: the delta misses batches in flight": (
                "integration/moving/test_changes.py::test_log_of_a_tenant_is_read_completely_and_once_however_it_is_cut"
            ),
            "move: the log stays": f"{MOVER}test_tenant_moves_with_all_of_its_rows",
            "move: renames are not in the delta": (
                f"{UNNAMED}test_move_takes_along_what_the_log_does_not_name_when_it_changes_after_the_copy"
            ),
            "move: the delta has of an id the newest row alone": (
                f"{MOVER}test_notes_beside_the_log_are_moved_though_they_come_after_the_copy"
            ),
            "move: activated without the last delta": FAILPOINTS,
            "move: activated by the present token of the source": FAILPOINTS,
            "move: a rollback drops rows without a token": UNDONE,
            "move: a rollback after the commit makes the source active": (
                f"{MOVER}test_tenant_is_written_to_while_it_moves_there_and_back"
            ),
            "move: the delta to an earlier copy begins with the mover": (
                f"{UNNAMED}test_next_mover_takes_along_what_the_log_does_not_name_when_the_first_one_is_killed"
            ),
            "move: the delta of the way back begins with it": (
                f"{UNNAMED}test_warm_way_back_takes_along_what_the_log_does_not_name"
            ),
            "move: the way back trusts cleaned rows": CLEANED,
            "move: a cleanup deletes what has come back": CLEANED,
            "move and failover: any incoming row is activated": LOST_TARGET,
            "move and failover: ready without a token": (
                "integration/moving/test_failpoints.py::test_worker_ends_the_pause_of_a_move_whose_mover_was_killed"
            ),
            "move and failover: no wait for the source's replica": (
                "integration/moving/test_refused_moves.py::test_standbys_are_looked_at_before_a_move_begins"
            ),
            "move and failover: no second copy": LOST_TENANT,
            "move and failover: positions are merged before the commit": LOST_TENANT,
            "move and failover: positions are merged before the commit, and a ready tenant is read again": LOST_TENANT,
            "move and failover: the mover trusts its memory of the copy": LOST_TARGET,
        },
    ),
    Elsewhere(
        "the restorer is a command, which the simulation does not have",
        {
            "restore: the live log is kept to catch up": CATCHES_UP,
            "restore: the log of all tenants becomes the backup's": UNDONE_SINCE,
            "restore: the position stays": CATCHES_UP,
            "restore: the lower position keeps its token": CATCHES_UP,
            "restore: the position is lowered after the release": CATCHES_UP,
            "restore: the log is the backup's as of the backup": UNDONE_SINCE,
            "restore: the log is emptied as of the backup": UNDONE_SINCE,
            "restore: the log lacks what only the backup has": (f"{RESTORER}test_log_gets_what_only_the_backup_has"),
            "restore: no fence": FENCED,
            "restore: the fence does not wait for batches": (
                "integration/restoring/test_catch_up.py::"
                "test_restored_tenant_and_its_neighbour_have_each_operation_once"
            ),
            "restore: a worker ends the fence while rows are replaced": FENCED,
            "restore: writes do not check the token": f"{RESTORER}test_restorer_that_wakes_up_late_writes_nothing",
            "restore: runs differ by the token alone": f"{RESTORER}test_two_restorers_exclude_each_other",
            "restore: a restorer trusts its memory of the copy": (
                f"{RESTORER}test_restorer_does_not_trust_its_memory_of_a_shard_that_has_lost_commits"
            ),
            "restore: what is half replaced is exported again": (
                f"{RESTORER}test_restorer_that_is_killed_is_continued_by_the_next_one"
            ),
            "restore: the end is reported before the replica has it": (
                f"{RESTORER}test_end_without_an_answer_is_no_new_beginning"
            ),
        },
    ),
    Elsewhere(
        "importers, adopters and erasers are commands, which the simulation does not have",
        {
            "import: only what change columns name is compared": (
                f"{IMPORTER}test_changes_that_cannot_be_followed_are_found_at_the_cut_over"
            ),
            "import: writes do not check the run": f"{IMPORTER}test_each_tenant_is_imported_by_one_of_two_runs_at_once",
            "import: rows are activated that another server has": INCOMING,
            "import: rows are activated that the replica lacks": SAFE_BEFORE,
            "import: the end is reported before the replica has it": SAFE_BEFORE,
            "import: nothing is read again for incoming tenants": INCOMING,
            "import: what is active is discarded": f"{IMPORTER}test_discard_deletes_the_tenants_that_are_not_active",
            "adopt: rows are copied before triggers watch them": ANY_CHANGES,
            "adopt: the last changes are copied before the swap": ANY_CHANGES,
            "adopt: changes are noted as done before they are": KILLED_ADOPTER,
            "adopt: an adopter trusts its memory of the copy": KILLED_ADOPTER,
            "erase: a mover has read the row": f"{ERASER}test_move_that_has_begun_ends_first",
            "erase: the token is not checked": f"{ERASER}test_erasure_ends_where_a_mover_has_come_meanwhile",
            "erase: results before the row": f"{ERASER}test_batch_in_flight_leaves_no_result",
            "erase: the row beside batches": f"{ERASER}test_batch_in_flight_leaves_no_result",
            "erase: at the tenant's home alone": f"{ERASER}test_former_home_loses_it_too_before_a_rollback",
            "erase: the end is reported before the replica has it": f"{ERASER}test_erasure_is_reported_when_it_is_safe",
        },
    ),
    Elsewhere(
        "two replicas hold a lease, until the next renewal of one expects an owner that it is not: the log drops what"
        " both apply",
        {
            "lease: any row one higher is the own write": (
                "unit/consumers/kinesis/leases/test_lease.py::"
                "test_row_is_our_own_landed_write_when_we_own_it_one_step_on"
            )
        },
    ),
    Elsewhere(
        "no design of the feed, or of a follower of the log, leaves it out so far",
        {
            "feed: a reset behind the newest batch": (
                "unit/feed/test_destination_feed.py::test_reset_is_at_the_cursor_and_comes_before_all_else"
            ),
            "feed: a queue takes an event of a new incarnation for a repetition": (
                "integration/feed/test_aws_destinations.py::test_event_comes_again_from_another_publisher_or_incarnation"
            ),
            "feed: a receiver does not note that an event came again": (
                f"{PAGE}test_receiver_keeps_what_came_again_before_the_reset"
            ),
            "feed: a receiver applies what was sent before a reset": (
                f"{PAGE}test_receiver_drops_what_comes_later_than_the_reset_behind_it"
            ),
            "feed: what was deleted is not told": GAP,
            "feed: what was deleted is asked for before the read": GAP,
            "feed: the cursor passes an arrival that waits": IN_TURN,
            "log order: by number alone": LOST_COMMITS,
            "log order: only what is behind the newest is undone": LOST_COMMITS,
            "log order: forgets what is not safe yet": LOST_COMMITS,
            "log order: marker before the fence": IN_TURN,
        },
    ),
    Elsewhere(
        "it is in SQL, or in the transaction of the writer, in place of which the simulation has a model",
        {
            "group: locks as they come": (
                f"{POSITIONS}test_rows_are_written_in_one_order_whether_they_are_known_or_new"
            ),
            "group: new rows last": f"{POSITIONS}test_rows_are_written_in_one_order_whether_they_are_known_or_new",
            "group: an error for all": f"unit/shards/{GROUPS}test_readers_that_are_behind_fail_alone",
            "group: drops the others": f"unit/shards/{GROUPS}test_readers_that_are_behind_fail_alone",
            "group: writes one row of many": f"integration/{GROUPS}test_batches_that_wait_go_in_one_transaction",
            "home: a silent shard that may have it is ignored": ONLY_ITS_OWN,
            "home: the pin decides in a map like any": ONLY_ITS_OWN,
            "home: the mark stays when the tenant is not in place": (
                "integration/routing/test_shard_watch.py::test_reload_takes_a_marked_map_when_all_are_in_place"
            ),
            "home: a shard forgets a tenant that has left": CLEANED,
            "home: a map like any, a shard lost for good": ONLY_ITS_OWN,
            "letters: created_at before a slow commit": SLOW_REGISTRATION,
            "letters: margin, slow registration": SLOW_REGISTRATION,
            "letters: cached answer": (
                "unit/consumers/pipeline/test_home_lookup.py::"
                "test_tenant_is_asked_for_anew_before_something_is_given_up"
            ),
        },
    ),
    Elsewhere(
        "no design of the handler of order events leaves it out so far",
        {
            "put back: the run of one tenant, the next goes on": (
                f"{CHAIN}test_messages_behind_one_that_stops_the_chain_are_put_back"
            ),
            "put back: stays in its lane too": f"{CHAIN}test_messages_behind_one_that_stops_the_chain_are_put_back",
            "put back: those behind are visible before it": (
                "unit/consumers/sqs/receive/test_lanes.py::test_t22_rest_of_a_failed_group_goes_back_together"
            ),
            "put back: visible at once, its shard still down": (
                f"{ORDERS}test_orders_are_applied_when_their_shard_is_back"
            ),
            "put back: next transaction to the shard before it is safe": (
                f"{ORDERS}test_large_group_goes_on_once_its_first_batch_is_safe"
            ),
            "put back: next run to another shard before it is safe": (
                f"{ORDERS}test_group_of_several_tenants_is_applied_in_its_order"
            ),
            "put back: two tenants in one transaction": (
                f"{CHAIN}test_runs_are_of_one_tenant_each_behind_the_one_before"
            ),
            "put back: a dead letter without a mark": (f"{ORDERS}test_order_is_given_up_after_its_last_try"),
            "put back: a mark that is not safe": f"{SAFETY}test_order_is_given_up_once_its_mark_is_safe",
            "put back: deletes what it lost, and leaves the mark to others": (
                "simulation/test_receiver.py::test_operation_is_given_up_after_its_dead_letter_and_before_the_delete"
            ),
            "put back: overdue, lost, applied after all": (
                f"{ORDERS}test_unregistered_tenant_is_given_up_when_overdue"
            ),
            "put back: overdue, and a worker takes a lost message for its own": (
                f"{ORDERS}test_unregistered_tenant_is_given_up_when_overdue"
            ),
        },
    ),
    Elsewhere(
        "it would be another structure: here each source has one lane for a shard, with one batch in flight",
        {"ownership: lanes of each owner": ""},
    ),
    Elsewhere(
        "it needs followers of a KCL, or people, that no weather has",
        {
            "lease: assigned lease taken by the counter alone": (
                f"{FOLLOWER}test_follower_reads_what_the_leader_assigns_and_nothing_else"
            ),
            "lease: hand-over of a lost lease left to a leader that died": (
                f"{FOLLOWER}test_follower_ends_the_hand_over_of_a_lease_that_it_has_lost"
            ),
            "lease: request to release is for any owner": ASKED,
            "lease: take leaves the request to release": ASKED,
        },
    ),
    Elsewhere(
        "in the end of each history all is repaired, so that nothing waits for ever",
        {
            "ownership: the bound on pipelines counts the held": (
                "unit/consumers/kinesis/reader/test_catch_up.py::test_oldest_hold_has_one_place_and_the_shortest_the_others"
            )
        },
    ),
    Elsewhere(
        "it takes a restore beyond the retention while a reader begins below the row, which no scene of gaps has",
        {
            "gap: compared with the reader": (
                "unit/consumers/kinesis/recovery/test_gap.py::test_shard_went_back_only_behind_the_checkpoint"
            )
        },
    ),
)
DESIGNS: Final = frozenset(
    {*WRONG_DESIGNS, *MORE_WRONG_DESIGNS, *WRONG_ABOUT_GAPS, *WRONG_ABOUT_QUEUES, *WRONG_IN_WHOLE, *MORE_WRONG_IN_WHOLE}
)
