package integration

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestStarvedPort: twice as many programs as there are processors compute all the time, beside two hosts that send as much as goes, both ways and over
// three paths. Whoever gets little of a processor is slow, and not dead: with the thresholds as they come no path goes down, no target
// is unreachable, and the session is the same throughout. A path may be suspected for a moment.
func TestStarvedPort(t *testing.T) {
	const long = 20 * time.Second
	x := newTrio(t, 3, 0)
	x.source.open(x.settings())
	x.source.untilPaths(3)
	x.source.load(full(streamForth))
	x.target.untilHanded(0, 100)
	back := full(streamBack)
	back.Inbound = true
	x.target.load(back)
	x.source.untilHanded(0, 100)
	session, before := x.source.view().Session, []int{len(x.source.events()), len(x.target.events())}
	there, here := x.target.view().Handed, x.source.view().Handed

	var busy []*exec.Cmd
	end := func() {
		for _, cmd := range busy {
			cmd.Process.Kill()
			cmd.Wait()
		}
		busy = nil
	}
	t.Cleanup(end)
	queued := queuedForCPU()
	for range 2 * runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		busy = append(busy, cmd)
	}
	time.Sleep(long)
	end()
	t.Logf("somebody waited for a processor for %s of %s", (queuedForCPU() - queued).Round(time.Millisecond), long)
	for i, u := range []*user{x.source, x.target} {
		for _, e := range u.events()[before[i]:] {
			if e.Kind != "PathSuspect" && e.Kind != "PathUp" {
				t.Errorf("%s was told %s of path %d: %s", u.name, e.Kind, e.Path, e.Reason)
			}
		}
	}
	checkEqual(t, "session", x.source.view().Session, session)
	x.target.untilHanded(there, 100)
	x.source.untilHanded(here, 100)
	x.source.unload(streamForth)
	x.target.unload(streamBack)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "sessions", a.Sessions, 1)
	checkEqual(t, "messages lost", a.Lost, 0)
	t.Logf("ledgers: %+v", a)
}
