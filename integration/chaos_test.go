package integration

import (
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// chaosTime is how long TestChaos goes on; MIRROR_AGENT_CHAOS says otherwise.
const chaosTime = 20 * time.Second

// What a process of the chaos may take: its windows in both directions and a
// message for each, twice since the collector runs when the heap has doubled, and the rest of a Go program with its ledger.
const (
	chaosWindow  = 8 << 20
	chaosMessage = 256 << 10
	chaosMemory  = 2*2*(chaosWindow+chaosMessage) + 64<<20
)

// chaos plays faults on three cables and on the processes at both ends.
type chaos struct {
	*trio
	rng    *rand.Rand
	undo   []undo
	busy   map[*cable]bool
	frozen map[*user]bool
	count  map[string]int
	most   int64 // resident bytes
	slow   time.Duration
}

type undo struct {
	at time.Time
	do func()
}

// TestChaos: three paths, both directions full, and every 200 ms something
// breaks. What is received is what was sent, whenever all is well again data
// flows again, and memory stays within its bound.
func TestChaos(t *testing.T) {
	long := chaosTime
	if s := os.Getenv("MIRROR_AGENT_CHAOS"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			t.Fatalf("MIRROR_AGENT_CHAOS=%q: a time like 10m is needed", s)
		}
		long = d
	}
	c := &chaos{trio: newTrioOf(t, 3, 0, nodeSettings{Window: chaosWindow}), rng: newRand(t), busy: map[*cable]bool{}, frozen: map[*user]bool{}, count: map[string]int{}}
	t.Logf("seed %d, for %s", baseSeed, long)
	for _, k := range c.toTarget {
		k.shape(bothWays, 100)
	}
	c.source.open(c.settings())
	c.source.untilPaths(3)
	load := loadSettings{Size: 100, Spread: chaosMessage}
	for stream, u := range map[byte]*user{streamForth: c.source, streamCalls: c.source, streamBack: c.target, streamCallsBack: c.target} {
		load.Stream, load.Kind, load.Inbound = stream, "send", u == c.target
		if stream == streamCalls || stream == streamCallsBack {
			load.Kind = "call"
		}
		u.load(load)
	}
	quiet := max(4*time.Second, min(long/5, 15*time.Second))
	for end, calm := time.Now().Add(long), time.Now().Add(quiet); time.Now().Before(end); {
		next := time.Now().Add(200 * time.Millisecond)
		c.step()
		if time.Now().After(calm) {
			c.calm()
			calm = time.Now().Add(quiet)
		}
		time.Sleep(time.Until(next))
	}
	c.calm()
	c.source.unload(streamForth, streamCalls)
	c.target.unload(streamBack, streamCallsBack)
	a := c.books.close(c.source, c.target)
	s, r := c.source.view(), c.target.view()
	t.Logf("faults: %v", c.count)
	t.Logf("ledgers: %+v; %.0f MiB forth, %.0f MiB back; frames that came twice in the last session: %d and %d", a,
		float64(r.HandedBytes)/(1<<20), float64(s.HandedBytes)/(1<<20), s.Duplicates, r.Duplicates)
	t.Logf("most resident memory %d MiB of %d; slowest return of the data after a calm began: %s", c.most>>20, chaosMemory>>20, c.slow.Round(time.Millisecond))
}

// step undoes what is due and breaks one thing.
func (c *chaos) step() {
	c.t.Helper()
	rest := c.undo[:0]
	for _, u := range c.undo {
		if time.Now().Before(u.at) {
			rest = append(rest, u)
			continue
		}
		u.do()
	}
	c.undo = rest
	c.watchMemory()
	if c.rng.IntN(100) == 0 && len(c.busy) == 0 {
		for _, k := range c.toTarget { // from below to above what makes the peer unreachable
			c.breaks(k, "all silent", 4*time.Second+c.between(-1500*1e6, 1500*1e6), func() { k.silence(bothWays) }, k.heal)
		}
		return
	}
	k := c.toTarget[c.rng.IntN(len(c.toTarget))]
	for time := c.between(100*time.Millisecond, 1500*time.Millisecond); ; {
		switch what := c.rng.IntN(7); {
		case what == 0:
			c.note("connection killed")
			k.kill(portNumber)
		case what == 1:
			c.note("rate changed")
			k.shape(bothWays, []int{2, 10, 50, 100, 200}[c.rng.IntN(5)])
		case what == 2:
			u := []*user{c.source, c.target}[c.rng.IntN(2)]
			if c.frozen[u] {
				continue
			}
			c.note(u.name + " stopped")
			c.freeze(u, c.between(100*1e6, 2000*1e6))
		case c.busy[k]:
			continue
		case what == 3:
			c.breaks(k, "cable pulled out", time, k.unplug, k.plug)
		case what == 4:
			c.breaks(k, "silent both ways", time, func() { k.silence(bothWays) }, k.heal)
		case what == 5:
			d := []direction{forth, back}[c.rng.IntN(2)]
			c.breaks(k, "silent one way", time, func() { k.silence(d) }, k.heal)
		case what == 6:
			c.breaks(k, "refused by RST", time, k.refuse, k.heal)
		}
		return
	}
}

func (c *chaos) watchMemory() {
	c.t.Helper()
	for _, u := range []*user{c.source, c.target} {
		m := residentBytes(c.t, u.pid())
		if c.most = max(c.most, m); m > chaosMemory {
			c.t.Fatalf("%s takes %d MiB of memory, at most %d are in order", u.name, m>>20, chaosMemory>>20)
		}
	}
}

func (c *chaos) note(what string) { c.count[what]++ }

func (c *chaos) between(a, b time.Duration) time.Duration {
	return a + time.Duration(c.rng.Int64N(int64(b-a)))
}

func (c *chaos) breaks(k *cable, what string, long time.Duration, on, off func()) {
	c.t.Helper()
	c.note(what)
	on()
	c.busy[k] = true
	c.later(long, func() { off(); delete(c.busy, k) })
}

func (c *chaos) freeze(u *user, long time.Duration) {
	u.signal(syscall.SIGSTOP)
	c.frozen[u] = true
	time.AfterFunc(long, func() { u.signal(syscall.SIGCONT) }) // to the moment, whatever the test is doing
	c.later(long, func() { c.frozen[u] = false })
}

func (c *chaos) later(long time.Duration, do func()) {
	c.undo = append(c.undo, undo{time.Now().Add(long), do})
}

// calm mends everything, waits until data flows both ways, and looks at memory and ledgers.
func (c *chaos) calm() {
	c.t.Helper()
	c.note("calms")
	for _, u := range c.undo {
		time.Sleep(time.Until(u.at)) // a few seconds at most, and a stopped process goes on by itself
		u.do()
	}
	c.undo = nil
	began := time.Now()
	there, here := c.target.view().Handed, c.source.view().Handed
	c.target.untilHanded(there, 20)
	c.source.untilHanded(here, 20)
	c.slow = max(c.slow, time.Since(began))
	c.books.pull(c.source, c.target)
	for _, u := range []*user{c.source, c.target} {
		v := u.view()
		if v.Queued > chaosWindow || v.Buffered > chaosWindow+chaosMessage+64<<10 {
			c.t.Errorf("%s holds %d bytes for the other side and %d of it; the windows are of %d", u.name, v.Queued, v.Buffered, chaosWindow)
		}
	}
	if len(c.books.problems) > 0 {
		c.t.Fatal(strings.Join(c.books.problems, "\n"))
	}
	if testing.Verbose() {
		c.t.Logf("%s: all is well, %d and %d messages handed over", time.Now().Format("15:04:05"), there, here)
	}
}
