#!/bin/bash
# Exit code 0 when the conclave process of this container says that it is alive, or ready. The image has no curl: bash
# opens the connection itself.
#
#   healthcheck [live|ready] [PORT]    the port of --admin-listen; 9000, or that of $CONCLAVE_ADMIN_LISTEN
set -euo pipefail
state=${1:-live}
port=${2:-${CONCLAVE_ADMIN_LISTEN:-:9000}}
port=${port##*:}

exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /health/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$state" >&3
read -r -t 2 _ status _ <&3
if [[ $status != 200 ]]; then
  echo "/health/$state: $status" >&2
  exit 1
fi
