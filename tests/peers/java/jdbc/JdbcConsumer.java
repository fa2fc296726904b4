import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.sql.DataSource;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.exceptions.InvalidStateException;
import software.amazon.kinesis.exceptions.ShutdownException;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.RecordProcessorCheckpointer;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * Applies the operations of a stream to Postgres with the Kinesis Client Library and JDBC batches, a transaction a reply
 * of GetRecords: java JdbcConsumer NAME=VALUE ...
 *
 * <p>kinesis and dynamodb are endpoints, postgres is a JDBC URL; application, stream and worker are names; failover is the
 * failover time in milliseconds, records the most of a reply, pool the number of connections.
 *
 * <p>The unique key of the log makes each operation take effect once: a transaction with one that the log has is rolled
 * back, and repeated without it. SIGTERM has it finish its transactions, checkpoint and end.
 */
public class JdbcConsumer {
    // Without ON CONFLICT: the driver does not tell which rows of a rewritten batch are new.
    private static final String LOG = """
            INSERT INTO operations (tenant_id, request_id, operation, resource_type, resource_id, status, digest, source,
                stream_shard_id, sequence_number, requested_at, received_at)
            VALUES (?, ?, ?, ?, ?, 'succeeded', ?, 'kinesis', ?, ?, ?::timestamptz, ?)
            """;
    private static final String LOGGED = """
            SELECT tenant_id, request_id FROM operations
            WHERE (tenant_id, request_id) IN (SELECT * FROM unnest(?::text[], ?::text[]))
            """;
    private static final String UPSERT = """
            INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
            VALUES (?, 'gym', ?, ?, ?::jsonb, ?::timestamptz, ?::timestamptz)
            ON CONFLICT (id, "resourceName", "resourceId")
            DO UPDATE SET data = excluded.data, "lastUpdated" = excluded."lastUpdated"
            """;
    // Patches have no object, and documents no null: so this is RFC 7396.
    private static final String PATCH = """
            UPDATE resources SET data = jsonb_strip_nulls(data || ?::jsonb), "lastUpdated" = ?::timestamptz
            WHERE id = ? AND "resourceName" = ? AND "resourceId" = ?
            """;
    private static final String DELETE =
            "DELETE FROM resources WHERE id = ? AND \"resourceName\" = ? AND \"resourceId\" = ?";
    private static final String LIST = """
            UPDATE operations
            SET result = (
                SELECT jsonb_build_object('items', coalesce(jsonb_agg(page.data), '[]'), 'page', 1, 'limit', 20)
                FROM (
                    SELECT jsonb_build_object(
                        'resourceId', "resourceId", 'data', data, 'date', date, 'lastUpdated', "lastUpdated"
                    ) AS data
                    FROM resources
                    WHERE id = ? AND "resourceName" = ? AND data @> ?::jsonb
                    ORDER BY "resourceId"
                    LIMIT 21
                ) AS page
            )
            WHERE tenant_id = ? AND request_id = ?
            """;
    private static final String UNIQUE_VIOLATION = "23505";
    private static final long RETRY_MILLIS = 1000;
    // A checkpoint is a write to DynamoDB. What is read again after a failure is in the log.
    private static final long CHECKPOINT_NANOS = TimeUnit.SECONDS.toNanos(10);
    private static final ObjectMapper JSON = new ObjectMapper();

    record LogKey(String tenant, String request) {}

    record Place(String tenant, String type) {}

    record Resource(Place place, String id) {}

    /** An operation; data are those of its document, or the filters of a list. */
    record Operation(LogKey key, String kind, Resource resource, String data, String timestamp, byte[] digest,
            String sequenceNumber, OffsetDateTime receivedAt) {
        static Operation of(KinesisClientRecord record) {
            var bytes = new byte[record.data().remaining()];
            record.data().duplicate().get(bytes);
            JsonNode node;
            try {
                node = JSON.readTree(bytes);
            } catch (IOException wrong) {
                throw new UncheckedIOException(wrong);
            }
            var tenant = node.get("businessId").textValue() + "-" + node.get("locationId").textValue();
            var kind = node.get("operation").textValue();
            var place = new Place(tenant, node.get("resourceType").textValue());
            return new Operation(new LogKey(tenant, node.get("requestId").textValue()), kind,
                    new Resource(place, node.path("resourceId").textValue()),
                    node.path(kind.equals("list") ? "filters" : "data").toString(), node.get("timestamp").textValue(),
                    sha256(bytes), record.sequenceNumber(), record.approximateArrivalTimestamp().atOffset(ZoneOffset.UTC));
        }

        boolean isList() {
            return kind.equals("list");
        }
    }

