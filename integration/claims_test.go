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

// plays are the scenarios of one run; each is played when the first claim asks
// for it, and every claim judges for itself what was seen.
type plays struct {
	story   play[story]
	manual  play[manualStory]
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

var claims = map[int]claim{
	1:  {"one port, several paths, the data flow can move to a backup", "story", claimOnePort},
	2:  {"several connections at once, each on its own path", "story", claimPaths},
	4:  {"a client registers; others neither see nor disturb it", "clients", claimRegister},
	5:  {"the client's callback is called, in exact order", "events", func(t *testing.T, p *plays) { claimEvents(t, p); claimCallbacks(t) }},
	6:  {"the load is balanced over the paths", "100 and 20 Mbit/s", claimBalance},
	32: {"the load is balanced over the paths, to the backup too", "100 and 20 Mbit/s", claimBalanceBackup},
	7:  {"the paths are TCP connections", "wire", claimTCP},
	8:  {"messages without and with waiting", "messages", claimMessages},
	13: {"a connection that cannot communicate is reset", "resets", claimReset},
	14: {"both directions at once", "both directions", claimBothDirections},
	16: {"as running daemons", "daemons", claimDaemon},
	17: {"several connections at once", "daemons", claimDaemonPaths},
	20: {"events", "daemons", claimDaemonEvents},
	22: {"tcp", "daemons", claimDaemonTCP},
	24: {"unreachable", "daemons silence", claimDaemonUnreachable},
	25: {"connection", "daemons", claimDaemonConnection},
	26: {"manual", "daemons manual", claimDaemonManual},
	27: {"auto", "daemons", claimDaemonAuto},
	19: {"register", "daemons two", claimDaemonRegister},
	21: {"balance", "daemons", claimDaemonBalance},
	23: {"messages", "daemons", claimDaemonMessages},
	29: {"all talk", "daemons", claimAllTalk},
	31: {"cluster", "daemons", claimCluster},
	33: {"hung", "daemons", claimHungHost},
	9:  {"to the backup when the target cannot be reached", "silence", claimUnreachable},
	10: {"the switch makes the connection to the backup", "story", claimConnection},
	11: {"the client is told, and starts the switch", "manual", claimManual},
	12: {"the port starts the switch", "story", claimAuto},
}

func TestClaims(t *testing.T) {
	needRoot(t, "network namespaces")
	var p plays
	for i := 1; i <= 36; i++ {
		t.Run(fmt.Sprintf("%02d", i), func(t *testing.T) {
			c, ok := claims[i]
			if !ok {
				t.Fatal("no test for this claim")
			}
			c.test(t, &p)
		})
	}
}
