package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// drillNode is a target with a front for drills, whose log is kept for so long.
func drillNode(t *testing.T, retain time.Duration) (*agentNode, *fakeFront) {
	t.Helper()
	n := newAgentNode(t, RoleSecondary)
	n.c.RetainTime = retain
	n.start()
	f := &fakeFront{}
	n.a.UseDrillFront(f)
	return n, f
}

func readAll(t *testing.T, d blockdev.Device, n int) []byte {
	t.Helper()
	got := make([]byte, n)
	if _, err := d.ReadAt(got, 4096); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestDrill: a target's copy is shown as it was at a point, and written to, while the mirror goes on; then nothing of it is left.
func TestDrill(t *testing.T) {
	target, front := drillNode(t, time.Hour)
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	first := source.write(1)
	c, err := source.a.CreateCheckpoint(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	second := source.write(2)
	target.await("all of it", func(s Status) bool { return s.Log.Head == source.a.Status().Log.Head })

	st, err := target.a.StartDrill(t.Context(), DrillOptions{At: "checkpoint:first", Label: "try", NBD: "unix:drill"})
	if err != nil {
		t.Fatal(err)
	}
	if st.NBD != "unix:drill" || st.Point.LSN < c.LSN || st.RPOBytes <= int64(len(second)) || st.RPOSeconds <= 0 || !st.Running || st.ID != 1 {
		t.Fatalf("%+v", st)
	}
	view := front.served()
	if got := readAll(t, view, len(first)); !bytes.Equal(got, first) {
		t.Fatal("the drill shows something else than the checkpoint")
	}
	mine := bytes.Repeat([]byte{9}, len(first))
	if _, err := view.WriteAt(mine, 4096); err != nil {
		t.Fatal(err)
	}
	third := source.write(3)
	target.holds(third)
	if got := readAll(t, view, len(first)); !bytes.Equal(got, mine) {
		t.Fatal("what was written to the drill is not there")
	}
	if _, err := target.a.StartDrill(t.Context(), DrillOptions{}); err == nil || !strings.Contains(err.Error(), "drill 1 runs already") {
		t.Fatalf("a second drill: %v", err)
	}
	if s := target.a.Status(); s.Drill == nil || s.Drill.ScratchBytes == 0 || s.Drill.Label != "try" || s.State != "streaming" {
		t.Fatalf("status: %s, %+v", s.State, s.Drill)
	}
	ended, err := target.a.StopDrill(t.Context(), 1, "")
	if err != nil || ended.Running || ended.Ended.IsZero() || ended.Reason == "" {
		t.Fatalf("%+v: %v", ended, err)
	}
	if front.served() != nil {
		t.Fatal("the drill is served still")
	}
	if _, err := view.ReadAt(make([]byte, 1), 0); !errors.Is(err, errViewClosed) {
		t.Fatalf("the drill is read still: %v", err)
	}
	if _, err := target.a.StopDrill(t.Context(), 0, ""); !errors.Is(err, errNoDrill) {
		t.Fatalf("stopped twice: %v", err)
	}
	if s := target.a.Status(); s.Drill != nil {
		t.Fatalf("status: %+v", s.Drill)
	}
	target.holds(third)
	noScratch(t, target)
}

func noScratch(t *testing.T, n *agentNode) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(n.c.Device), "*.drill*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("%v is left (%v)", left, err)
	}
}

// TestDrill_ends: what ends a drill that nobody stops, and that it says so.
func TestDrill_ends(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     func(t *testing.T, source, target *agentNode)
		reason string
	}{
		{"the applier needs more than the scratch has", func(_ *testing.T, source, _ *agentNode) {
			source.write(2)
		}, errScratchFull.Error()},
		{"promoted", func(t *testing.T, source, target *agentNode) {
			source.end()
			target.awaitState("waiting")
			if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, errDrillPromoted.Error()},
		{"the agent ends", func(_ *testing.T, _, target *agentNode) { target.stop() }, errDrillAgent.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			target, front := drillNode(t, 0)
			source := newAgentNode(t, RolePrimary, target).start()
			source.awaitState("in sync")
			source.write(1)
			if _, err := target.a.StartDrill(t.Context(), DrillOptions{ScratchBytes: 4096}); err != nil {
				t.Fatal(err)
			}
			_, ended, _ := target.a.Drill()
			a := target.a
			c.do(t, source, target)
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("it goes on")
			}
			if d, _, _ := a.Drill(); d.Running || !strings.Contains(d.Reason, c.reason) {
				t.Fatalf("%+v", d)
			}
			if front.served() != nil {
				t.Fatal("served still")
			}
		})
	}
}

