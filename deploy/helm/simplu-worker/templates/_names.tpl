{{- /* Refuses misspelt names, which a schema could only refuse without a word about the right one. */}}
{{- define "simplu-worker.checkNames" -}}
{{- $names := .Files.Get "names.yaml" | fromYaml }}
{{- $problems := list }}
{{- range $path, $known := $names.values }}
{{- $members := $.Values }}
{{- range $step := compact (splitList "." $path) }}{{ $members = get $members $step | default dict }}{{ end }}
{{- range $name := keys $members | sortAlpha }}
{{- if not (has $name $known) }}
{{- $problems = append $problems (include "simplu-worker.misspelt" (dict "of" $path "name" $name "what" "value of the chart" "known" $known)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name := keys .Values.settings | sortAlpha }}
{{- if has (trimSuffix "_FILE" $name) $names.secrets }}
{{- $problems = append $problems (printf "settings.%s: expected a variable that is not secret; name a Secret with it in secrets.files or secrets.environment" $name) }}
{{- else if not (or (has $name $names.settings) (and (regexMatch "^OTEL_[A-Z_]+$" $name) (not (hasSuffix "HEADERS" $name)))) }}
{{- $problems = append $problems (include "simplu-worker.misspelt" (dict "of" "settings" "name" $name "what" "variable of the worker" "known" $names.settings)) }}
{{- end }}
{{- end }}
{{- range $name := keys (.Values.secrets.files | default dict) | sortAlpha }}
{{- if not (has $name $names.secrets) }}
{{- $problems = append $problems (include "simplu-worker.misspelt" (dict "of" "secrets.files" "name" $name "what" "secret variable of the worker" "known" $names.secrets)) }}
{{- end }}
{{- end }}
{{- if $problems }}{{ fail (join "\n" $problems) }}{{ end }}
{{- end }}

{{- define "simplu-worker.misspelt" -}}
{{- $nearest := include "simplu-worker.nearest" . -}}
{{- printf "%s: expected the name of a %s, got another; " (list .of .name | compact | join ".") .what -}}
{{- if $nearest }}did you mean {{ $nearest }}?{{ else }}correct it or take it out{{ end -}}
{{- end }}

{{- /* The known name that shares most pairs of letters with a name, if it shares more than half. */}}
{{- define "simplu-worker.nearest" -}}
{{- $pairs := include "simplu-worker.pairs" .name | fromJsonArray -}}
{{- $nearest := "" -}}
{{- $most := 0.5 -}}
{{- range $known := .known -}}
{{- $others := include "simplu-worker.pairs" $known | fromJsonArray -}}
{{- $shared := 0 -}}
{{- range $pair := $others }}{{ if has $pair $pairs }}{{ $shared = add1 $shared }}{{ end }}{{ end -}}
{{- $share := divf (mulf 2 $shared) (max 1 (add (len $pairs) (len $others))) -}}
{{- if gt $share $most }}{{ $nearest = $known }}{{ $most = $share }}{{ end -}}
{{- end -}}
{{- $nearest -}}
{{- end }}

{{- define "simplu-worker.pairs" -}}
{{- $text := lower . -}}
{{- $pairs := list -}}
{{- range $start := until (int (max 0 (sub (len $text) 1))) }}{{ $pairs = append $pairs (substr $start (int (add $start 2)) $text) }}{{ end -}}
{{- toJson $pairs -}}
{{- end }}
