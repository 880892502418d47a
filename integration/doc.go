// Package integration holds no code of the product: its tests run the real
// binary as real processes, with the NBD clients that users have, and try to
// break what the product guarantees (the guarantees G1 to G9 of the design).
//
// # What is here
//
//   - house_test.go: the rules of the house. Who may import whom, how long a
//     file may be, which names are not allowed. shell_test.go: the same for scripts.
//   - harness_main_test.go builds the binary once; harness_agent_test.go starts,
//     kills, freezes and restarts it; harness_mirror_test.go makes a source with
//     its targets; harness_status_test.go waits for what `status --json` says.
//   - harness_nbd_test.go is a small pipelining NBD client and
//     harness_ledger_test.go the oracle on top of it: it knows for every block
//     which write was issued, answered and flushed, and judges what is read
//     after a fault.
//   - harness_proxy_test.go puts a path that can be cut or fall silent between
//     two agents.
//   - harness_netns_test.go makes three hosts of network namespaces and breaks their
//     cables; harness_netmirror_test.go runs agents in them, harness_port*_test.go
//     the data port alone, as this test's own binary started again, with a client
//     whose ledger harness_books_test.go compares with the other side's.
//   - claims*_test.go: TestClaims, one subtest for each claim of the data port;
//     README.md is the table of what it shows. chaos_test.go: everything at once.
//   - package_test.go: the Debian package, its life under a real systemd that harness_package_test.go
//     starts in a root of its own (testdata/systemd-root.sh). upgrade_test.go: upgraded under a filesystem that Debian's kernel has mounted.
//   - guide_test.go: what README.md tells to type, carried out on three hosts with its names and addresses (harness_guide*_test.go).
//   - page_test.go: the dashboard in Chromium; -artifacts keeps what it looked like.
//   - monitoring_test.go: what is scraped is what status says; promtool over scripts/monitoring.
//   - matrix*_test.go: TestMatrix, each fault in each mode; README.md has the table. harness_cell_test.go is what every cell
//     of it does, harness_history_test.go the client and the judge of histories, harness_synced_test.go the filesystem in
//     use, harness_guest_test.go a virtual machine whose power is cut.
//   - vm_test.go boots Debian's kernel (scripts/vm), which attaches to the agent.
//   - nbd_*_test.go are the conformance suite of the front: real clients
//     (nbd_clients_test.go), libnbd's shell with the scripts of testdata/nbdsh
//     (nbd_shell_test.go), what no client says (nbd_answers_test.go), and nbdkit, to which the same is done (nbd_differential_test.go).
//   - planted/: small deliberate faults, one patch each, and the test that demands
//     that some test of the project notices each of them (make planted).
//   - The other files are the tests: restart_test.go, filesystem_test.go,
//     kill_test.go, log_test.go, partition_test.go, path_test.go, addresses_test.go, switch_test.go, promote_test.go,
//     majority_test.go (three members), arbiter_test.go (with a real etcd),
//     nbd_tls_test.go, badinput_test.go, wrongdisk_test.go, disk_test.go (disks
//     that are full or fail), rot_test.go, demote_test.go, rejoin_test.go, verify_test.go
//     (verify, repair and scrub between real agents), failback_test.go and
//     plannedkill_test.go (the lead handed over and home again, under load and kills), drill_test.go (a database at
//     points in time; drills killed at every step), drill_postgres_test.go (PostgreSQL in drills), drillmove_test.go (drills that move lead
//     or flow), midresync_test.go (a promotion in the middle of a resync), cli_test.go with testdata/*.txtar, demo_test.go.
//
// # Rules
//
// Every process ends with its test, by its pid. A wait has a deadline and says
// at its end what it had seen last. A test that needs root or a program says so
// and is skipped; in CI such a skip is an error (scripts/ci-allowed-skips). The
// logs of all agents of a test are printed when it fails.
//
// # Knobs
//
//	MIRROR_AGENT_ROUNDS      rounds of the kill tests (default: 100 in all)
//	MIRROR_AGENT_SEED        seed of everything random; a failure prints it
//	MIRROR_AGENT_CHAOS=10m   how long TestChaos goes on (default: 20s)
//	MIRROR_AGENT_UPDATE=1    TestClaims and TestMatrix write their tables in README.md
//	MIRROR_AGENT_RACE=1      builds the binary with the race detector
//	MIRROR_AGENT_BIN         a binary to test in place of the one built here
//	MIRROR_AGENT_CRASH=full  journal and mirror: every state after a power cut, not a sample
//	MIRROR_AGENT_RAPID=n     journal, mirror and dataport: checks of each model (default: 100, dataport 150)
//	MIRROR_AGENT_MODEL=n     mirror: states at most in each search of the protocol's model
//	MIRROR_AGENT_PLANTED=1   plants the faults (or a part of the name of some)
package integration