// TestDrill_refused: what cannot be shown is refused and nothing is left of the try.
func TestDrill_refused(t *testing.T) {
	target, front := drillNode(t, time.Hour)
	if _, err := target.a.StartDrill(t.Context(), DrillOptions{}); err == nil || !strings.Contains(err.Error(), "never been in sync") {
		t.Fatalf("a drill of a blank volume: %v", err)
	}
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	source.write(1)
	front.refuses = "0.0.0.0:1"
	for _, o := range []struct {
		o    DrillOptions
		want string
	}{
		{DrillOptions{At: "noon"}, "no time"},
		{DrillOptions{At: "lsn:8"}, "outside of what this host can go back to: LSN"},
		{DrillOptions{At: "2001-01-01T00:00:00Z"}, "outside of what this host can go back to: LSN"},
		{DrillOptions{NBD: front.refuses}, errRefusedAddress.Error()},
		{DrillOptions{ScratchBytes: 1 << 60}, "does not fit"},
		{DrillOptions{ScratchDir: "/nowhere"}, "/nowhere"},
		{DrillOptions{Label: "a b"}, "label"},
	} {
		if _, err := target.a.StartDrill(t.Context(), o.o); err == nil || !strings.Contains(err.Error(), o.want) {
			t.Errorf("%+v: %v, wanted %q", o.o, err, o.want)
		}
	}
	front.setOpening(func() error { return errors.New("address in use") })
	if _, err := target.a.StartDrill(t.Context(), DrillOptions{}); err == nil || !strings.Contains(err.Error(), "address in use") {
		t.Errorf("an address in use: %v", err)
	}
	if n := len(target.a.v.viewsNow()); n != 0 {
		t.Errorf("%d views are left", n)
	}
	noScratch(t, target)
}

// TestDrill_stale: what an agent left that was killed while it opened a scratch is gone after the next start.
func TestDrill_stale(t *testing.T) {
	target, _ := drillNode(t, time.Hour)
	target.kill()
	if err := os.WriteFile(target.c.drillPath(), []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	target.start()
	noScratch(t, target)
}

// TestPromoteAt: a target is promoted at a point, beforehand it is said what that gives up, and the export has it.
func TestPromoteAt(t *testing.T) {
	target := newAgentNode(t, RoleSecondary)
	target.c.RetainTime = time.Hour
	target.start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	first := source.write(1)
	if _, err := source.a.CreateCheckpoint(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	second := source.write(2)
	source.kill()
	target.awaitState("waiting")
	head := target.a.Status().Log.Head
	for _, word := range []string{"lsn:8", "noon", "checkpoint:none"} {
		if _, err := target.a.Promote(t.Context(), PromoteOptions{At: word}); err == nil {
			t.Fatalf("promoted at %s", word)
		}
	}
	dry, err := target.a.Promote(t.Context(), PromoteOptions{At: "checkpoint:first", DryRun: true})
	if err != nil || dry.GivenUp == nil || dry.GivenUp.Bytes < int64(len(second)) || dry.GivenUp.Export != nil {
		t.Fatalf("%+v: %v", dry, err)
	}
	target.holds(second)
	r, err := target.a.Promote(t.Context(), PromoteOptions{At: "checkpoint:first"})
	if err != nil {
		t.Fatal(err)
	}
	if r.GivenUp == nil || r.GivenUp.Export == nil || r.GivenUp.To.LSN != head || r.GivenUp.From != dry.GivenUp.From || r.LSN != r.GivenUp.From.LSN {
		t.Fatalf("%+v", r)
	}
	target.holds(first)
	e, err := InspectLog(r.GivenUp.Export.Path, nil)
	if err != nil || e.From != r.GivenUp.From.LSN || e.Head != head || e.WriteBytes < uint64(len(second)) {
		t.Fatalf("%+v: %v", e, err)
	}
	if _, err := target.a.Promote(t.Context(), PromoteOptions{At: "checkpoint:first"}); err == nil || !strings.Contains(err.Error(), "only a target") {
		t.Fatalf("a primary: %v", err)
	}
	target.kill()
	target.start()
	target.awaitServing()
	target.holds(first)
	source.start()
	source.awaitState("fenced")
}

// TestCheckpointEvery: a source names points by itself while something is written, and only then.
func TestCheckpointEvery(t *testing.T) {
	source := newAgentNode(t, RolePrimary)
	source.c.CheckpointEvery = time.Second
	source.start()
	source.write(1)
	list := func() []Checkpoint {
		t.Helper()
		cs, err := source.a.Checkpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return cs
	}
	var cs []Checkpoint
	for end := time.Now().Add(30 * time.Second); len(cs) == 0; time.Sleep(10 * time.Millisecond) {
		if cs = list(); time.Now().After(end) {
			t.Fatal("no checkpoint")
		}
	}
	if at, err := time.Parse("20060102T150405Z", strings.TrimPrefix(cs[0].Name, autoCheckpoint)); err != nil || time.Since(at) > time.Hour || !strings.HasPrefix(cs[0].Name, autoCheckpoint) {
		t.Fatalf("%+v: %v", cs[0], err)
	}
	time.Sleep(2500 * time.Millisecond) // nothing is written: no other, however long
	if n := len(list()); n > 1 {
		t.Fatalf("%d checkpoints of one write", n)
	}
}

// TestCheckpoints_bounded: the newest are listed.
func TestCheckpoints_bounded(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	const n = 2*maxCheckpoints + 10
	for i := range n {
		if _, err := v.Checkpoint(t.Context(), fmt.Sprintf("c%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	cs, err := v.Checkpoints()
	if err != nil || len(cs) != maxCheckpoints || cs[0].Name != fmt.Sprintf("c%d", n-maxCheckpoints) || cs[len(cs)-1].Name != fmt.Sprintf("c%d", n-1) {
		t.Fatalf("%d checkpoints (%v)", len(cs), err)
	}
}
