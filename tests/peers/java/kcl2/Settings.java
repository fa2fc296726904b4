import java.util.Map;
import software.amazon.kinesis.coordinator.CoordinatorConfig;
import software.amazon.kinesis.leases.LeaseManagementConfig;

/** The settings of the Kinesis Client Library 2.x. */
class Settings {
    static void apply(Map<String, String> options, CoordinatorConfig coordinator, LeaseManagementConfig leases) {}
}
