// Package drill runs disaster-recovery drills and reports them: it opens a view of a mirror's copy (mirror.Agent.StartDrill, by
// whatever Agent it is given), makes a device and a mount of it, runs the operator's checks, takes everything back, and signs what
// came of it. Drills of the other kinds (Kind) move the lead or the flow of the mirror itself, and lead back.
//
//   - Config (config.go): the operator's file.
//   - Run (run.go): one drill of a view, in steps; meter.go what replication does meanwhile.
//   - Kind, Moves (kind.go), Prepare and Plan (real.go): the others. switchover.go, failover.go, failback.go: each is its
//     preconditions, its plan in words, and its steps. Moved (moved.go): what a report has of them.
//   - device.go: the view as a block device, by the kernel's NBD client or by nbdfuse and a loop device. command.go: commands
//     with limits. undertaker.go: what takes everything back when this process is killed. daemons.go: what checks have started and left.
//   - Report (report.go): what came of it. sign.go: its file, signed. page.go, page.html: the same as a page.
//
// # Invariants
//
//   - A drill ends with the process that runs it: the view is held by a connection to the daemon (Hold), mounts and loop devices are
//     taken back by the undertaker, a process of its own that hears of its parent's end by a closed pipe. A lead that has moved stays
//     where it is then: both hosts are well, and who killed the drill may want to look.
//   - What leads back is noted before its order is given, goes by what status says and not by what was done, and is tried again
//     until it is done or late. An order is waited for to its end, whoever interrupts.
//   - What is verified of a report is every byte of its file: the signature covers the bytes of the report as they stand there, and
//     the rest has to be what this package would write.
package drill
