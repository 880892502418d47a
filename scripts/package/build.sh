#!/bin/bash
# build.sh OUT: makes the Debian package with the static binary, its units, manual pages and completion in OUT, beside
# an SBOM (CycloneDX) and SHA256SUMS. The same commit gives the same bytes.
#   VERSION     what the binary says of itself; the package's version is made of it (default: git describe)
#   GOARCH      amd64 (default: this machine's), arm64 …
#   BINARY      packs this program in place of building one
#   MAINTAINER  Name <address>
set -euo pipefail
out=$(realpath -m "${1:?usage: build.sh OUT}")
cd "$(dirname "$0")/../.."
go=${GO:-go}
arch=${GOARCH:-$("$go" env GOARCH)}
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH CGO_ENABLED=0

# Debian's versions begin with a digit and grow: v1.2-3-gabc is 1.2+3.gabc, a commit without any tag its time.
case $VERSION in
v[0-9]* | [0-9]*.[0-9]*) deb=${VERSION#v} deb=${deb/-/+} deb=${deb//-/.} ;;
*) deb=0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).${VERSION//[^A-Za-z0-9]/.} ;;
esac

STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
build() { # FILE
	"$go" build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o "$1" ./cmd/mirror-agent
}
if [[ -n ${BINARY:-} ]]; then
	cp "$BINARY" "$STAGE/mirror-agent"
else
	GOOS=linux GOARCH=$arch build "$STAGE/mirror-agent"
fi
# Pages and completion are written by the program itself, by one that runs here.
teller=$STAGE/mirror-agent
if [[ $arch != $("$go" env GOHOSTARCH) ]]; then
	teller=$STAGE/teller
	GOOS='' GOARCH='' build "$teller"
fi
mkdir -p "$STAGE/man" "$STAGE/completion" "$out"
"$teller" man "$STAGE/man"
gzip -n9 "$STAGE"/man/*.1
for shell in bash zsh fish; do
	"$teller" completion "$shell" >"$STAGE/completion/$shell"
done
GOARCH='' "$go" run ./scripts/package/sbom "$STAGE/mirror-agent" "$VERSION" >"$STAGE/sbom.cdx.json"

cp README.md LICENSE scripts/package/{nfpm.yaml,sysusers.conf,vol0.yaml.example,postinst,prerm,postrm,mirror-agent@.service,mirror-agent@.socket} "$STAGE"
find "$STAGE" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +

export ARCH=$arch VERSION=$deb MAINTAINER=${MAINTAINER:-mirror-agent maintainers <root@localhost>}
nfpm=$(GOARCH='' scripts/tool.sh nfpm)
file=mirror-agent_${deb}_$arch.deb
(cd "$STAGE" && "$nfpm" package --config nfpm.yaml --packager deb --target "$out/$file" >&2)
cp "$STAGE/sbom.cdx.json" "$out/mirror-agent_${deb}_$arch.cdx.json"
(cd "$out" && sha256sum "$file" "mirror-agent_${deb}_$arch.cdx.json" >SHA256SUMS)
echo "$out/$file"
