package dataport_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// TestPortsAgainstLists: clients beside each other, each with a port of its own from the source to a target and one to
// three backups, send and call both ways while everything happens to paths, hosts and ports. Against an ordered list:
//
//   - A message is handed over once, in order and whole, or its receipt fails with ErrSessionLost and the session has ended.
//   - A receipt that succeeded was delivered, and so was every one before it.
//   - A message that Send did not take is never delivered.
//   - When the faults stop, everything that is left is delivered, and every port works again, within settleTime.
//   - What is held for a peer and from a peer stays within the windows.
//   - The events of a session keep their grammar; a manual port does not touch a backup before Switch, an automatic one goes
//     by itself to the next of the list and never back.
//
// All in a bubble: time is exact and costs nothing. MIRROR_AGENT_RAPID=10000 for long runs.
func TestPortsAgainstLists(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var p plan
		p.draw(rt)
		var err error
		synctest.Test(t, func(*testing.T) { err = p.run() })
		if err != nil { // not inside the bubble: rapid's panic would end the process there
			rt.Fatalf("%v", err)
		}
	})
}

// settleTime is what everything may take once the faults are gone: a path that looks alive is found dead (PathDownAfter),
// an attempt ends (HandshakeTimeout), a pause (BackoffMax), and what is left is sent.
const settleTime = 15 * time.Second

type plan struct {
	paths   []int // of the target and each backup
	tls     bool
	auto    bool
	sched   int
	windows [2]int
	sizes   []int
	steps   []step
}

// step is one thing that happens, and how long it is looked at.
type step struct {
	op   int
	a, b int
	wait time.Duration
}

var ops = [...]struct {
	name   string
	weight int
	do     func(w *modelWorld, s step)
}{
	{"send there", 6, func(w *modelWorld, s step) { w.send(s, 0) }},
	{"send back", 6, func(w *modelWorld, s step) { w.send(s, 1) }},
	{"call there", 2, func(w *modelWorld, s step) { w.call(s, 0) }},
	{"call back", 2, func(w *modelWorld, s step) { w.call(s, 1) }},
	{"cut", 3, func(w *modelWorld, s step) { w.net.Cut(w.addr(s)) }},
	{"hole", 3, func(w *modelWorld, s step) { w.hole(s, false) }},
	{"hole with TCP's patience", 3, func(w *modelWorld, s step) { w.hole(s, true) }},
	{"all silent", 1, func(w *modelWorld, s step) {
		for i := range w.plan.paths[0] {
			w.hole(step{a: i, b: s.b}, s.b%2 == 0)
		}
	}},
	{"silent where a port is", 2, func(w *modelWorld, s step) {
		i, _ := w.port(s).Target()
		for _, a := range w.addrs[i+1] {
			w.net.Blackhole(a, dataporttest.Both)
		}
	}},
	{"hole ends", 4, func(w *modelWorld, s step) { w.net.Blackhole(w.addr(s), 0) }},
	{"stall", 2, func(w *modelWorld, s step) { w.net.Stall(w.addr(s), dataporttest.Direction(s.b%4)) }},
	{"delay", 2, func(w *modelWorld, s step) {
		w.net.Jitter(w.addr(s), time.Duration(s.b%40)*time.Millisecond, time.Duration(s.b%7*s.b%30)*time.Millisecond)
	}},
	{"rate", 2, func(w *modelWorld, s step) { w.net.Rate(w.addr(s), w.way(s), (s.b%3)*(100<<10+s.b*9000)) }},
	{"flip a bit", 1, func(w *modelWorld, s step) { w.net.FlipBit(w.addr(s), w.way(s), s.b*s.b*31%100_000, 1<<(s.b%8)) }},
	{"garbage", 1, func(w *modelWorld, s step) {
		w.net.Insert(w.addr(s), w.way(s), s.b*s.b*17%100_000, noise[s.b:][:1+s.b*5])
	}},
	{"truncate", 1, func(w *modelWorld, s step) { w.net.Truncate(w.addr(s), w.way(s), s.b*s.b*17%100_000) }},
	{"half-close", 1, func(w *modelWorld, s step) { w.net.HalfClose(w.addr(s), w.way(s)) }},
	{"refuse", 1, func(w *modelWorld, s step) { w.net.Refuse(w.addr(s), s.b%2 == 0) }},
	{"slow accept", 1, func(w *modelWorld, s step) { w.net.SlowAccept(w.addr(s), time.Duration(s.b%3)*time.Second) }},
	{"reset path", 1, func(w *modelWorld, s step) { w.onPath(s, (*dataport.Port).ResetPath) }},
	{"remove path", 1, func(w *modelWorld, s step) { w.onPath(s, (*dataport.Port).RemovePath) }},
	{"add path", 1, func(w *modelWorld, s step) {
		if i, _ := w.port(s).Target(); i == w.host(s)-1 {
			_, _ = w.port(s).AddPath("", w.addr(s)) // as many as there may be: the rest is refused
		}
	}},
	{"suspend", 1, func(w *modelWorld, s step) { _ = w.port(s).Suspend() }},
	{"resume", 1, func(w *modelWorld, s step) { _ = w.port(s).Resume() }},
	{"switch", 1, func(w *modelWorld, s step) { w.switchTo(s) }},
	{"client stalls", 1, func(w *modelWorld, s step) { w.client(s).stall(true) }},
	{"client goes on", 1, func(w *modelWorld, s step) { w.client(s).stall(false) }},
	{"restart", 1, func(w *modelWorld, s step) { w.restart(s.a % len(w.nodes)) }},
}

