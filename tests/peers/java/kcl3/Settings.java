import java.util.Map;
import software.amazon.kinesis.coordinator.CoordinatorConfig;
import software.amazon.kinesis.coordinator.CoordinatorConfig.ClientVersionConfig;
import software.amazon.kinesis.leases.LeaseAssignmentStrategy;
import software.amazon.kinesis.leases.LeaseManagementConfig;

/**
 * The settings of the Kinesis Client Library 3.x: version is that of the algorithm (the end of the name of a
 * ClientVersionConfig), metrics_interval is in milliseconds, and coordinator_table and metrics_table are the other names of its tables.
 */
class Settings {
    static void apply(Map<String, String> options, CoordinatorConfig coordinator, LeaseManagementConfig leases) {
        leases.leaseAssignmentStrategy(LeaseAssignmentStrategy.LEASE_COUNT_BASED);
        var metrics = leases.workerUtilizationAwareAssignmentConfig();
        metrics.workerMetricsReporterFreqInMillis(Integer.parseInt(options.getOrDefault("metrics_interval", "5000")));
        var version = options.getOrDefault("version", "3X");
        coordinator.clientVersionConfig(ClientVersionConfig.valueOf("CLIENT_VERSION_CONFIG_" + version));
        if (options.containsKey("coordinator_table")) {
            coordinator.coordinatorStateTableConfig().tableName(options.get("coordinator_table"));
        }
        if (options.containsKey("metrics_table")) {
            metrics.workerMetricsTableConfig().tableName(options.get("metrics_table"));
        }
    }
}
