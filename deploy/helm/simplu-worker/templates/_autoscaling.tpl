{{- define "simplu-worker.maxReplicas" -}}
{{- $most := int .Values.autoscaling.maxReplicas -}}
{{- if include "simplu-worker.readsStream" . -}}
{{- /* Never below minReplicas: Kubernetes would refuse it. */ -}}
{{- max (min $most (int .Values.autoscaling.openStreamShards)) (int .Values.autoscaling.minReplicas) -}}
{{- else -}}
{{- $most -}}
{{- end -}}
{{- end }}

{{- /* Without the pods of a release NAME-eu. Behind a long NAME, Kubernetes cuts off the second dash of a pod's name. */}}
{{- define "simplu-worker.matchers" -}}
{{- with .Values.autoscaling.prometheus.matchers -}}
{{- . -}}
{{- else -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "simplu-worker.name" . }}-[a-z0-9]+(-[a-z0-9]+)?"
{{- end -}}
{{- end }}

{{- define "simplu-worker.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - type: Percent
      value: 100
      periodSeconds: 60
    - type: Pods
      value: 4
      periodSeconds: 60
scaleDown:
  # Above the lease duration. A replica that goes hands its leases over within about a second.
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownAfterSeconds }}
  selectPolicy: Max
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end }}
