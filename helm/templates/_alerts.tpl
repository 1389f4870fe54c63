{{/* An alert's summary and the address of its runbook: (list . alert summary). */}}
{{- define "predictor.annotations" -}}
{{- $page := "docs/operations/runbooks.md" }}
{{- with (index . 0).Values.prometheusRule.docsUrl }}
{{- $page = printf "%s/operations/runbooks/" (trimSuffix "/" .) }}
{{- end }}
summary: {{ index . 2 | quote }}
runbook_url: {{ printf "%s#%s" $page (lower (index . 1)) | quote }}
{{- end }}

{{/* The selector of this release's containers in the metrics of kube-state-metrics. */}}
{{- define "predictor.ofContainers" -}}
namespace={{ .Release.Namespace | quote }},pod=~{{ printf "%s-.+" (include "predictor.name" .) | quote }},container="kserve-container"
{{- end }}