    /** Operations that statements of several rows may apply in any order: no two are about one resource. */
    static class Wave {
        final List<Operation> upserts = new ArrayList<>();
        final List<Operation> patches = new ArrayList<>();
        final List<Operation> deletes = new ArrayList<>();
        final List<Operation> lists = new ArrayList<>();

        /** Return the fewest waves that keep the order of each resource, and of each list among writes. */
        static List<Wave> split(List<Operation> operations) {
            var waves = new ArrayList<Wave>();
            var writtenIn = new HashMap<Resource, Integer>(); // the last wave that writes the resource
            var usedIn = new HashMap<Place, Integer>(); // the last wave with an operation there
            var listedIn = new HashMap<Place, Integer>(); // the last wave with a list there
            for (var operation : operations) {
                var place = operation.resource.place;
                int last = operation.isList() ? usedIn.getOrDefault(place, -1)
                        : Math.max(listedIn.getOrDefault(place, -1), writtenIn.getOrDefault(operation.resource, -1));
                int number = last + 1;
                usedIn.merge(place, number, Math::max);
                if (operation.isList()) {
                    listedIn.put(place, number);
                } else {
                    writtenIn.put(operation.resource, number);
                }
                if (number == waves.size()) {
                    waves.add(new Wave());
                }
                waves.get(number).add(operation);
            }
            return waves;
        }

        private void add(Operation operation) {
            switch (operation.kind) {
                case "create", "update" -> upserts.add(operation);
                case "patch" -> patches.add(operation);
                case "delete" -> deletes.add(operation);
                case "list" -> lists.add(operation);
                default -> throw new IllegalArgumentException("unknown operation " + operation.kind);
            }
        }
    }

    interface Binder {
        void bind(PreparedStatement statement, Operation operation) throws SQLException;
    }

    static class Processor implements ShardRecordProcessor {
        private final DataSource database;
        private String shard;
        private long checkpointedAt = System.nanoTime();

        Processor(DataSource database) {
            this.database = database;
        }

        @Override
        public void initialize(InitializationInput input) {
            shard = input.shardId();
        }

        /** Apply the records, until it succeeds: the library skips records whose processing throws. */
        @Override
        public void processRecords(ProcessRecordsInput input) {
            List<Operation> operations = null;
            while (operations == null || !operations.isEmpty()) {
                try (var connection = database.getConnection()) {
                    if (operations == null) {
                        operations = input.records().stream().map(Operation::of).toList();
                    }
                    operations = apply(connection, operations);
                } catch (SQLException | RuntimeException error) {
                    System.err.println(shard + ": " + error);
                    sleep();
                }
            }
            if (System.nanoTime() - checkpointedAt > CHECKPOINT_NANOS) {
                checkpoint(input.checkpointer());
                checkpointedAt = System.nanoTime();
            }
        }

        /** Apply operations in one transaction; return those to try again, if the log has others of them. */
        private List<Operation> apply(Connection connection, List<Operation> operations) throws SQLException {
            try {
                run(connection, LOG, operations, this::bindLog);
                for (var wave : Wave.split(operations)) {
                    run(connection, UPSERT, wave.upserts, (statement, one) -> {
                        bindResource(statement, 1, one.resource);
                        statement.setString(4, one.data);
                        statement.setString(5, one.timestamp);
                        statement.setString(6, one.timestamp);
                    });
                    run(connection, PATCH, wave.patches, (statement, one) -> {
                        statement.setString(1, one.data);
                        statement.setString(2, one.timestamp);
                        bindResource(statement, 3, one.resource);
                    });
                    run(connection, DELETE, wave.deletes, (statement, one) -> bindResource(statement, 1, one.resource));
                    run(connection, LIST, wave.lists, (statement, one) -> {
                        statement.setString(1, one.key.tenant);
                        statement.setString(2, one.resource.place.type);
                        statement.setString(3, one.data);
                        statement.setString(4, one.key.tenant);
                        statement.setString(5, one.key.request);
                    });
                }
                connection.commit();
                return List.of();
            } catch (SQLException error) {
                connection.rollback();
                if (!UNIQUE_VIOLATION.equals(error.getSQLState())) {
                    throw error;
                }
                return unlogged(connection, operations);
            }
        }

        private void run(Connection connection, String query, List<Operation> operations, Binder binder)
                throws SQLException {
            if (operations.isEmpty()) {
                return;
            }
            try (var statement = connection.prepareStatement(query)) {
                for (var operation : operations) {
                    binder.bind(statement, operation);
                    statement.addBatch();
                }
                statement.executeBatch();
            }
        }

