// Applies the operations of a stream to Postgres with the AWS SDK for Go and pgx, a transaction a reply of GetRecords:
// consumer STREAM RECORDS, the most of a reply.
//
// Kinesis, its keys and the database are in the environment. The position in each stream shard is a row of the database,
// written in the same transaction. The unique key of the log makes each operation take effect once: a transaction with
// one that the log has is rolled back, and repeated without it. One process reads the stream, until it is killed.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"net/http"
)

const (
	readInterval    = 200 * time.Millisecond // five reads a second of a stream shard: Kinesis's quota
	retryAfter      = time.Second
	uniqueViolation = "23505"

	createPositions = `
CREATE TABLE IF NOT EXISTS consumer_positions (stream_shard_id text PRIMARY KEY, sequence_number text NOT NULL)`
	readPosition  = `SELECT sequence_number FROM consumer_positions WHERE stream_shard_id = $1`
	writePosition = `
INSERT INTO consumer_positions (stream_shard_id, sequence_number) VALUES ($1, $2)
ON CONFLICT (stream_shard_id) DO UPDATE SET sequence_number = excluded.sequence_number`
	readLogged = `
SELECT tenant_id, request_id FROM operations
WHERE (tenant_id, request_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))`
	upsert = `
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
VALUES ($1, 'gym', $2, $3, $4, $5, $5)
ON CONFLICT (id, "resourceName", "resourceId")
DO UPDATE SET data = excluded.data, "lastUpdated" = excluded."lastUpdated"`
	// Patches have no object, and documents no null: so this is RFC 7396.
	patch = `
UPDATE resources SET data = jsonb_strip_nulls(data || $4), "lastUpdated" = $5
WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = $3`
	remove = `DELETE FROM resources WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = $3`
	list   = `
UPDATE operations
SET result = (
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(page.data), '[]'), 'page', 1, 'limit', 20)
    FROM (
        SELECT jsonb_build_object('resourceId', "resourceId", 'data', data, 'date', date, 'lastUpdated', "lastUpdated")
            AS data
        FROM resources
        WHERE id = $1 AND "resourceName" = $3 AND data @> $4
        ORDER BY "resourceId"
        LIMIT 21
    ) AS page
)
WHERE tenant_id = $1 AND request_id = $2`
)

var logColumns = []string{"tenant_id", "request_id", "operation", "resource_type", "resource_id", "status", "digest",
	"source", "stream_shard_id", "sequence_number", "requested_at", "received_at"}

type logKey struct{ tenant, request string }

type operation struct {
	Kind         string          `json:"operation"`
	BusinessID   string          `json:"businessId"`
	LocationID   string          `json:"locationId"`
	ResourceType string          `json:"resourceType"`
	ResourceID   *string         `json:"resourceId"`
	Data         json.RawMessage `json:"data"`
	Filters      json.RawMessage `json:"filters"`
	Timestamp    time.Time       `json:"timestamp"`
	RequestID    string          `json:"requestId"`

	key    logKey
	record types.Record
}

type consumer struct {
	stream   string
	records  int32
	kinesis  *kinesis.Client
	database *pgxpool.Pool
}

func main() {
	ctx := context.Background()
	records, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	database, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := database.Exec(ctx, createPositions); err != nil {
		log.Fatal(err)
	}
	client := kinesis.New(kinesis.Options{
		Region:           "us-east-1",
		BaseEndpoint:     aws.String(os.Getenv("AWS_ENDPOINT_URL_KINESIS")),
		Credentials:      aws.CredentialsProviderFunc(credentials),
		RetryMaxAttempts: 10,
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(transport *http.Transport) {
			transport.MaxIdleConnsPerHost = 256 // a connection a stream shard
		}),
	})
	one := consumer{stream: os.Args[1], records: int32(records), kinesis: client, database: database}
	shards, err := client.ListShards(ctx, &kinesis.ListShardsInput{StreamName: &one.stream})
	if err != nil {
		log.Fatal(err)
	}
	for _, shard := range shards.Shards {
		go one.follow(ctx, *shard.ShardId)
	}
	select {}
}

func credentials(context.Context) (aws.Credentials, error) {
	key, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	return aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}, nil
}

// follow applies the records of a stream shard; after an error from the last position on.
func (c *consumer) follow(ctx context.Context, shard string) {
	for {
		if err := c.applyAll(ctx, shard); err == nil {
			return
		} else {
			log.Printf("%s: %v", shard, err)
		}
		time.Sleep(retryAfter)
	}
}

// applyAll applies the records of a stream shard to its end; the next reply is read while one is applied.
func (c *consumer) applyAll(ctx context.Context, shard string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	iterator, err := c.iterator(ctx, shard)
	if err != nil {
		return err
	}
	replies, failed := make(chan []types.Record), make(chan error, 1)
	go func() {
		failed <- c.read(ctx, iterator, replies)
		close(replies)
	}()
	for records := range replies {
		if err := c.apply(ctx, shard, records); err != nil {
			return err
		}
	}
	return <-failed
}

