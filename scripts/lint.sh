#!/bin/bash
# lint.sh: go vet, gofumpt, golangci-lint, shellcheck. All of them run, the
# status says whether all were content.
# shellcheck disable=SC2317 # the steps are called by name
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
here=$PWD/scripts
go=${GO:-go}
status=0

step() {
	local start=$SECONDS name=$1
	shift
	if "$@"; then
		echo "lint: $name ok ($((SECONDS - start)) s)"
	else
		echo "lint: $name FAILED" >&2
		status=1
	fi
}

sources() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r f; do [[ -e $f ]] && echo "$f"; done; }

fumpt() {
	local tool out
	tool=$("$here/tool.sh" gofumpt) || return 1
	mapfile -t files < <(sources '*.go')
	out=$("$tool" -l "${files[@]}") || return 1
	[[ -z $out ]] || {
		echo "not formatted; run gofumpt -w on: $out" >&2
		return 1
	}
}

golangci() {
	local tool
	tool=$("$here/tool.sh" golangci-lint) || return 1
	"$tool" run --allow-parallel-runners ./...
}

shell() {
	mapfile -t files < <(sources '*.sh' .ci/run scripts/torture scripts/bench/bench)
	command -v shellcheck >/dev/null || {
		echo "shellcheck is missing: run scripts/deps.sh" >&2
		return 1
	}
	shellcheck "${files[@]}"
}

step "go vet" "$go" vet ./...
step gofumpt fumpt
step golangci-lint golangci
step shellcheck shell
exit "$status"
