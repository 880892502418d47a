package integration

import (
	"slices"
	"testing"
)

// claimReserve: three paths of which two carry data. One of these is reset or falls
// silent: its place and its identity are kept on both sides while it cannot be reached,
// nobody else gets them, and the one that stood by carries data meanwhile. When
// it is back it stands by itself: nothing flaps.
func claimReserve(t *testing.T, _ *plays) {
	x := newTrio(t, 3, 0)
	set := x.settings()
	set.ActivePaths = 2
	set.Scheduler = "round-robin" // least completion may give a load this light to one path alone
	x.source.open(set)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	x.target.load(steadyBack(streamBack))
	ready := func(v *portView) bool { return v.count("active") == 2 && v.count("standby") == 1 }
	v := x.source.until(portLimit, "two paths are active and one stands by", ready)
	session := v.Session
	for _, f := range []struct {
		name    string
		on, off func(c *cable)
	}{
		{"reset by the network", (*cable).refuse, (*cable).heal},
		{"silence", func(c *cable) { c.silence(bothWays) }, (*cable).heal},
		{"cable out", (*cable).unplug, (*cable).plug},
	} {
		i, j := x.cableOf(&v, "active"), x.cableOf(&v, "standby")
		broken, spare := x.pathOver(i), x.pathOver(j)
		before, over := v.path(broken), x.toTarget[j].carried()
		f.on(x.toTarget[i])
		lost := x.source.until(portLimit, f.name+": the other takes over", func(v *portView) bool {
			return v.path(spare).State == "active" && !slices.Contains([]string{"active", "suspect"}, v.path(broken).State)
		})
		x.target.untilHanded(x.target.view().Handed, 200)
		x.source.untilHanded(x.source.view().Handed, 100)
		// On the side that accepts the place rests, reserved; on the side that dials it is reserved between attempts.
		far := x.target.until(portLimit, f.name+": reserved at the target", func(v *portView) bool { return v.path(broken).State == "reserved" })
		for _, at := range []pathView{lost.path(broken), far.path(broken)} {
			if at.ID != broken {
				t.Errorf("%s: the place of path %d is not kept: %+v", f.name, broken, at)
			}
		}
		if !slices.Contains([]string{"reserved", "dialing", "authenticating", "backoff"}, lost.path(broken).State) {
			t.Errorf("%s: at the source the lost path is %s", f.name, lost.path(broken).State)
		}
		checkEqual(t, f.name+": paths at the target", len(far.Paths), 3)
		if n := x.toTarget[j].carried() - over; n < 1<<20 { // heartbeats alone are 20 KiB a second
			t.Errorf("%s: the path that took over carried only %d bytes", f.name, n)
		}
		f.off(x.toTarget[i])
		v = x.source.until(portLimit, f.name+": all three are there again", ready)
		after := v.path(broken)
		checkEqual(t, f.name+": state of the path that is back", after.State, "standby")
		checkEqual(t, f.name+": its address", hostOf(after.Remote), hostOf(before.Remote))
		if after.Sent < before.Sent || after.Received < before.Received {
			t.Errorf("%s: the path's counters began anew: %+v before, %+v after", f.name, before, after)
		}
		checkEqual(t, f.name+": session", v.Session, session)
	}
	x.source.unload(streamForth)
	x.target.unload(streamBack)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "messages lost", a.Lost, 0)
	t.Logf("ledgers: %+v", a)
}

// cableOf is the first cable to the target whose path is in a state.
func (x *trio) cableOf(v *portView, state string) int {
	x.t.Helper()
	for i := range x.toTarget {
		if v.path(x.pathOver(i)).State == state {
			return i
		}
	}
	x.t.Fatalf("no path is %s: %s", state, v.brief())
	return 0
}
