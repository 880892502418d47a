package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
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

// A run has to bite: it goes on until so many faults were played outside of calms, and every second of it carries data each way, whatever breaks.
const (
	chaosPause  = 200 * time.Millisecond
	chaosShare  = 0.8 // of a fault for each pause
	chaosFloor  = 128 << 10
	chaosAllFew = 4 // at every so many calms all paths fall silent at once
)

// The kinds of faults, each of which comes once before any comes twice as often.
const (
	playKill = iota
	playStopSource
	playStopTarget
	playRate
	playUnplug
	playSilentBoth
	playSilentOne
	playRefuse
	playKinds
)

var kindNames = [playKinds]string{
	"connection killed", "source stopped", "target stopped", "rate changed", "cable pulled out", "silent both ways", "silent one way", "refused by RST",
}

const allSilent = "all silent"

// chaos plays faults on three cables and on the processes at both ends.
type chaos struct {
	*trio
	rng    *rand.Rand
	undo   []undo
	busy   map[*cable]bool
	frozen map[*user]bool
	deck   []int // kinds that are due
	count  map[string]int
	calms  int
	quiet  bool  // all paths are to fall silent next
	ends   int   // connections that were there and were killed
	most   int64 // resident bytes
	slow   time.Duration

	// The most that was seen of each session's counters.
	resent, duplicates map[string]uint64
}

type undo struct {
	at time.Time
	do func()
}

// TestChaos: three paths, both directions full, and every 200 ms something
// breaks. What is received is what was sent, whenever all is well again each stream
// flows again, memory stays within its bound, and in the end no goroutine is left.
func TestChaos(t *testing.T) {
	long := chaosTime
	if s := os.Getenv("MIRROR_AGENT_CHAOS"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			t.Fatalf("MIRROR_AGENT_CHAOS=%q: a time like 10m is needed", s)
		}
		long = d
	}
	c := &chaos{
		trio: newTrioOf(t, 3, 0, nodeSettings{Window: chaosWindow}), rng: newRand(t), busy: map[*cable]bool{}, frozen: map[*user]bool{}, count: map[string]int{},
		resent: map[string]uint64{}, duplicates: map[string]uint64{},
	}
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
	began, pause := time.Now(), max(4*time.Second, min(long/5, 15*time.Second))
	for calm := began.Add(pause); time.Since(began) < long || !c.enough(long); {
		if time.Since(began) > 4*long+time.Minute {
			t.Fatalf("after %s only these faults came: %v", time.Since(began), c.count)
		}
		next := time.Now().Add(chaosPause)
		c.step()
		if time.Now().After(calm) {
			c.calm()
			calm = time.Now().Add(pause)
		}
		time.Sleep(time.Until(next))
	}
	c.calm()
	c.source.unload(streamForth, streamCalls)
	c.target.unload(streamBack, streamCallsBack)
	a := c.books.close(c.source, c.target)
	c.sample()
	s, r := c.source.view(), c.target.view()
	resent, duplicates := total(c.resent), total(c.duplicates)
	t.Logf("faults: %v in %s; %d calms; %d connections killed", c.count, time.Since(began).Round(time.Second), c.calms, c.ends)
	t.Logf("ledgers: %+v; %.0f MiB forth, %.0f MiB back; %d frames sent again, %d came twice", a,
		float64(r.HandedBytes)/(1<<20), float64(s.HandedBytes)/(1<<20), resent, duplicates)
	t.Logf("most resident memory %d MiB of %d; slowest return of the data after a calm began: %s", c.most>>20, chaosMemory>>20, c.slow.Round(time.Millisecond))
	if c.ends == 0 || resent == 0 || duplicates == 0 {
		t.Errorf("nothing was hit: %d connections killed, %d frames sent again, %d came twice", c.ends, resent, duplicates)
	}
	if floor := uint64(long.Seconds() * chaosFloor); r.HandedBytes < floor || s.HandedBytes < floor {
		t.Errorf("%d and %d bytes were handed over, at least %d each way are in order", r.HandedBytes, s.HandedBytes, floor)
	}
	for _, u := range []*user{c.source, c.target} {
		u.order(portOrder{Do: "end"}) // an error when a goroutine is left
	}
}

