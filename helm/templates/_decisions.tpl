{{/* What follows from several values together. Each gives "true" or nothing, or one word. */}}

{{- define "predictor.knative" -}}
{{- if and .Values.kserve.enabled (eq .Values.kserve.deploymentMode "Knative") }}true{{ end }}
{{- end }}

{{/* Who names the container: a runtime, or this InferenceService or Deployment itself. */}}
{{- define "predictor.usesRuntime" -}}
{{- if and .Values.kserve.enabled (not (include "predictor.knative" .)) }}
{{- if or .Values.kserve.runtime.create .Values.kserve.runtime.name }}true{{ end }}
{{- end }}
{{- end }}

{{/* Whether the chart makes the Deployment and the Service: KServe does not, and a Job has none. */}}
{{- define "predictor.ownsServer" -}}
{{- if not (or .Values.kserve.enabled .Values.batch.enabled) }}true{{ end }}
{{- end }}

{{- define "predictor.ownsClaim" -}}
{{- if and .Values.offload.enabled (not .Values.offload.ephemeral.enabled) (not .Values.offload.persistence.existingClaim) }}true{{ end }}
{{- end }}

{{/* Whether one claim serves all replicas and lets one node, or one pod, have it. */}}
{{- define "predictor.claimOfOneNode" -}}
{{- if and .Values.offload.enabled (not .Values.offload.ephemeral.enabled) }}
{{- $modes := .Values.offload.persistence.accessModes }}
{{- if not (has "ReadWriteMany" $modes) }}true{{ end }}
{{- end }}
{{- end }}

{{- define "predictor.hasToken" -}}
{{- if or .Values.hubToken.existingSecret .Values.hubToken.value }}true{{ end }}
{{- end }}

{{/* Whether a certificate is set, in whatever way. */}}
{{- define "predictor.hasTls" -}}
{{- $extra := list .Values.extraArgs .Values.extraEnv | toJson }}
{{- $inExtra := regexMatch "--ssl[_-]certfile|\"(PREDICTOR_SSL_CERTFILE|KSERVE_TLS_CERT_FILE)\"" $extra }}
{{- if or (get (default dict .Values.settings) "ssl_certfile") $inExtra }}true{{ end }}
{{- end }}

{{/* Whether the predictor itself fetches from the hub: its model, or a draft model. */}}
{{- define "predictor.fetchesFromHub" -}}
{{- $draft := get (default dict .Values.settings) "draft_model_dir" | default "" }}
{{- if or .Values.model.id (and $draft (not (hasPrefix "/" $draft))) }}true{{ end }}
{{- end }}

{{/* What a Deployment and an InferenceService in Standard mode take alike. */}}
{{- define "predictor.strategy" -}}
{{- $needsRoom := or .Values.accelerators (include "predictor.claimOfOneNode" .) }}
{{- if eq (default (ternary "Recreate" "RollingUpdate" (not (empty $needsRoom))) .Values.strategy) "Recreate" -}}
type: Recreate
{{- else -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 1
  maxUnavailable: 0
{{- end }}
{{- end }}

{{- define "predictor.gracePeriod" -}}
{{- $drain := dig "grace_period" 25 (default dict .Values.settings) | float64 | ceil | int }}
{{- add .Values.drain.preStopSeconds $drain 10 }}
{{- end }}

{{/* An InferenceService's annotations: those of kserve.annotations are stronger. */}}
{{- define "predictor.serviceAnnotations" -}}
{{- $own := dict "serving.kserve.io/deploymentMode" .Values.kserve.deploymentMode }}
{{- if include "predictor.knative" . }}
{{- $_ := set $own "serving.knative.dev/progress-deadline" (printf "%vs" .Values.startup.timeoutSeconds) }}
{{- else }}
{{- $_ := set $own "serving.kserve.io/autoscalerClass" (include "predictor.autoscalerClass" .) }}
{{- end }}
{{- if hasPrefix "pvc://" (default "" .Values.model.uri) }}
{{- $_ := set $own "storage.kserve.io/readonly" "true" }}
{{- end }}
{{- merge (deepCopy (default dict .Values.kserve.annotations)) $own | toYaml }}
{{- end }}

{{- define "predictor.autoscalerClass" -}}
{{- if not .Values.autoscaling.enabled }}none{{ else if eq .Values.autoscaling.by "keda" }}keda{{ else }}external{{ end }}
{{- end }}

{{/* A sum over all pods, which the autoscaler divides by its target to get their number. */}}
{{- define "predictor.scalingQuery" -}}
{{- $of := printf "namespace=%q,model_name=%q" .Release.Namespace (include "predictor.modelName" .) -}}
sum(predictor_sequences_waiting{ {{- $of -}} })
{{- if eq .Values.autoscaling.metric "queueSeconds" }} / clamp_min(sum(rate(predictor_queue_seconds_count{ {{- $of -}} }[5m])), 1/60) * count(predictor_ready{ {{- $of -}} })
{{- end }}
{{- end }}

{{/* Ends with one sentence where the cluster lacks an API: (list . api kind who). */}}
{{- define "predictor.needs" -}}
{{- $root := index . 0 }}
{{- if not ($root.Capabilities.APIVersions.Has (index . 1)) }}
{{- fail (printf "This cluster has no %s (%s): install %s, or set %s." (index . 2) (index . 1) (index . 3) (index . 4)) }}
{{- end }}
{{- end }}
