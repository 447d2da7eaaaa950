{{- define "conclave.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "conclave.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "conclave.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "conclave.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "conclave.clusterId" -}}
{{- default (include "conclave.fullname" .) .Values.clusterId -}}
{{- end -}}

{{- define "conclave.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- /* Labels that never change, as selectors must not. Called with (list $ "role"). */ -}}
{{- define "conclave.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "conclave.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "conclave.labels" -}}
{{- $root := index . 0 -}}
{{ include "conclave.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- /* Control addresses of all routers, for --router: of several one leads, and members find out which. */ -}}
{{- define "conclave.routers" -}}
{{- $full := include "conclave.fullname" . -}}
{{- $domain := printf "%s-router.%s.svc.%s" $full .Release.Namespace .Values.clusterDomain -}}
{{- $addresses := list -}}
{{- range $i := until (int .Values.router.replicas) -}}
{{- $addresses = append $addresses (printf "%s-router-%d.%s:7000" $full $i $domain) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}

{{- define "conclave.usesTrustedNetwork" -}}
{{- if and .Values.trustedNetwork (not .Values.tls.enabled) -}}true{{- end -}}
{{- end -}}

{{- define "conclave.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- default (printf "%s-%s-tls" (include "conclave.fullname" $root) $role) (index $root.Values.tls.secrets $role) -}}
{{- end -}}

{{- /* Flags of all roles. --insecure: metrics, health and the HTTP API are plain, whatever TLS the rest has. */ -}}
{{- define "conclave.commonArgs" -}}
- --admin-listen=0.0.0.0:9000
- --insecure
- --cluster-id={{ include "conclave.clusterId" . }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- if .Values.tls.enabled }}
- --tls-cert=/etc/conclave/tls/tls.crt
- --tls-key=/etc/conclave/tls/tls.key
- --tls-ca=/etc/conclave/tls/ca.crt
{{- end }}
{{- end -}}

{{- define "conclave.modelArgs" -}}
{{- if .Values.model.path }}
- --model={{ .Values.model.path }}
{{- end }}
{{- if .Values.model.requireManifest }}
- --require-manifest
{{- end }}
- --dtype={{ .Values.model.dtype }}
{{- end -}}

{{- define "conclave.dataArgs" -}}
- --router={{ include "conclave.routers" . }}
- --channel={{ .Values.channel }}
{{- if include "conclave.usesTrustedNetwork" . }}
- --trusted-network
{{- end }}
{{- end -}}

{{- define "conclave.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end -}}

{{- /* What a network policy opens has to be what UCX takes. */ -}}
{{- define "conclave.ucxEnv" -}}
{{- if include "conclave.usesTrustedNetwork" . }}
- name: UCX_TCP_PORT_RANGE
  value: "{{ .Values.networkPolicy.ucxPorts.first }}-{{ .Values.networkPolicy.ucxPorts.last }}"
# A container that starts again in the same pod would find its port in TIME_WAIT.
- name: UCX_TCP_CM_REUSEADDR
  value: "y"
{{- end }}
{{- end -}}

{{- /* Liveness asks whether the process answers, never whether it can serve: a frontend without workers, or one that loads
for minutes, must not be killed for it. Called with (list $ readiness-path). */ -}}
{{- define "conclave.probes" -}}
{{- $p := (index . 0).Values.probes -}}
startupProbe:
  httpGet: {path: /health/live, port: admin}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ max 1 (div $p.startupSeconds $p.periodSeconds) }}
livenessProbe:
  httpGet: {path: /health/live, port: admin}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.failureThreshold }}
readinessProbe:
{{- if eq (index . 1) "grpc" }}
  grpc: {port: 50051}
{{- else }}
  httpGet: {path: {{ index . 1 }}, port: admin}
{{- end }}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.failureThreshold }}
{{- end -}}

{{- define "conclave.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "conclave.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Where a pod may and should run. Called with (list $ "role"). */ -}}
{{- define "conclave.scheduling" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if $values.affinity }}
affinity: {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "conclave.selectorLabels" . | nindent 14 }}
{{- end }}
{{- end -}}

{{- /* Mounts and volumes of all roles. Called with (list $ "role"). */ -}}
{{- define "conclave.mounts" -}}
{{- $root := index . 0 -}}
- {name: tmp, mountPath: /tmp}
{{- if $root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/conclave/tls, readOnly: true}
{{- end }}
{{- if ne (index . 1) "router" }}
- {name: shm, mountPath: /dev/shm}
{{- if $root.Values.model.volume }}
- {name: model, mountPath: /model, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "conclave.volumes" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if $root.Values.tls.enabled }}
{{- /* The kubelet owns the files and fsGroup is their group, which alone may read them. */}}
- name: tls
  secret: {secretName: {{ include "conclave.tlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- if ne $role "router" }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ (index $root.Values $role).shmSize }}}
{{- with $root.Values.model.volume }}
- name: model
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Rules of the network policies; the second is called with (list $ "role of the peers"). */ -}}
{{- define "conclave.metricsRule" }}
    - ports: [{port: 9000, protocol: TCP}]
      from:
        {{- if .Values.networkPolicy.metricsFrom }}
        {{- toYaml .Values.networkPolicy.metricsFrom | nindent 8 }}
        {{- else }}
        - namespaceSelector: {}
        {{- end }}
{{- end }}

{{- define "conclave.ucxRule" }}
{{- $root := index . 0 }}
{{- if include "conclave.usesTrustedNetwork" $root }}
    # UCX ends the process that gets bytes which are not its own: nobody but the peer reaches these ports.
    - ports: [{port: {{ $root.Values.networkPolicy.ucxPorts.first }}, endPort: {{ $root.Values.networkPolicy.ucxPorts.last }}, protocol: TCP}]
      from:
        - podSelector:
            matchLabels: {{- include "conclave.selectorLabels" . | nindent 14 }}
{{- end }}
{{- end }}
