#!/usr/bin/env bash
# bump.sh vX.Y.Z: writes go.mod and go.sum anew for a version of Kubernetes. All other versions stand below.
set -euo pipefail
cd "$(dirname "$0")"

kubernetes=${1:?the version of Kubernetes, such as v1.36.3}
coredns=v1.14.7
containerd=v2.3.7
runc=v1.4.3
plugins=v1.9.1

go mod download "k8s.io/kubernetes@$kubernetes"
theirs=$(go env GOMODCACHE)/cache/download/k8s.io/kubernetes/@v/$kubernetes.mod
etcd=$(awk '$1 == "go.etcd.io/etcd/server/v3" { print $2 }' "$theirs")
edits=(
    -go=1.26.0
    "-require=k8s.io/kubernetes@$kubernetes"
    "-require=go.etcd.io/etcd/server/v3@$etcd"
    "-require=github.com/coredns/coredns@$coredns"
    "-require=github.com/containerd/containerd/v2@$containerd"
    "-require=github.com/opencontainers/runc@$runc"
    "-require=github.com/containernetworking/plugins@$plugins"
    # What is built as it is: `go list tool`.
    -tool=github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}
    -tool=github.com/containernetworking/plugins/plugins/{ipam/host-local,main/bridge,main/loopback,meta/portmap}
    -tool=github.com/opencontainers/runc
)
# Kubernetes calls the modules it publishes from its own tree v0.0.0 and replaces them by folders, which does not hold
# for a module that imports it: here each is replaced by what was published.
while read -r module; do
    edits+=("-replace=$module=$module@v0${kubernetes#v1}")
done < <(sed -nE 's/^(replace )?\s*(\S+) => \.\/staging.*/\2/p' "$theirs")

rm -f go.mod go.sum
go mod init underpass.dev/e2e/cluster
go mod edit "${edits[@]}"
go mod tidy
