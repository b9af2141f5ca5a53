{{/* Name of the operator's objects; at most 52 characters, so that a suffix fits. */}}
{{- define "dbtunnel.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods; they must never change. */}}
{{- define "dbtunnel.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dbtunnel.labels" -}}
{{ include "dbtunnel.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "dbtunnel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dbtunnel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: give the name of an existing service account, or set serviceAccount.create to true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dbtunnel.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "dbtunnel.forwarderImage" -}}
{{- $image := .Values.forwarder.image -}}
{{- $tag := default (default .Chart.AppVersion .Values.image.tag) $image.tag -}}
{{- printf "%s:%s" (default .Values.image.repository $image.repository) $tag -}}
{{- end -}}

{{/* A setting as its environment variable has it: lists with commas in between, maps in JSON. */}}
{{- define "dbtunnel.settingText" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if kindIs "map" . -}}
{{- toJson . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
