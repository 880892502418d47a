// Command testreport reads `go test -json` and prints what a person wants to
// see: the closing line of every package, the whole output of a test that
// failed, and at the end what the failed ones said last and how many passed,
// failed and were skipped.
//
//	go test -json ./... | testreport [-allowed FILE] [-strict] [-v]
//
// A test that is skipped on a machine that should be able to run it is a hole
// that nobody sees. With -strict every skip is an error unless FILE lists it:
//
//	# test (package path and name)            reason
//	mirror-agent/integration.TestVM           needs an hour: runs nightly
//
// A line of FILE that no longer fits any skip is not an error: the machine at
// hand may be able to run more than the one it was written for.
package main
