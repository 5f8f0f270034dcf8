{{- define "flotilla.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "flotilla.operator" -}}
{{ include "flotilla.name" . }}-operator
{{- end -}}

{{- define "flotilla.selector" -}}
app.kubernetes.io/name: flotilla-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flotilla.labels" -}}
{{ include "flotilla.selector" . }}
app.kubernetes.io/part-of: flotilla
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "flotilla.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "flotilla.operator" .) }}
{{- else -}}
{{ required "serviceAccount.name: name the ServiceAccount that exists, or set serviceAccount.create" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "flotilla.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The chart sets these keys itself and overrides the user's settings; the schema refuses them in `config`. */ -}}
{{- define "flotilla.config" -}}
{{- $election := mergeOverwrite (dict "name" (include "flotilla.operator" .)) (deepCopy (.Values.config.leader_election | default dict)) (dict "namespace" .Release.Namespace) -}}
{{- $files := dict -}}
{{- if .Values.engines }}{{ $_ := set $files "engines" "/etc/flotilla/engines" }}{{ end -}}
{{- if .Values.priceCatalog }}{{ $_ := set $files "price_catalog" "/etc/flotilla/prices.yaml" }}{{ end -}}
{{- if .Values.accelerators }}{{ $_ := set $files "accelerators" "/etc/flotilla/accelerators.yaml" }}{{ end -}}
{{- $known := .Files.Get "files/settings.yaml" | fromYamlArray -}}
{{- if and (has "gateway_image" $known) (not .Values.config.gateway_image) }}{{ $_ := set $files "gateway_image" (include "flotilla.image" .) }}{{ end -}}
{{- mergeOverwrite (deepCopy .Values.config) $files (dict "leader_election" $election "listen_port" 8080) | toYaml -}}
{{- end -}}
