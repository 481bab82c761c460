{{/* The mesh's own namespace is part of its programs, so the chart goes nowhere else. */}}
{{- define "underpass.namespace" -}}
{{- if ne .Release.Namespace "underpass-system" }}{{ fail "install this chart in the namespace underpass-system" }}{{ end -}}
{{ .Release.Namespace }}
{{- end }}

{{/* Of a part: (dict "root" $ "part" "agent") */}}
{{- define "underpass.labels" -}}
{{ include "underpass.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: underpass
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "underpass.selector" -}}
app.kubernetes.io/name: underpass-{{ .part }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "underpass.image" -}}
image: {{ printf "%s/%s:%s" .root.Values.image.registry .part (.root.Values.image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}

{{- define "underpass.logFlags" -}}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}
