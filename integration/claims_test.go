package integration

import (
	"fmt"
	"testing"
)

// claim is one row of README.md: what the system must do, what is played to see
// it, and the test that judges.
type claim struct {
	says     string
	scenario string
	test     func(t *testing.T, p *plays)
}

// plays are the scenarios that several claims look at; each is played when the
// first of them asks for it, and every claim judges for itself what was seen.
type plays struct {
	story   play[story]
	daemons play[daemonStory]
}

// play is a scenario that is played once.
type play[T any] struct {
	begun bool
	seen  *T
}

func (p *play[T]) of(t *testing.T, scene func(t *testing.T) *T) *T {
	t.Helper()
	if !p.begun {
		p.begun = true
		p.seen = scene(t)
	}
	if p.seen == nil {
		t.Fatal("the scenario failed under another claim")
	}
	return p.seen
}

// What the claims say; those of 16 and above say it of daemons, of a cluster of
// three hosts, of an installed program.
const (
	saysPort        = "one port, several connection paths, a data flow that can move to a backup"
	saysPaths       = "several logical connections at once, each on its own path"
	saysAddresses   = "the nodes exchange their network addresses"
	saysRegister    = "a client registers on the source node"
	saysCallback    = "the client's callback is called on events of the port"
	saysBalance     = "the load is balanced over the paths"
	saysTCP         = "the paths are TCP connections"
	saysMessages    = "messages asynchronous and synchronous"
	saysUnreachable = "a switch to the backup when the target cannot be reached"
	saysConnects    = "the switch establishes a connection to the backup"
	saysManual      = "the client is told, and starts the switch"
	saysAuto        = "the port starts the switch"
	saysReset       = "a logical connection that cannot communicate is reset"
	saysReserve     = "a logical connection that cannot communicate is reserved"
	saysBoth        = "data in both directions"
	saysMirroring   = "remote mirroring"
	saysMedium      = "the program on a medium"
)

// Scenarios that several claims share.
const (
	sceneStory   = "messages flow both ways over two paths; one is cut and mended; the target is killed; the port goes to the backup by itself"
	sceneDaemons = "the same with three running daemons and an application that writes through NBD"
)

var claims = map[int]claim{
	1:  {saysPort, sceneStory, claimOnePort},
	2:  {saysPaths, sceneStory, claimPaths},
	3:  {saysAddresses, "one seed address, three paths form; the target stops listening on one of its addresses and listens there again: the path drains, and comes back", claimAddresses},
	4:  {saysRegister, "a client that is not registered here, or over there, cannot send; two clients of one node get neither messages nor events of each other; one whose peer takes nothing holds up nobody else", claimRegister},
	5:  {saysCallback, "RST, reset, silence both ways and either way, cable out, suspend, restart and standstill of the target, switch, close: the exact sequence of events of each; callbacks that are slow, that switch, that close the port", claimEvents},
	6:  {saysBalance, "links of 100 and 20 Mbit/s carry at least 90 % of 120 to the client; round-robin is measured beside it", claimBalance},
	7:  {saysTCP, "packets are captured on both cables, in the clear and with TLS: TCP between the cable's own addresses, and nothing else", claimTCP},
	8:  {saysMessages, "2000 messages are accepted although the receiver stops to take them, and their receipts come when it goes on; calls return the handler's reply or its error", claimMessages},
	9:  {saysUnreachable, "all paths to the target are silently cut: data reaches the backup within the threshold of 3 s and 2 s more", claimUnreachable},
	10: {saysConnects, sceneStory, claimConnection},
	11: {saysManual, "all paths are silently cut: the client is told, not a packet goes to the backup until it calls Switch", claimManual},
	12: {saysAuto, sceneStory, claimAuto},
	13: {saysReset, "a path is reset by RST at the end and from the network, by silence, by a cable out, by ResetPath, while both sides send", claimReset},
	14: {saysBoth, "both sides send and call over three paths; one is cut, one reset, one deaf in one direction", claimBothDirections},
	15: {saysMirroring, "an ext4 in use while paths fall silent, are reset, refused, pulled out: then both devices are equal byte for byte", claimMirroring},
	16: {saysPort, sceneDaemons, claimDaemon},
	17: {saysPaths, sceneDaemons, claimDaemonPaths},
	18: {saysAddresses, "target and backup listen on all that their hosts have, the source knows one address of each; a host gets an address and loses it: a path forms, and drains; after the switch the backup's paths form; daemons do the same with `listen remove` and `listen add`", claimClusterAddresses},
	19: {saysRegister, "two mirrors over the same cables: one target stands still, the other mirror goes on; a source of a name that nobody has there is refused", claimDaemonRegister},
	20: {saysCallback, sceneDaemons, claimDaemonEvents},
	21: {saysBalance, "what an application writes goes over links of 100 and 20 Mbit/s at no less than 90 % of 120", claimDaemonBalance},
	22: {saysTCP, sceneDaemons, claimDaemonTCP},
	23: {saysMessages, "all paths silent: writes are answered, a FLUSH is not before the paths are whole and the target has what it covers", claimDaemonMessages},
	24: {saysUnreachable, "all paths to the target's daemon are silently cut: data goes to the backup within the threshold of 3 s and 2 s more", claimDaemonUnreachable},
	25: {saysConnects, sceneDaemons, claimDaemonConnection},
	26: {saysManual, "the operator gets event, alarm and the way out; not a packet goes to the backup until he orders it", claimDaemonManual},
	27: {saysAuto, sceneDaemons, claimDaemonAuto},
	28: {saysReserve, "three paths, two carry data; one of them is refused, silent, pulled out: its place and identity are kept on both sides, the third carries data meanwhile, and it stands by when it is back", claimReserve},
	29: {saysBoth, "three hosts send to and call each other while paths to both targets are cut, pulled out and reset", claimAllTalk},
	30: {saysMirroring, "an ext4 in use while the target falls silent for good and a path to the backup goes deaf: backup and source are equal byte for byte", claimClusterMirroring},
	31: {saysPort, "a cluster of three hosts from configuration files: a cable out, the target killed, the backup takes over, the source killed, the backup promoted with all that was flushed", claimCluster},
	32: {saysBalance, "the target is killed; at the backup links of 100 and 20 Mbit/s carry at least 90 % of 120", claimBalanceBackup},
	33: {saysUnreachable, "the target stands still: for 1.2 s nothing is switched, for good the backup takes over, and keeps it when the target goes on", claimHungHost},
	34: {saysMirroring, "an ext4 in use while all three paths are away, and with more faults while the target catches up: both devices are equal byte for byte", claimMirroringAway},
	35: {saysPort, "the package installed on three hosts, in a root with nothing else: a path cut, the target killed, the source killed, the backup promoted with all that was flushed", claimInstalled},
	36: {saysMedium, "a package file is unpacked into a root with nothing else, and the program passes its drill there", claimMedium},
}

// TestClaims goes through the 36 claims, over TCP between hosts in network
// namespaces; README.md is the table of what it shows.
func TestClaims(t *testing.T) {
	needRoot(t, "network namespaces")
	var p plays
	results := map[int]string{}
	for i := 1; i <= lastClaim; i++ {
		t.Run(fmt.Sprintf("%02d", i), func(t *testing.T) {
			results[i] = "fails"
			c, ok := claims[i]
			if !ok {
				t.Fatal("no test for this claim")
			}
			c.test(t, &p)
			if !t.Failed() {
				results[i] = "holds"
			}
		})
	}
	checkClaimsTable(t, results)
}
