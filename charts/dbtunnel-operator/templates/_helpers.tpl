{{/* The chart's name, or what stands in its place. */}}
{{- define "dbtunnel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the operator's objects; at most 52 characters, so that a suffix fits. */}}
{{- define "dbtunnel.fullname" -}}
{{- $name := include "dbtunnel.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods; they must never change. */}}
{{- define "dbtunnel.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dbtunnel.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* `labels` and, where there are any, `annotations` of an object: a list of the root, and what it has of its own, which
     counts before what all have. Nothing counts before what tells whose it is. */}}
{{- define "dbtunnel.marks" -}}
{{- $root := index . 0 -}}
{{- $whose := dict "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $whose "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- $selectors := include "dbtunnel.selectorLabels" $root | fromYaml -}}
labels: {{- mergeOverwrite (dict) $root.Values.commonLabels (index . 1) $whose $selectors | toYaml | nindent 2 }}
{{- with mergeOverwrite (dict) $root.Values.commonAnnotations (index . 2) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dbtunnel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dbtunnel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: give the name of an existing service account, or set serviceAccount.create to true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* A list of repository, tag and digest as the name of an image. */}}
{{- define "dbtunnel.reference" -}}
{{- if index . 2 -}}
{{- printf "%s@%s" (index . 0) (index . 2) -}}
{{- else -}}
{{- printf "%s:%s" (index . 0) (index . 1) -}}
{{- end -}}
{{- end -}}

{{- define "dbtunnel.image" -}}
{{- $image := .Values.image -}}
{{- include "dbtunnel.reference" (list $image.repository (default .Chart.AppVersion $image.tag) $image.digest) -}}
{{- end -}}

{{- define "dbtunnel.forwarderImage" -}}
{{- $image := .Values.forwarder.image -}}
{{- $named := ternary $image .Values.image (or $image.tag $image.digest | empty | not) -}}
{{- $repository := default .Values.image.repository $image.repository -}}
{{- include "dbtunnel.reference" (list $repository (default .Chart.AppVersion $named.tag) $named.digest) -}}
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


{{/* Matches requests of the operator's own service account. */}}
{{- define "dbtunnel.isOperator" -}}
- name: is-the-operator
  expression: {{ printf `request.userInfo.username == "system:serviceaccount:%s:%s"` .Release.Namespace (include "dbtunnel.serviceAccountName" .) | squote }}
{{- end -}}

{{/* Fails unless each is an address, or a network without bits beyond its mask: a list of the value's name and the texts. */}}
{{- define "dbtunnel.checkNetworks" -}}
{{- $place := index . 0 -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" -}}
{{- $group := "[0-9a-fA-F]{1,4}" -}}
{{- $whole := printf "^(%s:){7}%s$" $group $group -}}
{{- $short := printf "^(%s(:%s)*)?::(%s(:%s)*)?$" $group $group $group $group -}}
{{- range $text := index . 1 -}}
{{- $address := splitList "/" $text | first -}}
{{- $groups := regexFindAll "[0-9a-fA-F]+" $address -1 -}}
{{- $bits := "" -}}
{{- if regexMatch (printf "^(%s[.]){3}%s$" $octet $octet) $address -}}
{{- range $groups -}}{{- $bits = printf "%s%08b" $bits (atoi .) -}}{{- end -}}
{{- else if or (regexMatch $whole $address) (and (regexMatch $short $address) (lt (len $groups) 8)) -}}
{{- $zeros := repeat (sub 8 (len $groups) | int) "0:" -}}
{{- range regexFindAll "[0-9a-f]+" (replace "::" (print ":" $zeros) $address | lower) -1 -}}
{{- $bits = print $bits (print "000" . | trunc -4) -}}
{{- end -}}
{{- /* signs that are no digits, so that none is replaced twice */ -}}
{{- range $number, $digit := splitList "" "0123456789abcdef" -}}
{{- $bits = replace $digit (printf "%04b" $number | replace "0" "-" | replace "1" "+") $bits -}}
{{- end -}}
{{- end -}}
{{- $mask := ternary (trimPrefix (print $address "/") $text) (len $bits | toString) (contains "/" $text) -}}
{{- $readable := and $bits (regexMatch "^(0|[1-9][0-9]{0,2})$" $mask) (le (atoi $mask) (len $bits)) -}}
{{- if not (and $readable (not (regexMatch "[1+]" (substr (atoi $mask) -1 $bits)))) -}}
{{- fail (printf "%s: %q is no address and no network; write one such as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32" $place $text) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Entries of admissionPolicies.tunnels as a list in CEL, whose maps hold lists of texts alone, as CEL wants it. */}}
{{- define "dbtunnel.celTargets" -}}
{{- $targets := list -}}
{{- range . -}}
{{- $names := list -}}{{- $suffixes := list -}}{{- $networks := list -}}{{- $ports := list -}}
{{- range .hosts -}}
{{- /* one that the API server cannot read would have it refuse every tunnel */ -}}
{{- if or (regexMatch "[/:]" .) (regexMatch "^[0-9.]+$" .) -}}
{{- include "dbtunnel.checkNetworks" (list "admissionPolicies.tunnels" (list .)) -}}
{{- end -}}
{{- if contains "/" . -}}
{{- $networks = append $networks . -}}
{{- else if contains ":" . -}}
{{- $networks = append $networks (printf "%s/128" .) -}}
{{- else if regexMatch "^[0-9.]+$" . -}}
{{- $networks = append $networks (printf "%s/32" .) -}}
{{- else if hasPrefix "*." . -}}
{{- $suffixes = append $suffixes (trimPrefix "*" . | lower | trimSuffix ".") -}}
{{- else -}}
{{- $names = append $names (lower . | trimSuffix ".") -}}
{{- end -}}
{{- end -}}
{{- range .ports -}}{{- $ports = append $ports (toString (int .)) -}}{{- end -}}
{{- $hosts := .hosts | default list -}}
{{- $told := $hosts | join ", " | default "any host" -}}
{{- if $ports -}}{{- $told = printf "%s port %s" $told (join ", " $ports) -}}{{- end -}}
{{- $targets = append $targets (dict "names" $names "suffixes" $suffixes "networks" $networks "hosts" $hosts "ports" $ports "namespaces" (.namespaces | default list) "told" (list $told)) -}}
{{- end -}}
{{- toJson $targets -}}
{{- end -}}
