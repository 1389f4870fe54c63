{{/* An InferenceService's replicas, where their number is not fixed. */}}
{{- define "predictor.autoscaling" -}}
minReplicas: {{ .Values.autoscaling.minReplicas }}
maxReplicas: {{ .Values.autoscaling.maxReplicas }}
{{- if include "predictor.knative" . }}
scaleMetric: concurrency
scaleTarget: {{ .Values.autoscaling.target }}
{{- else if eq .Values.autoscaling.by "keda" }}
autoScaling:
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  metrics:
    - type: External
      external:
        metric:
          backend: prometheus
          serverAddress: {{ .Values.autoscaling.prometheus }}
          query: {{ include "predictor.scalingQuery" . | quote }}
        target:
          type: Value
          value: {{ .Values.autoscaling.target | quote }}
{{- end }}
{{- end }}
