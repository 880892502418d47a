// Package certtest makes the certificates that tests of NBD over TLS need: authorities, and what they sign for servers at
// localhost, 127.0.0.1 and ::1 and for clients, all with EC P-256, as the PEM files that libnbd and qemu look for in a directory.
//
//	Authority  signs; Issue returns PEM, Write puts files into a directory
//	Replace    changes a file as a renewal does
package certtest
