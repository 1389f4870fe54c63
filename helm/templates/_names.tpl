{{/* What things are called. */}}

{{- define "predictor.name" -}}
{{- default .Release.Name .Values.fullnameOverride }}
{{- end }}

{{- define "predictor.modelName" -}}
{{- default (include "predictor.name" .) .Values.model.name }}
{{- end }}

{{- define "predictor.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- .Values.image.repository }}{{ ternary (print "@" .Values.image.digest) (print ":" $tag) (ne .Values.image.digest "") }}
{{- end }}

{{- define "predictor.serviceAccount" -}}
{{- default (ternary (include "predictor.name" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "predictor.runtime" -}}
{{- default (include "predictor.name" .) .Values.kserve.runtime.name }}
{{- end }}

{{- define "predictor.claim" -}}
{{- default (print (include "predictor.name" .) "-offload") .Values.offload.persistence.existingClaim }}
{{- end }}

{{- define "predictor.tokenSecret" -}}
{{- default (print (include "predictor.name" .) "-hub-token") .Values.hubToken.existingSecret }}
{{- end }}

{{/* Without versions: KServe gives an InferenceService's labels to its pods, which a label that
changes would replace, and load the model again. */}}
{{- define "predictor.lastingLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "predictor.labels" -}}
{{ include "predictor.lastingLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What the predictor's pods, and no others, are found by. */}}
{{- define "predictor.selector" -}}
{{- if .Values.kserve.enabled }}
serving.kserve.io/inferenceservice: {{ include "predictor.name" . }}
{{- else }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: predictor
{{- end }}
{{- end }}

{{/* KServe's Service for the predictor, or the chart's own. */}}
{{- define "predictor.service" -}}
{{- include "predictor.name" . }}{{ if .Values.kserve.enabled }}-predictor{{ end }}
{{- end }}
