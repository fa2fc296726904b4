-- The shard map, when it is read anew.

-- name: count_living_tenants
-- How many tenants would be lost with this shard: all of its rows but those that are not its tenants any more. Reads
-- the whole table, without a lock; asked only of a shard that is about to be left out of the map.
SELECT count(*) FROM tenants WHERE state NOT IN ('moved', 'destroyed');