// enough tells whether a run of this length has bitten: often, and in each way.
func (c *chaos) enough(long time.Duration) bool {
	n := 0
	for what := range maps.Values(c.count) {
		n += what
	}
	if float64(n) < chaosShare*float64(long/chaosPause) {
		return false
	}
	for _, what := range append(kindNames[:], allSilent) {
		if c.count[what] == 0 {
			return false
		}
	}
	return true
}

func total(m map[string]uint64) (n uint64) {
	for v := range maps.Values(m) {
		n += v
	}
	return n
}

// sample keeps what the sessions count; it goes with them.
func (c *chaos) sample() {
	c.t.Helper()
	for _, u := range []*user{c.source, c.target} {
		v := u.view()
		of := u.name + v.Session
		c.duplicates[of] = max(c.duplicates[of], v.Duplicates)
		for _, p := range v.Paths {
			path := fmt.Sprintf("%s/%d", of, p.ID)
			c.resent[path] = max(c.resent[path], p.Resent)
		}
	}
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
	if c.quiet {
		c.quiet = false
		c.note(allSilent)
		for _, k := range c.toTarget { // from below to above what makes the peer unreachable
			c.breaks(k, 4*time.Second+c.between(-1500*1e6, 1500*1e6), func() { k.silence(bothWays) }, k.heal)
		}
		return
	}
	what, k := c.draw()
	c.note(kindNames[what])
	long := c.between(100*time.Millisecond, 1500*time.Millisecond)
	switch what {
	case playKill:
		c.ends += k.kill(portNumber)
	case playRate:
		k.shape(bothWays, []int{2, 10, 50, 100, 200}[c.rng.IntN(5)])
	case playStopSource:
		c.freeze(c.source, c.between(100*1e6, 2000*1e6))
	case playStopTarget:
		c.freeze(c.target, c.between(100*1e6, 2000*1e6))
	case playUnplug:
		c.breaks(k, long, k.unplug, k.plug)
	case playSilentBoth:
		c.breaks(k, long, func() { k.silence(bothWays) }, k.heal)
	case playSilentOne:
		d := []direction{forth, back}[c.rng.IntN(2)]
		c.breaks(k, long, func() { k.silence(d) }, k.heal)
	case playRefuse:
		c.breaks(k, long, k.refuse, k.heal)
	}
}

// draw takes the first kind that is due and possible now, and a cable for it.
func (c *chaos) draw() (int, *cable) {
	for {
		whole := slices.DeleteFunc(slices.Clone(c.toTarget), func(k *cable) bool { return c.busy[k] })
		for i, what := range c.deck {
			cables := c.toTarget
			if what >= playUnplug {
				cables = whole
			}
			if len(cables) == 0 || what == playStopSource && c.frozen[c.source] || what == playStopTarget && c.frozen[c.target] {
				continue
			}
			c.deck = slices.Delete(c.deck, i, i+1)
			return what, cables[c.rng.IntN(len(cables))]
		}
		c.deck = append(c.deck, c.rng.Perm(playKinds)...)
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

func (c *chaos) breaks(k *cable, long time.Duration, on, off func()) {
	c.t.Helper()
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

// calm mends everything, waits until each stream flows, and looks at memory and ledgers.
func (c *chaos) calm() {
	c.t.Helper()
	c.calms++
	c.quiet = c.calms%chaosAllFew == 1
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
	before := c.books.streams()
	eventually(c.t, portLimit, "each stream goes on", func() (bool, string) {
		c.books.pull(c.source, c.target)
		now := c.books.streams()
		for _, stream := range []byte{streamForth, streamBack, streamCalls, streamCallsBack} {
			if now[stream] == before[stream] {
				return false, fmt.Sprintf("messages of each stream: %v, and had been %v", now, before)
			}
		}
		return true, ""
	})
	c.sample()
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