// weighted has every op as often as its weight; rapid shrinks towards the first.
var weighted = func() (l []int) {
	for i, o := range ops {
		l = append(l, slices.Repeat([]int{i}, o.weight)...)
	}
	return l
}()

func (p *plan) draw(rt *rapid.T) {
	p.paths = append([]int{rapid.IntRange(1, 3).Draw(rt, "paths of the target")}, rapid.SliceOfN(rapid.IntRange(1, 2), 1, 3).Draw(rt, "paths of the backups")...)
	p.tls = rapid.IntRange(0, 9).Draw(rt, "TLS when 9") == 9
	p.auto = rapid.Bool().Draw(rt, "auto")
	p.sched = rapid.IntRange(0, 1).Draw(rt, "scheduler")
	p.windows = [2]int{rapid.SampledFrom([]int{64 << 10, 256 << 10, 2 << 20}).Draw(rt, "send window"), rapid.SampledFrom([]int{64 << 10, 256 << 10}).Draw(rt, "receive window")}
	p.sizes = rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 2000), rapid.IntRange(0, 2000), rapid.IntRange(0, 150_000)), 2, 6).Draw(rt, "sizes")
	p.steps = rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
		return step{
			op: rapid.SampledFrom(weighted).Draw(rt, "op"), a: rapid.IntRange(0, 11).Draw(rt, "a"), b: rapid.IntRange(0, 99).Draw(rt, "b"),
			wait: time.Duration(rapid.OneOf(rapid.IntRange(0, 150), rapid.IntRange(0, 150), rapid.IntRange(0, 1500)).Draw(rt, "ms")) * time.Millisecond,
		}
	}), 3, 25).Draw(rt, "steps")
	for _, s := range p.steps {
		rt.Logf("%s %d %d, then %v", ops[s.op].name, s.a, s.b, s.wait)
	}
}

// run lives through the plan inside a bubble.
func (p *plan) run() error {
	w, err := newModelWorld(p)
	if err != nil {
		return err
	}
	defer w.close()
	time.Sleep(300 * time.Millisecond)
	for i, s := range p.steps {
		ops[s.op].do(w, s)
		time.Sleep(s.wait)
		if err := w.bounded(); err != nil {
			return fmt.Errorf("after step %d (%s): %w", i, ops[s.op].name, err)
		}
	}
	w.mend()
	time.Sleep(settleTime)
	if err := w.settled(); err != nil {
		return fmt.Errorf("%v after the last fault: %w", settleTime, err)
	}
	return w.check()
}
