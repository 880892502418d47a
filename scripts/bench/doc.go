// Command bench measures mirror-agent beside its peers, on the same machine, with the same client, the same prefilled
// files, one after the other in turns (A B C A B C …), so that noise hits all alike. Ratios are taken within each turn.
//
// The NBD servers by themselves (-only front), all on one file, nothing mirrored, by unix socket and by TCP:
//
//	mirror-agent package blockdev/nbd over blockdev.File
//	nbdkit       its file plugin
//	qemu-nbd     with its default cache mode
//	go-nbd       its server.Handle over its FileBackend
//
// The client of this part is our own (client.go): it takes little of the processors, so that the server is what is
// measured, and sends requests together that are due at the same time. fio's engine needs as much time for a request as a
// fast server does, and refuses go-nbd.
//
// Log and volume (-only volume): a source without a target beside nbdkit's file plugin, which writes in place; the same client.
// A log takes for a while what its device could not, so each run begins with a lead-in of the same load, and what is not in the
// device at its end is printed. What waits for the log's disk is measured a second time with the log on another filesystem:
// -journal-dir, or one that is found, or, as root, one made in a file.
//
// The mirror (-only mirror), in each of its modes, over loopback with TLS; the same client:
//
//	nbdkit       nbdkit's file plugin, not mirrored: the floor
//	mirror-agent one pair of agents, whose mode is changed
//	qemu         qemu-storage-daemon, blockdev-mirror with copy-mode=write-blocking to a qemu-nbd on the same machine
//
// Between two runs all servers have to be idle again, and the CPU time that they need until then counts for the run before:
// a journal that is applied later is not free. What is durable when a flush returns differs and is printed with the table.
//
// What an operator waits for (-only times): a restart and a promotion with a full log, the switch to a hot backup, a full
// resync beside nbdcopy, and a write in mode receive over a link with delay (as root).
//
// The data port (-only port): source and target as processes of their own, over loopback beside io.Copy over one TCP
// connection and beside crypto/tls; and, as root, between network namespaces: links of 100 and 20 Mbit/s (tbf), a link
// with delay (scripts/netns/wire), and three links of which one falls silent under load (nft).
//
// Usage: go run ./scripts/bench -agent bin/mirror-agent [-only front|volume|mirror|times|port] [-rounds 5] [-time 2s] [-size 512]
// [-journal 256MiB] [-front-rounds 7] [-front-time 1s] [-volume-rounds 5] [-volume-time 3s] [-port-rounds 5] [-port-time 1s]
// [-match REGEXP] [-readme FILE] [-dir DIR] [-journal-dir DIR]. Everything it starts it ends, by pid, also on Ctrl-C; its files are removed.
package main
