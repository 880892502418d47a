// Package hook runs the operator's commands when something happens to the mirror.
//
//	Hook     on which events, what to run, for how long at most
//	Expand   names and groups of names → kinds of events
//	Runner   follows the agent's events and runs the hooks
//
// # What holds
//
//   - Nothing here can hold up the mirror: the agent adds an event to its own list and goes on; the Runner reads that list.
//   - A hook's commands run one after another, in the order of the events; two hooks run beside each other.
//   - What a hook has not got to yet waits in a queue of QueueLength events. One more takes the place of the oldest; how many
//     were lost stands in the log and, as "missed", in the next event that the hook gets.
//   - A command that takes longer than its timeout is killed with all processes of its group. So is one that still runs
//     EndGrace after the agent has ended.
//   - The command gets the event as one line of JSON on stdin, the fields of `events --json` and "missed", and a few words in its
//     environment (environment in run.go). What it prints goes to the log, bounded.
package hook
