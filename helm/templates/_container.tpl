{{/*
The container in two parts. "base" is every model's: a ServingRuntime has it. "own" is this model's:
an InferenceService adds it to its runtime's. Without a runtime one container has both.
*/}}

{{/* Where the image has its demo model. */}}
{{- define "predictor.demoModel" -}}
/opt/demo-model
{{- end }}

{{- define "predictor.base" -}}
name: kserve-container
image: {{ include "predictor.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "predictor.base.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}

{{/* Ports, probes and rights. Knative takes one port, of a name that it knows, and no hooks. */}}
{{- define "predictor.base.behaviour" -}}
ports:
{{- if include "predictor.knative" . }}
  - name: http1
    containerPort: 8080
    protocol: TCP
{{- else }}
  - name: http
    containerPort: 8080
    protocol: TCP
  - name: grpc
    containerPort: 8081
    protocol: TCP
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.drain.preStopSeconds }}
{{- end }}
startupProbe:
  httpGet:
    path: /v2/health/ready
    port: 8080
    {{- if include "predictor.hasTls" . }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ divf .Values.startup.timeoutSeconds 5 | ceil | int64 }}
readinessProbe:
  httpGet:
    path: /v2/health/ready
    port: 8080
    {{- if include "predictor.hasTls" . }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: 8080
    {{- if include "predictor.hasTls" . }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{- define "predictor.base.volumeMounts" -}}
- name: shm
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "predictor.base.volumes" -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.scratch.shmSize }}
- name: tmp
{{- with .Values.scratch.tmpSize }}
  emptyDir:
    sizeLimit: {{ . }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "predictor.isDemo" -}}
{{- if not (or .Values.model.uri .Values.model.id (get (default dict .Values.settings) "model_uri")) }}true{{ end }}
{{- end }}

{{/* Flags that this model adds to a runtime's; a repeated flag's last value wins. */}}
{{- define "predictor.own.args" -}}
{{- if .Values.model.name }}
- --model_name={{ .Values.model.name }}
{{- end }}
{{- if include "predictor.isDemo" . }}
- --model_dir={{ include "predictor.demoModel" . }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "predictor.args" -}}
- serve
- --model_name={{ include "predictor.modelName" . }}
- --model_dir={{ if include "predictor.isDemo" . }}{{ include "predictor.demoModel" . }}{{ else }}/mnt/models{{ end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "predictor.own.env" -}}
{{- if .Values.model.id }}
- name: PREDICTOR_MODEL_ID
  value: {{ .Values.model.id | quote }}
{{- with .Values.model.revision }}
- name: PREDICTOR_MODEL_REVISION
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- if include "predictor.fetchesFromHub" . }}
{{- if .Values.offload.enabled }}
- name: HF_HOME
  value: {{ .Values.offload.mountPath }}/huggingface
{{- end }}
{{- if include "predictor.hasToken" . }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "predictor.tokenSecret" . | quote }}
      key: {{ .Values.hubToken.key | quote }}
{{- end }}
{{- end }}
{{- if .Values.offload.enabled }}
- name: PREDICTOR_OFFLOAD_FOLDER
  value: {{ .Values.offload.mountPath }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: PREDICTOR_{{ upper $name }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "predictor.own.resources" -}}
{{- $limits := dict "memory" .Values.resources.limits.memory }}
{{- $cpu := .Values.resources.limits.cpu }}
{{- if .Values.kserve.enabled }}
{{- $cpu = default .Values.resources.requests.cpu $cpu }}
{{- end }}
{{- if $cpu }}
{{- $_ := set $limits "cpu" $cpu }}
{{- end }}
{{- $requests := dict "cpu" .Values.resources.requests.cpu "memory" (default .Values.resources.limits.memory .Values.resources.requests.memory) }}
requests:
  {{- merge $requests (default dict .Values.accelerators) | toYaml | nindent 2 }}
limits:
  {{- merge $limits (default dict .Values.accelerators) | toYaml | nindent 2 }}
{{- end }}

{{/* A claim at /mnt/models, as KServe mounts one; where there is KServe, it does. */}}
{{- define "predictor.mountsModel" -}}
{{- if and (not .Values.kserve.enabled) .Values.model.uri }}true{{ end }}
{{- end }}

{{- define "predictor.own.volumeMounts" -}}
{{- if .Values.offload.enabled }}
- name: offload
  mountPath: {{ .Values.offload.mountPath }}
{{- end }}
{{- if include "predictor.mountsModel" . }}
- name: model
  mountPath: /mnt/models
  readOnly: true
{{- $place := trimPrefix "pvc://" .Values.model.uri }}
{{- if contains "/" $place }}
  subPath: {{ regexReplaceAll "^[^/]+/" $place "" | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "predictor.own.volumes" -}}
{{- if .Values.offload.enabled }}
- name: offload
{{- if .Values.offload.ephemeral.enabled }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        {{- include "predictor.claimSpec" . | nindent 8 }}
{{- else }}
  persistentVolumeClaim:
    claimName: {{ include "predictor.claim" . | quote }}
{{- end }}
{{- end }}
{{- if include "predictor.mountsModel" . }}
- name: model
  persistentVolumeClaim:
    claimName: {{ trimPrefix "pvc://" .Values.model.uri | splitList "/" | first | quote }}
    readOnly: true
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "predictor.claimSpec" -}}
accessModes:
  {{- toYaml .Values.offload.persistence.accessModes | nindent 2 }}
{{- with .Values.offload.persistence.storageClass }}
storageClassName: {{ ternary "" . (eq . "-") | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .Values.offload.persistence.size }}
{{- end }}

{{/* The one container where there is no runtime. */}}
{{- define "predictor.container" -}}
{{ include "predictor.base" . }}
args:
  {{- include "predictor.args" . | nindent 2 }}
env:
  {{- include "predictor.base.env" . | nindent 2 }}
  {{- if and .Values.kserve.enabled .Values.model.uri }}
  - name: STORAGE_URI
    value: {{ .Values.model.uri | quote }}
  {{- end }}
  {{- include "predictor.own.env" . | trim | nindent 2 }}
resources:
  {{- include "predictor.own.resources" . | trim | nindent 2 }}
{{ include "predictor.base.behaviour" . }}
volumeMounts:
  {{- include "predictor.base.volumeMounts" . | nindent 2 }}
  {{- include "predictor.own.volumeMounts" . | trim | nindent 2 }}
{{- end }}

{{/* The container of a Job: it has no ports, and so no probes. */}}
{{- define "predictor.batch.container" -}}
{{ include "predictor.base" . }}
args:
  - batch
  - --model_name={{ include "predictor.modelName" . }}
  - --model_dir={{ if include "predictor.isDemo" . }}{{ include "predictor.demoModel" . }}{{ else }}/mnt/models{{ end }}
  - --input=/batch/{{ .Values.batch.input }}
  - --shard=$(JOB_COMPLETION_INDEX)/{{ .Values.batch.shards }}
  - --output=/batch/{{ .Values.batch.output }}-$(JOB_COMPLETION_INDEX).jsonl
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  {{- include "predictor.base.env" . | nindent 2 }}
  {{- with include "predictor.own.env" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
resources:
  {{- include "predictor.own.resources" . | trim | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  {{- include "predictor.base.volumeMounts" . | nindent 2 }}
  {{- with include "predictor.own.volumeMounts" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  - name: batch
    mountPath: /batch
{{- end }}
