#!/bin/bash
# test.sh FLAGS… PACKAGES…: go test through scripts/testreport, which prints the
# closing line of each package, the output of what failed, and the summary.
# MIRROR_AGENT_CI=1: a skip that scripts/ci-allowed-skips does not list fails.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
go=${GO:-go}

report=$(mktemp -d) || exit 1
trap 'rm -rf "$report"' EXIT
CGO_ENABLED=0 "$go" build -o "$report/testreport" ./scripts/testreport || exit 1

flags=(-allowed scripts/ci-allowed-skips)
[[ ${MIRROR_AGENT_CI:-} == 1 ]] && flags+=(-strict)
# go test's own status counts too: it could die before it says anything.
"$go" test -json "$@" | "$report/testreport" "${flags[@]}"
status=("${PIPESTATUS[@]}")
((status[0] == 0 && status[1] == 0))
