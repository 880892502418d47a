// Package crashtest records once what a host does to its disks and then builds every state that the disks may be in
// after the power went, or the process was killed, at any point of it: for every prefix of the operations, what was not
// yet synced is kept or lost in every combination, and one write of it is torn at sectors.
//
// # Main types
//
//   - Trace: the recording. Disk: a disk that writes down what is done to it (and behaves like one meanwhile).
//   - States: walks over the states in parallel and calls a check for each that it has not seen before.
//   - State: one of them. Its Images can be opened, written and reopened; they are thrown away after the check.
//     Record makes a Trace out of it, for a second crash inside the recovery.
//
// # Invariants
//
//   - A state at N is: operations 0…N-1 have begun, those that are syncs have returned; nothing of operation N was done. So
//     whatever was promised when the trace had at most N operations holds in every one of them.
//   - Sectors of 512 bytes are written wholly or not at all, in any order.
//   - Building a state costs the pages that its unsynced operations touch: pages are shared and copied when written.
//   - A run repeats: what is drawn depends on Config.Seed and N alone.
package crashtest
