package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/mirror"
)

// toldSupervisor is a supervisor of a loop that the test turns, in a bubble's time.
type toldSupervisor struct {
	mu      sync.Mutex // guards below
	told    []string
	beating bool
	state   string
	turn    uint64
}

func (f *toldSupervisor) pulse() mirror.Pulse {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.beating {
		f.turn++
	}
	return mirror.Pulse{Turn: f.turn, Role: "primary", State: f.state, Reason: "two\nlines"}
}

// said counts what was told with this beginning.
func (f *toldSupervisor) said(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.told {
		if strings.HasPrefix(s, what) {
			n++
		}
	}
	return n
}

// set changes the loop, and forgets what was told.
func (f *toldSupervisor) set(state string, beating bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told, f.state, f.beating = nil, state, beating
}

// quiet: nothing was told.
func (f *toldSupervisor) quiet() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.told) == 0
}

func TestSupervisorTellsOfALoopThatTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &toldSupervisor{state: "in sync"}
		s := &supervisor{pulse: f.pulse, watchdog: 20 * time.Second, log: zerolog.Nop()}
		s.send = func(state string) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.told = append(f.told, state)
			return nil
		}
		ending, end := context.WithCancel(t.Context())
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { defer close(done); s.run(ending, stop) }()
		later := func(d time.Duration) { time.Sleep(d); synctest.Wait() }

		later(time.Minute)
		if !f.quiet() {
			t.Errorf("told before the loop has turned: %q", f.told)
		}
		f.set("in sync", true)
		later(time.Minute)
		if f.said("READY=1") != 1 || f.said("STATUS=primary, in sync: two; lines") != 1 || f.said("WATCHDOG=1") < 10 {
			t.Errorf("told of a loop that turns: %q", f.told)
		}
		f.set("degraded", true)
		later(5 * time.Second)
		if f.said("STATUS=primary, degraded") != 1 || f.said("READY") != 0 {
			t.Errorf("told of another state: %q", f.told)
		}

		f.set("degraded", false) // it hangs
		later(10 * time.Second)
		f.set("degraded", false)
		later(time.Minute)
		if !f.quiet() {
			t.Errorf("told of a loop that hangs: %q", f.told)
		}

		end()
		later(time.Minute)
		if f.said("STOPPING=1") != 1 || f.said("WATCHDOG=1") < 10 {
			t.Errorf("told of the end: %q", f.told)
		}
		close(stop)
		<-done
		f.set("degraded", false)
		later(time.Minute)
		if !f.quiet() {
			t.Errorf("told after the end: %q", f.told)
		}
	})
}
