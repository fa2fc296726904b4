import com.google.common.util.concurrent.ListenableFuture;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import software.amazon.kinesis.producer.KinesisProducer;
import software.amazon.kinesis.producer.KinesisProducerConfiguration;
import software.amazon.kinesis.producer.UserRecordResult;

/**
 * Puts records with the Kinesis Producer Library: java Producer PORT STREAM FILE.
 *
 * <p>PORT is that of a Kinesis on loopback that speaks TLS. A line of FILE is a partition key and data in base64; for
 * each a line of output has the stream shard and the sequence number that it got, in order of the file.
 */
public class Producer {
    private static final long SHARD_MAP_MILLIS = 1500;

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[0]);
        var producer = new KinesisProducer(new KinesisProducerConfiguration()
                .setRegion("us-east-1").setKinesisEndpoint("localhost").setKinesisPort(port)
                .setStsEndpoint("localhost").setStsPort(port).setVerifyCertificate(false)
                .setMetricsLevel("none").setRecordMaxBufferedTime(200).setLogLevel("warning"));
        var results = new ArrayList<ListenableFuture<UserRecordResult>>();
        for (String line : Files.readAllLines(Path.of(arguments[2]))) {
            var words = line.split(" ");
            var data = ByteBuffer.wrap(Base64.getDecoder().decode(words[1]));
            results.add(producer.addUserRecord(arguments[1], words[0], data));
            if (results.size() == 1) {
                // It aggregates once it knows the stream shards, which it looks up at the first record.
                producer.flushSync();
                Thread.sleep(SHARD_MAP_MILLIS);
            }
        }
        producer.flushSync();
        for (var result : results) {
            System.out.println(result.get().getShardId() + " " + result.get().getSequenceNumber());
        }
        producer.destroy();
    }
}
