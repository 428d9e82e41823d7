{{/* Labels of every object. Those of pod templates are fewer, so that a new version of the chart alone restarts no pod. */}}
{{- define "larder.labels" -}}
{{ include "larder.podLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "larder.podLabels" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/part-of: larder
{{- end }}

{{- define "larder.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The runtime's socket on the node. */}}
{{- define "larder.runtimeSocket" -}}
{{- if .Values.runtimeSocket -}}
{{ .Values.runtimeSocket }}
{{- else if eq .Values.backEnd "crio" -}}
/run/crio/crio.sock
{{- else -}}
/run/containerd/containerd.sock
{{- end }}
{{- end }}

{{/* Where the runtime keeps images on the node. */}}
{{- define "larder.runtimeStore" -}}
{{- if .Values.runtimeStore -}}
{{ .Values.runtimeStore }}
{{- else if eq .Values.backEnd "crio" -}}
/var/lib/containers
{{- else -}}
/var/lib/containerd
{{- end }}
{{- end }}

{{/* More variables of a container: `env` of agent or controller. */}}
{{- define "larder.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* The service account's token, bound to the pod and so to its node. The mode is 256 (0400) or 292 (0444): octal numbers
do not mean the same to all that read YAML. */}}
{{- define "larder.token" -}}
- name: token
  projected:
    defaultMode: {{ . }}
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
