#!/usr/bin/env bash
# Certificates for mutual TLS between machines: an authority, made by the first call, and one certificate per call.
# (`conclave cluster certs` makes such ones for one machine.)
#
#   issue.sh DIR CLUSTER-ID ROLE NAME...
#
# ROLE: router, worker, frontend, operator or client. NAME: DNS names (*.example.org too) or addresses under which the
# holder is reached; an operator and a client are reached by nobody and may have localhost. Writes DIR/ROLE.pem and
# DIR/ROLE-key.pem, or DIR/ROLE-ID.pem for ROLE/ID in place of ROLE. DAYS (90) is how long they hold.
set -euo pipefail
umask 077

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

(($# >= 4)) || die "usage: issue.sh DIR CLUSTER-ID ROLE[/ID] NAME...; expected at least four arguments, found $#"
dir=$1 cluster=$2 role=${3%%/*} id=${3#*/}
shift 3
[[ $cluster =~ ^[A-Za-z0-9._-]+$ ]] || die "cluster id: expected letters, digits, '.', '_' or '-', found '$cluster'"
[[ $role =~ ^(router|worker|frontend|operator|client)$ ]] || die "role: expected a role of conclave, found '$role'"
[[ $id =~ ^[A-Za-z0-9._-]+$ ]] || die "id: expected letters, digits, '.', '_' or '-', found '$id'"
name=$role
[[ $id == "$role" ]] || name=$role-$id
days=${DAYS:-90}

mkdir -p "$dir"
[[ ! -e $dir/$name.pem && ! -e $dir/$name-key.pem ]] || die "$dir/$name.pem is there already"
if [[ ! -e $dir/ca.pem ]]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=conclave $cluster" \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign \
    -keyout "$dir/ca-key.pem" -out "$dir/ca.pem" 2>/dev/null
  chmod 644 "$dir/ca.pem"
fi

names=URI:conclave://$cluster/$role/$id
for host in "$@"; do
  if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then
    names+=,IP:$host
  else
    names+=,DNS:$host
  fi
done
request=$(mktemp)
trap 'rm -f "$request"' EXIT
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=conclave $name" \
  -keyout "$dir/$name-key.pem" -out "$request" 2>/dev/null
openssl x509 -req -in "$request" -CA "$dir/ca.pem" -CAkey "$dir/ca-key.pem" -days "$days" -out "$dir/$name.pem" \
  -extfile <(printf '%s\n' "subjectAltName=$names" basicConstraints=critical,CA:FALSE \
    keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth,clientAuth) 2>/dev/null
chmod 644 "$dir/$name.pem"
printf '%s\n' "$dir/$name.pem"
