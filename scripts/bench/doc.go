// Command bench measures mirror-agent beside its peers, with the same client
// (fio's nbd engine), the same prefilled files, on the same machine, one after
// the other in turns (A B C A B C …), so that noise hits all alike:
//
//	nbdkit       nbdkit's file plugin, not mirrored: the floor
//	mirror-agent a source in flush mode with its target
//	qemu         qemu-storage-daemon, blockdev-mirror with copy-mode=write-blocking
//	             to a qemu-nbd on the same machine
//
// Two loads: random writes of 4 KiB, 32 at a time; and the same with a flush
// after every 32. Between two runs all servers have to be idle again, and the
// CPU time that they need until then counts for the run before: a journal that
// is applied later is not free. The result is a table of medians and of the
// medians of the ratios within each turn; what is durable when a flush returns
// differs and is printed with it.
//
// Usage: go run ./scripts/bench -agent bin/mirror-agent [-rounds 5] [-seconds 3]
// [-size 512] [-journal 256MiB] [-dir DIR]. Everything it starts it ends, by
// pid, also on Ctrl-C; its files are removed.
package main
