import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import software.amazon.awssdk.core.SdkBytes;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.kinesis.KinesisClient;
import software.amazon.awssdk.services.kinesis.model.PutRecordsRequestEntry;

/**
 * Puts records with the AWS SDK for Java: java Producer ENDPOINT STREAM FILE.
 *
 * <p>A line of FILE is a partition key and data in base64; for each a line of output has the stream shard and the
 * sequence number that it got, in order of the file.
 */
public class Producer {
    private static final int BATCH = 50;

    public static void main(String[] arguments) throws Exception {
        var entries = new ArrayList<PutRecordsRequestEntry>();
        for (String line : Files.readAllLines(Path.of(arguments[2]))) {
            var words = line.split(" ");
            var data = SdkBytes.fromByteArray(Base64.getDecoder().decode(words[1]));
            entries.add(PutRecordsRequestEntry.builder().partitionKey(words[0]).data(data).build());
        }
        try (var kinesis = KinesisClient.builder().region(Region.US_EAST_1)
                .endpointOverride(URI.create(arguments[0])).build()) {
            for (int first = 0; first < entries.size(); first += BATCH) {
                List<PutRecordsRequestEntry> batch = entries.subList(first, Math.min(first + BATCH, entries.size()));
                for (var result : kinesis.putRecords(put -> put.streamName(arguments[1]).records(batch)).records()) {
                    if (result.errorCode() != null) {
                        throw new IllegalStateException(result.errorCode());
                    }
                    System.out.println(result.shardId() + " " + result.sequenceNumber());
                }
            }
        }
    }
}
