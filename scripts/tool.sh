#!/bin/bash
# tool.sh golangci-lint|gofumpt|nfpm: prints the path of a development tool, built on
# first use with the Go module proxy alone and kept per version in the user's
# cache. The product's go.mod knows nothing of them.
set -euo pipefail

case ${1:-} in
golangci-lint) module=github.com/golangci/golangci-lint/v2/cmd/golangci-lint version=v2.15.0 ;;
gofumpt) module=mvdan.cc/gofumpt version=v0.12.0 ;;
nfpm) module=github.com/goreleaser/nfpm/v2/cmd/nfpm version=v2.43.4 ;; # later ones need modules that the proxy does not serve
*)
	echo "usage: tool.sh golangci-lint|gofumpt|nfpm" >&2
	exit 2
	;;
esac

go=${GO:-go}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mirror-agent/tools/$1-$version-$("$go" env GOVERSION)
if [[ ! -x $cache/$1 ]]; then
	echo "tool.sh: building $1 $version (once, golangci-lint takes minutes)" >&2
	mkdir -p "$cache"
	GOFLAGS='' CGO_ENABLED=0 GOBIN=$cache "$go" install -trimpath -ldflags='-s -w' "$module@$version" >&2
fi
echo "$cache/$1"
