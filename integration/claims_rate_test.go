package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Two links of these rates are to carry at least leastShare of both together,
// in bytes that reach the client; headers and checksums of Ethernet, IP, TCP, TLS and frames come out of the rest.
const (
	fastMbit, slowMbit = 100, 20
	leastShare         = 0.9
	rateWindow         = 3 * time.Second
	rateWindows        = 9 // at most, when others take this machine's time
	rateJudged         = 3 // of them at least, by their median
)

// balance is what two shaped links carried in one window.
type balance struct {
	delivered, fast, slow float64       // bytes: to the client, through each shaper
	wall, fair, queued    time.Duration // by the clock; that this process ran; in which somebody waited for a processor
}

// ours tells whether the machine was there for us: not stopped, and not shared with so many that
// processes wait for a processor most of the time.
func (b *balance) ours() bool {
	return b.fair.Seconds() > 0.95*b.wall.Seconds() && b.queued.Seconds() < 0.3*b.wall.Seconds()
}

// evenly is what was delivered, as a share of what both links could carry in the
// time that the busier one was busy for: independent of how much time the machine had.
func (b *balance) evenly() float64 {
	busy := max(b.fast/fastMbit, b.slow/slowMbit) // in units of a megabit's bytes
	return b.delivered / ((fastMbit + slowMbit) * busy)
}

// ofWall is the same by the clock.
func (b *balance) ofWall() float64 {
	return b.delivered * 8 / 1e6 / (fastMbit + slowMbit) / b.wall.Seconds()
}

func (b *balance) String() string {
	return fmt.Sprintf("delivered %.1f Mbit/s, links %.1f and %.1f Mbit/s: %.3f of %d by the clock, %.3f of what they could carry while busy; machine ours for %.0f %%, crowded for %.0f %%",
		b.delivered*8/1e6/b.wall.Seconds(), b.fast*8/1e6/b.wall.Seconds(), b.slow*8/1e6/b.wall.Seconds(),
		b.ofWall(), fastMbit+slowMbit, b.evenly(), 100*b.fair.Seconds()/b.wall.Seconds(), 100*b.queued.Seconds()/b.wall.Seconds())
}

// queuedForCPU is how long, since it was booted, some process of this machine has waited for a processor; 0 where
// the kernel does not count that.
func queuedForCPU() time.Duration {
	b, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0
	}
	var micros int64
	if _, total, ok := strings.Cut(string(b), "total="); ok {
		_, _ = fmt.Sscan(total, &micros) // 0 if it has another form
	}
	return time.Duration(micros) * time.Microsecond
}

// measureBalance watches a window; delivered tells the bytes that have arrived.
func measureBalance(t *testing.T, clock *fairClock, fast, slow *cable, delivered func() uint64) *balance {
	t.Helper()
	look := func() (b balance) {
		f, _ := fast.shaped()
		s, _ := slow.shaped()
		return balance{delivered: float64(delivered()), fast: float64(f), slow: float64(s), fair: clock.now(), queued: queuedForCPU()}
	}
	start, from := time.Now(), look()
	time.Sleep(rateWindow)
	to := look()
	return &balance{
		delivered: to.delivered - from.delivered, fast: to.fast - from.fast, slow: to.slow - from.slow,
		fair: to.fair - from.fair, queued: to.queued - from.queued, wall: time.Since(start),
	}
}

// judgeBalance measures until there are enough windows, and judges the median of those in which the machine was ours: others do not speak against
// the port. On a machine that never is, as many windows have to show that what time there was served both links.
func judgeBalance(t *testing.T, fast, slow *cable, delivered func() uint64) {
	t.Helper()
	clock := startFairClock(t)
	var whole []float64
	even := 0
	for range rateWindows {
		b := measureBalance(t, clock, fast, slow, delivered)
		t.Log(b)
		if b.evenly() >= leastShare {
			even++
		}
		if b.ours() {
			whole = append(whole, min(b.evenly(), b.ofWall()))
		}
		if len(whole) >= rateJudged && median(whole) >= leastShare {
			return
		}
		if len(whole) == 0 && even == rateJudged {
			break
		}
	}
	if len(whole) >= rateJudged {
		t.Errorf("the median of %d windows is %.3f of %d Mbit/s, which the two links carry together; at least %.2f are in order", len(whole), median(whole), fastMbit+slowMbit, leastShare)
		return
	}
	t.Logf("a crowded machine: %d windows undisturbed; judged by how evenly the links were used alone", len(whole))
	if even < rateJudged {
		t.Errorf("only %d of %d windows used both links for %.2f of the time in which one was busy", even, rateWindows, leastShare)
	}
}

// median of some numbers; of two in the middle the lower one.
func median(l []float64) float64 {
	l = slices.Sorted(slices.Values(l))
	return l[(len(l)-1)/2]
}

// full is as much as goes.
func full(stream byte) loadSettings {
	return loadSettings{Stream: stream, Size: 1 << 10, Spread: 256 << 10}
}

func claimBalance(t *testing.T, _ *plays) {
	for _, scheduler := range []string{"", "round-robin"} {
		t.Run(map[string]string{"": "least completion"}[scheduler]+scheduler, func(t *testing.T) {
			x := newTrio(t, 2, 0)
			x.toTarget[0].shape(bothWays, fastMbit)
			x.toTarget[1].shape(bothWays, slowMbit)
			set := x.settings()
			set.Scheduler = scheduler
			x.source.open(set)
			x.source.untilPaths(2)
			x.source.load(full(streamForth))
			x.target.untilHanded(0, 100)
			time.Sleep(time.Second) // both links are full, the weights learned
			delivered := func() uint64 { return x.target.view().HandedBytes }
			if scheduler == "" {
				judgeBalance(t, x.toTarget[0], x.toTarget[1], delivered)
			} else { // what it is compared with; it is not judged
				t.Log(measureBalance(t, startFairClock(t), x.toTarget[0], x.toTarget[1], delivered))
			}
			x.source.unload(streamForth)
			t.Logf("ledgers: %+v", x.books.close(x.source, x.target))
		})
	}
}

// claimBalanceBackup: the same holds at the backup, after the target has died.
func claimBalanceBackup(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 2)
	x.toBack[0].shape(bothWays, slowMbit)
	x.toBack[1].shape(bothWays, fastMbit)
	set := x.settings()
	set.Auto = true
	x.source.open(set)
	x.source.untilPaths(2)
	x.source.load(full(streamForth))
	x.target.untilHanded(0, 100)
	x.books.pull(x.source, x.target)
	x.target.kill()
	x.books.recover(x.target)
	x.backup.untilHanded(0, 100)
	x.source.untilPaths(2)
	time.Sleep(time.Second)
	judgeBalance(t, x.toBack[1], x.toBack[0], func() uint64 { return x.backup.view().HandedBytes })
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.backup))
}
