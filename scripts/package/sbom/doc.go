// Command sbom prints the software bill of materials of a Go program: a CycloneDX document of what its linker has written into
// it, so it tells what is in that file and not what a source tree would give today.
//
//	go run ./scripts/package/sbom bin/mirror-agent 1.2.3
//
// It lists the modules with their versions and go.sum's hashes, and Go's standard library, all as direct dependencies:
// who needs whom is not in the file. The same program gives the same document.
package main
