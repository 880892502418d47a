// Package planted holds small deliberate faults, one patch each, and the test that plants them one by one and demands that
// the project's tests turn red. A fault that nobody notices is a hole in the tests, not in the product.
//
// # A patch
//
// A unified diff of few context lines under a header:
//
//	Fault: what it breaks
//	Guarantee: G2                  (one of mirror/doc.go, or TLS, or NBD, or verify)
//	Packages: ./mirror             (whose tests have to see it)
//	Run: ^TestCrashStates$         (which of them; chosen to be quick)
//	Timeout: 60s                   (a test that hangs is red, too)
//
// The lines that a hunk expects must be in the file exactly once, wherever. A patch that does not fit any more is an
// error: write it anew for the new code. It is never applied to the checkout: go's -overlay hands the patched files to
// the compiler, so the build cache is shared and nothing is left behind.
//
// # How it runs
//
//   - go test ./integration/planted: all patches fit and compile, taken together where they do not touch each other.
//   - make planted (MIRROR_AGENT_PLANTED=1): each is planted alone, its tests run, and a table says which test caught it
//     and how long that took. MIRROR_AGENT_PLANTED=NAME: only patches whose name contains NAME.
//   - Red is a test that fails, panics or hangs. A build that fails is an error of the patch; a test that passes is a
//     survivor and fails the run, and so does a -run that matches no test.
package planted
