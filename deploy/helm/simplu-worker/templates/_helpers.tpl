{{- define "simplu-worker.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "simplu-worker.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "simplu-worker.labels" -}}
{{ include "simplu-worker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "simplu-worker.metadata" -}}
name: {{ include "simplu-worker.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "simplu-worker.labels" . | nindent 2 }}
{{- end }}

{{- define "simplu-worker.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "simplu-worker.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{- /* A number of a values file is a float64, and a large one would be written as 6.7108864e+07. */}}
{{- define "simplu-worker.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- define "simplu-worker.graceSeconds" -}}
{{- get .Values.settings "SHUTDOWN_GRACE_SECONDS" | default 25 | float64 | ceil | int64 -}}
{{- end }}

{{- define "simplu-worker.leaseSeconds" -}}
{{- get .Values.settings "KINESIS_LEASE_DURATION_SECONDS" | default 10 | float64 -}}
{{- end }}

{{- define "simplu-worker.httpPort" -}}
{{- include "simplu-worker.text" (get .Values.settings "HTTP_PORT" | default 8080) -}}
{{- end }}

{{- /* By the Secret of the chart, or by files that a person mounts. */}}
{{- define "simplu-worker.https" -}}
{{- if or .Values.tls.secret (get .Values.settings "HTTP_TLS_CERT_FILE") }}true{{ end -}}
{{- end }}

{{- define "simplu-worker.readsStream" -}}
{{- if get .Values.settings "KINESIS_STREAM_NAME" }}true{{ end -}}
{{- end }}

{{- define "simplu-worker.readsQueues" -}}
{{- if or (get .Values.settings "SQS_ORDER_EVENTS_QUEUE_URL") (get .Values.settings "SQS_PRIORITY_QUEUE_URL") (get .Values.settings "SQS_SHARD_CREATION_QUEUE_URL") }}true{{ end -}}
{{- end }}

{{- /* Mistakes that the schema cannot see. */}}
{{- define "simplu-worker.check" -}}
{{- include "simplu-worker.checkNames" . }}
{{- if not (or (include "simplu-worker.readsStream" .) (include "simplu-worker.readsQueues" .)) }}
{{- fail "settings: expected a source (KINESIS_STREAM_NAME, SQS_ORDER_EVENTS_QUEUE_URL, SQS_PRIORITY_QUEUE_URL or SQS_SHARD_CREATION_QUEUE_URL), got none; set one" }}
{{- end }}
{{- $ways := list (get .Values.settings "CITRUS_SERVER_URL") .Values.shardMap.secret (get .Values.settings "DATABASE_HOST") | compact | len }}
{{- if eq $ways 0 }}
{{- fail "settings: expected a way to find shards (CITRUS_SERVER_URL, shardMap.secret or DATABASE_HOST), got none; set one" }}
{{- end }}
{{- if and (eq .Values.aws.identity "irsa") (not .Values.aws.roleArn) }}
{{- fail "aws.roleArn: expected the ARN of a role, since aws.identity is irsa, got nothing; set it" }}
{{- end }}
{{- if ne .Values.autoscaling.kind "none" }}
{{- if and (include "simplu-worker.readsStream" .) (eq (int .Values.autoscaling.openStreamShards) 0) }}
{{- fail "autoscaling.openStreamShards: expected the number of open stream shards, since more replicas would idle, got nothing; aws kinesis describe-stream-summary has it as OpenShardCount" }}
{{- end }}
{{- if le (float64 .Values.autoscaling.scaleDownAfterSeconds) (float64 (include "simplu-worker.leaseSeconds" .)) }}
{{- fail (printf "autoscaling.scaleDownAfterSeconds: expected more than KINESIS_LEASE_DURATION_SECONDS (%s), got %v; raise it" (include "simplu-worker.leaseSeconds" .) .Values.autoscaling.scaleDownAfterSeconds) }}
{{- end }}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) }}
{{- fail "autoscaling.maxReplicas: expected at least autoscaling.minReplicas, got less; raise it" }}
{{- end }}
{{- end }}
{{- end }}
