{{/* What a pod has besides its container and volumes; an InferenceService's predictor takes the same. */}}
{{- define "predictor.pod" -}}
serviceAccountName: {{ include "predictor.serviceAccount" . | quote }}
{{- if not (include "predictor.knative" .) }}
automountServiceAccountToken: true
terminationGracePeriodSeconds: {{ include "predictor.gracePeriod" . }}
{{- end }}
enableServiceLinks: false
securityContext:
  {{- if include "predictor.knative" . }}
  {{- omit (default dict .Values.podSecurityContext) "fsGroupChangePolicy" | toYaml | nindent 2 }}
  {{- else }}
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
  {{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "predictor.podAnnotations" -}}
prometheus.kserve.io/port: "8080"
prometheus.kserve.io/path: /metrics
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}
