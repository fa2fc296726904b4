import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
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
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * A worker of the Kinesis Client Library, which prints what it reads: java Consumer NAME=VALUE ...
 *
 * <p>kinesis and dynamodb are endpoints; application, stream and worker are names; failover is the failover time in
 * milliseconds, and checkpoint "always" or "never" (but at the end of a stream shard). Settings has what only one version
 * of the library knows. A line of output is one of
 *
 * <pre>
 * begins SHARD SEQUENCE_NUMBER
 * record SHARD SEQUENCE_NUMBER SUB_SEQUENCE_NUMBER DATA (in base64)
 * lost SHARD, ended SHARD, leaves SHARD
 * </pre>
 *
 * SIGTERM has it finish its batches, checkpoint and end.
 */
public class Consumer {
    private static final PrintStream OUT =
            new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);

    static class Processor implements ShardRecordProcessor {
        private final boolean hasCheckpoints;
        private String shard;

        Processor(boolean hasCheckpoints) {
            this.hasCheckpoints = hasCheckpoints;
        }

        @Override
        public void initialize(InitializationInput input) {
            shard = input.shardId();
            print("begins " + shard + " " + input.extendedSequenceNumber().sequenceNumber());
        }

        @Override
        public void processRecords(ProcessRecordsInput input) {
            var lines = new StringBuilder();
            for (var record : input.records()) {
                var data = new byte[record.data().remaining()];
                record.data().get(data);
                lines.append("record ").append(shard).append(' ').append(record.sequenceNumber()).append(' ')
                        .append(record.subSequenceNumber()).append(' ')
                        .append(Base64.getEncoder().encodeToString(data)).append('\n');
            }
            synchronized (OUT) {
                OUT.print(lines);
                OUT.flush();
            }
            if (!input.records().isEmpty() && hasCheckpoints) {
                checkpoint(input.checkpointer());
            }
        }

        @Override
        public void leaseLost(LeaseLostInput input) {
            print("lost " + shard);
        }

        @Override
        public void shardEnded(ShardEndedInput input) {
            checkpoint(input.checkpointer());
            print("ended " + shard);
        }

        @Override
        public void shutdownRequested(ShutdownRequestedInput input) {
            if (hasCheckpoints) {
                checkpoint(input.checkpointer());
            }
            print("leaves " + shard);
        }

        private void checkpoint(RecordProcessorCheckpointer checkpointer) {
            try {
                checkpointer.checkpoint();
            } catch (ShutdownException lost) {
                print("uncheckpointed " + shard);
            } catch (InvalidStateException wrong) {
                throw new IllegalStateException(wrong);
            }
        }
    }

    private static void print(String line) {
        synchronized (OUT) {
            OUT.print(line + "\n");
            OUT.flush();
        }
    }

    public static void main(String[] arguments) {
        Map<String, String> options = Stream.of(arguments).map(argument -> argument.split("=", 2))
                .collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
        var region = Region.US_EAST_1;
        var kinesis = KinesisAsyncClient.builder().region(region).endpointOverride(URI.create(options.get("kinesis")))
                .httpClientBuilder(NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1)).build();
        var dynamodb = DynamoDbAsyncClient.builder().region(region)
                .endpointOverride(URI.create(options.get("dynamodb"))).build();
        var cloudWatch = CloudWatchAsyncClient.builder().region(region)
                .endpointOverride(URI.create(options.get("dynamodb"))).build();
        boolean hasCheckpoints = !options.getOrDefault("checkpoint", "always").equals("never");
        var stream = options.get("stream");
        var start = InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON);
        var configs = new ConfigsBuilder(new SingleStreamTracker(stream, start), options.get("application"), kinesis,
                dynamodb, cloudWatch, options.get("worker"), () -> new Processor(hasCheckpoints));
        var failoverMillis = Long.parseLong(options.getOrDefault("failover", "10000"));
        var leases = configs.leaseManagementConfig().failoverTimeMillis(failoverMillis)
                .shardSyncIntervalMillis(500);
        var coordinator = configs.coordinatorConfig().parentShardPollIntervalMillis(1000);
        var polling = new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(500);
        Settings.apply(options, coordinator, leases);
        var retrieval = configs.retrievalConfig().retrievalSpecificConfig(polling);
        var scheduler = new Scheduler(configs.checkpointConfig(), coordinator, leases, configs.lifecycleConfig(),
                configs.metricsConfig().metricsFactory(new NullMetricsFactory()), configs.processorConfig(), retrieval);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                scheduler.startGracefulShutdown().get(10, TimeUnit.SECONDS);
            } catch (Exception late) {
                print("late " + late);
            }
        }));
        scheduler.run();
    }
}
