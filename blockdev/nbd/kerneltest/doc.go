// Package kerneltest is a fake of the kernel's NBD driver, beside the real thing: it understands the generic netlink
// messages of the family "nbd" and drives the sockets that it is given as the driver of Linux 6.1 does, so that
// attaching can be tested without root, a module or a virtual machine.
//
//	Kernel   the driver with its devices; Dial returns generic netlink sockets to it
//	Conn     one such socket; it has the methods of *genetlink.Conn that attaching uses
//	device   one nbdN: its links, and requests that go out on any live one
//
// What it does as the driver does, and what a test may lean on:
//
//   - A link is dead when its socket ends. Everyone in the multicast group hears of it, unless the device is being
//     disconnected.
//   - A request whose link dies goes out again on another link; without one it waits for DEAD_CONN_TIMEOUT, then it fails and
//     so do all others at once, until there are new links.
//   - RECONFIGURE replaces dead links by new ones, in order, and lets go of the sockets that are too many; the identifier must be
//     that of CONNECT.
//   - CONNECT of a connected device is EBUSY, without a privilege everything is EPERM.
//
// It does not do: timeouts of single requests, partitions, the block layer. Its files below root (sys/block/nbdN) are
// those that the real one shows.
package kerneltest