        private void bindLog(PreparedStatement statement, Operation one) throws SQLException {
            statement.setString(1, one.key.tenant);
            statement.setString(2, one.key.request);
            statement.setString(3, one.kind);
            statement.setString(4, one.resource.place.type);
            statement.setString(5, one.resource.id);
            statement.setBytes(6, one.digest);
            statement.setString(7, shard);
            statement.setString(8, one.sequenceNumber);
            statement.setString(9, one.timestamp);
            statement.setObject(10, one.receivedAt);
        }

        private void bindResource(PreparedStatement statement, int at, Resource resource) throws SQLException {
            statement.setString(at, resource.place.tenant);
            statement.setString(at + 1, resource.place.type);
            statement.setString(at + 2, resource.id);
        }

        /** Return the operations that the log does not have, each once. */
        private List<Operation> unlogged(Connection connection, List<Operation> operations) throws SQLException {
            Set<LogKey> known = new HashSet<>();
            try (var statement = connection.prepareStatement(LOGGED)) {
                statement.setArray(1, array(connection, operations.stream().map(one -> one.key.tenant)));
                statement.setArray(2, array(connection, operations.stream().map(one -> one.key.request)));
                var rows = statement.executeQuery();
                while (rows.next()) {
                    known.add(new LogKey(rows.getString(1), rows.getString(2)));
                }
            }
            connection.commit();
            return operations.stream().filter(one -> known.add(one.key)).toList();
        }

        private java.sql.Array array(Connection connection, Stream<String> texts) throws SQLException {
            return connection.createArrayOf("text", texts.toArray());
        }

        private void sleep() {
            try {
                Thread.sleep(RETRY_MILLIS);
            } catch (InterruptedException end) {
                throw new IllegalStateException(end);
            }
        }

        @Override
        public void leaseLost(LeaseLostInput input) {}

        @Override
        public void shardEnded(ShardEndedInput input) {
            checkpoint(input.checkpointer());
        }

        @Override
        public void shutdownRequested(ShutdownRequestedInput input) {
            checkpoint(input.checkpointer());
        }

        private void checkpoint(RecordProcessorCheckpointer checkpointer) {
            try {
                checkpointer.checkpoint();
            } catch (ShutdownException lost) {
                System.err.println(shard + ": the lease is lost");
            } catch (InvalidStateException wrong) {
                throw new IllegalStateException(wrong);
            }
        }
    }

    private static byte[] sha256(byte[] bytes) {
        try {
            return MessageDigest.getInstance("SHA-256").digest(bytes);
        } catch (NoSuchAlgorithmException never) {
            throw new IllegalStateException(never);
        }
    }

    private static DataSource openPool(Map<String, String> options) {
        var config = new HikariConfig();
        config.setJdbcUrl(options.get("postgres"));
        config.addDataSourceProperty("reWriteBatchedInserts", "true");
        config.setAutoCommit(false);
        config.setMaximumPoolSize(Integer.parseInt(options.get("pool")));
        return new HikariDataSource(config);
    }

    public static void main(String[] arguments) {
        Map<String, String> options = Stream.of(arguments).map(argument -> argument.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
        var region = Region.US_EAST_1;
        var dynamodbUrl = URI.create(options.get("dynamodb"));
        var kinesis = KinesisAsyncClient.builder().region(region).endpointOverride(URI.create(options.get("kinesis")))
                .httpClientBuilder(NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1)).build();
        var dynamodb = DynamoDbAsyncClient.builder().region(region).endpointOverride(dynamodbUrl).build();
        var cloudWatch = CloudWatchAsyncClient.builder().region(region).endpointOverride(dynamodbUrl).build();
        var stream = options.get("stream");
        var start = InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON);
        var database = openPool(options);
        var configs = new ConfigsBuilder(new SingleStreamTracker(stream, start), options.get("application"), kinesis,
                dynamodb, cloudWatch, options.get("worker"), () -> new Processor(database));
        var leases = configs.leaseManagementConfig().failoverTimeMillis(Long.parseLong(options.get("failover")));
        // As often as Kinesis permits.
        var polling = new PollingConfig(stream, kinesis).maxRecords(Integer.parseInt(options.get("records")))
                .idleTimeBetweenReadsInMillis(200);
        var scheduler = new Scheduler(configs.checkpointConfig(), configs.coordinatorConfig(), leases,
                configs.lifecycleConfig(), configs.metricsConfig().metricsFactory(new NullMetricsFactory()),
                configs.processorConfig(), configs.retrievalConfig().retrievalSpecificConfig(polling));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                scheduler.startGracefulShutdown().get(10, TimeUnit.SECONDS);
            } catch (Exception late) {
                System.err.println("late " + late);
            }
        }));
        scheduler.run();
    }
}