// iterator returns an iterator after the last position, or at the oldest record.
func (c *consumer) iterator(ctx context.Context, shard string) (*string, error) {
	input := &kinesis.GetShardIteratorInput{
		StreamName: &c.stream, ShardId: &shard, ShardIteratorType: types.ShardIteratorTypeTrimHorizon,
	}
	var position string
	switch err := c.database.QueryRow(ctx, readPosition, shard).Scan(&position); {
	case err == nil:
		input.ShardIteratorType, input.StartingSequenceNumber = types.ShardIteratorTypeAfterSequenceNumber, &position
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, err
	}
	output, err := c.kinesis.GetShardIterator(ctx, input)
	if err != nil {
		return nil, err
	}
	return output.ShardIterator, nil
}

// read sends the records of each reply, to the end of the stream shard.
func (c *consumer) read(ctx context.Context, iterator *string, replies chan<- []types.Record) error {
	ticker := time.NewTicker(readInterval)
	defer ticker.Stop()
	for iterator != nil {
		reply, err := c.kinesis.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: iterator, Limit: &c.records})
		if err != nil {
			return err
		}
		if len(reply.Records) > 0 {
			select {
			case replies <- reply.Records:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		iterator = reply.NextShardIterator
		<-ticker.C
	}
	return nil
}

// apply applies records in one transaction, without those that the log has.
func (c *consumer) apply(ctx context.Context, shard string, records []types.Record) error {
	operations, err := decode(records)
	if err != nil {
		return err
	}
	position := *records[len(records)-1].SequenceNumber
	for {
		err := pgx.BeginFunc(ctx, c.database, func(tx pgx.Tx) error {
			return write(ctx, tx, shard, operations, position)
		})
		if cause := (*pgconn.PgError)(nil); !errors.As(err, &cause) || cause.Code != uniqueViolation {
			return err
		}
		if operations, err = c.unlogged(ctx, operations); err != nil {
			return err
		}
	}
}

func decode(records []types.Record) ([]operation, error) {
	operations := make([]operation, len(records))
	for i, record := range records {
		one := &operations[i]
		if err := json.Unmarshal(record.Data, one); err != nil {
			return nil, err
		}
		one.key, one.record = logKey{one.BusinessID + "-" + one.LocationID, one.RequestID}, record
	}
	return operations, nil
}

// write copies the log rows, and sends the statements of all operations in their order in one go.
func write(ctx context.Context, tx pgx.Tx, shard string, operations []operation, position string) error {
	rows := pgx.CopyFromSlice(len(operations), func(i int) ([]any, error) {
		one := &operations[i]
		digest := sha256.Sum256(one.record.Data)
		return []any{one.key.tenant, one.key.request, one.Kind, one.ResourceType, one.ResourceID, "succeeded",
			digest[:], "kinesis", shard, one.record.SequenceNumber, one.Timestamp,
			one.record.ApproximateArrivalTimestamp}, nil
	})
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"operations"}, logColumns, rows); err != nil {
		return err
	}
	batch := &pgx.Batch{}
	for i := range operations {
		one := &operations[i]
		tenant := one.key.tenant
		switch one.Kind {
		case "create", "update":
			batch.Queue(upsert, tenant, one.ResourceType, one.ResourceID, one.Data, one.Timestamp)
		case "patch":
			batch.Queue(patch, tenant, one.ResourceType, one.ResourceID, one.Data, one.Timestamp)
		case "delete":
			batch.Queue(remove, tenant, one.ResourceType, one.ResourceID)
		case "list":
			batch.Queue(list, tenant, one.key.request, one.ResourceType, one.Filters)
		default:
			return fmt.Errorf("unknown operation %q", one.Kind)
		}
	}
	batch.Queue(writePosition, shard, position)
	return tx.SendBatch(ctx, batch).Close()
}

// unlogged returns the operations that the log does not have, each once.
func (c *consumer) unlogged(ctx context.Context, operations []operation) ([]operation, error) {
	tenants, requests := make([]string, len(operations)), make([]string, len(operations))
	for i, one := range operations {
		tenants[i], requests[i] = one.key.tenant, one.key.request
	}
	rows, err := c.database.Query(ctx, readLogged, tenants, requests)
	if err != nil {
		return nil, err
	}
	known := map[logKey]bool{}
	var key logKey
	_, err = pgx.ForEachRow(rows, []any{&key.tenant, &key.request}, func() error {
		known[key] = true
		return nil
	})
	found := make([]operation, 0, len(operations))
	for _, one := range operations {
		if !known[one.key] {
			known[one.key] = true
			found = append(found, one)
		}
	}
	return found, err
}
