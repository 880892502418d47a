// Command mirror-agent mirrors a block device to another host while it is
// written. This room is the command line: one file per command, the
// configuration, what the operator sees, and the demo.
//
//	main.go       the process: signals, exit status, the one line of an error
//	root.go       the tree of commands
//	keys.go       every setting once: flag, environment variable, key in the file
//	load.go       flags, then MIRROR_AGENT_*, then the file → settings
//	yamlfile.go   the file's keys with their lines; "did you mean"
//	daemon.go     settings → mirror.Agent + NBD front + control server; keys anew at SIGHUP
//	page.go       the dashboard's address and who may come in
//	supervisor.go how the agent is, told to systemd; man.go: the manual pages
//	socket.go     where the control socket is, and which one is meant
//	render.go     mirror.Status as text
//	watch.go      status --watch; metrics.go, hooks.go: what the daemon has beside the mirror
//	doctor*.go    what is in the way on this host and to the others
//	front.go      the NBD server and who may reach it; nbdtls.go: its certificates
//	attach.go     the mirror as /dev/nbdN, and the watch over its links
//	demo*.go      a source, a target and a backup on this machine; the drill
//
// Main types: app is the process with its streams and surroundings, so that
// every command runs in a test; settings is what a daemon starts with; front
// serves a volume by blockdev/nbd for a mirror.Agent; demo and drill own the
// processes they start.
//
// Invariants: exit status is 0 for done, 1 for refused or failed, 2 for wrong
// usage; an error is one line on stderr that names the thing, the reason and
// the way out; what is printed for scripts (--json) goes to stdout and
// nothing else does; the demo ends only processes that it started, by pid, and
// none of them survives it.
package main
