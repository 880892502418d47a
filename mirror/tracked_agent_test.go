package mirror

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// TestSwitchBackByBitmap: each target is kept account of, also the one that
// the data flow has left: on the way back it gets what changed and no more,
// twice over and over a restart of the source.
func TestSwitchBackByBitmap(t *testing.T) {
	first, second := newAgentNode(t, RoleSecondary).start(), newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, first, second).start()
	source.awaitState("in sync")
	source.write(1)
	all := bytes.Repeat([]byte{5}, 1<<20)
	if _, err := source.awaitServing().WriteAt(all, 0); err != nil {
		t.Fatal(err)
	}
	if err := source.awaitServing().Sync(); err != nil { // the target has acknowledged it
		t.Fatal(err)
	}
	active := func(n *agentNode) func(Status) bool {
		return func(s Status) bool { // State is told anew a moment after the rest
			return s.State == "in sync" && slices.ContainsFunc(s.Followers, func(f FollowerStatus) bool {
				return f.Target == n.c.Listen[0] && f.Active && f.State == string(FollowerStreaming)
			})
		}
	}
	const span = 200 << 10
	// overwrite goes over a part of the device until the log has forgotten.
	overwrite := func(fill byte) {
		t.Helper()
		for i := range minJournalSize / span * 3 / 2 {
			if _, err := source.awaitServing().WriteAt(bytes.Repeat([]byte{fill + byte(i)}, span), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := source.awaitServing().Sync(); err != nil {
			t.Fatal(err)
		}
	}
	equal := func(n *agentNode) {
		t.Helper()
		a, err := content(source.a.v)
		if err != nil {
			t.Fatal(err)
		}
		b, err := content(n.a.v)
		if err != nil || !bytes.Equal(a, b) {
			t.Fatalf("%s differs at %d (%v)", n.c.NodeName, firstDifference(a, b), err)
		}
	}
	resyncs := func() (n int) {
		t.Helper()
		es, _ := source.a.Events(0)
		for _, e := range es {
			if e.Kind == "follower-resync" && !strings.Contains(e.Text, "is empty") {
				if !strings.Contains(e.Text, "what changed since is copied") {
					t.Fatalf("resync: %s", e.Text)
				}
				n++
			}
		}
		return n
	}
	to := func(n *agentNode, where string) {
		t.Helper()
		if err := source.a.Switch(t.Context(), where); err != nil {
			t.Fatal(err)
		}
		source.await("fed to the "+where, active(n))
		if err := source.awaitServing().Sync(); err != nil {
			t.Fatal(err)
		}
		equal(n)
	}
	to(second, "backup")
	overwrite(10)
	if d := source.a.Status().Followers[0].DirtyBytes; d != span {
		t.Fatalf("%d bytes of the target are dirty, %d were written over", d, span)
	}
	to(first, "primary")
	overwrite(60)
	if d := source.a.Status().Followers[1].DirtyBytes; d != span {
		t.Fatalf("%d bytes of the backup are dirty, %d were written over", d, span)
	}
	if n := resyncs(); n != 1 {
		t.Fatalf("%d partial resyncs", n)
	}
	source.kill()
	source.start()
	source.await("in sync with the target after a kill", active(first))
	to(second, "backup")
	if n := resyncs(); n != 1 {
		t.Fatalf("%d partial resyncs after the kill", n)
	}
}

// alarmOf is the alarm of that name, zero when there is none.
func alarmOf(s Status, name string) (found Alarm) {
	for _, x := range s.Alarms {
		if x.Name == name {
			found = x
		}
	}
	return found
}

// TestHeldAlarm: at 80 % of the log held for a follower the operator is told
// who holds it, what it means and what can be done.
func TestHeldAlarm(t *testing.T) {
	for policy, next := range map[OnFull]string{OnFullTrack: "goes on without it", OnFullWait: "--on-full track"} {
		source := newAgentNode(t, RolePrimary)
		source.c.OnFull = policy
		source.start()
		dev, v := source.awaitServing(), source.a.v
		h := v.newHold("somebody", v.log.Tail(), func() {})
		told := func() Alarm { return alarmOf(source.a.Status(), "log-held") }
		p := make([]byte, 1<<20)
		for i := range 14 {
			if i == 12 && told() != (Alarm{}) {
				t.Fatalf("an alarm with %d of 16 MiB held: %+v", i, told())
			}
			if _, err := dev.WriteAt(p, 0); err != nil {
				t.Fatal(err)
			}
		}
		source.await("told", func(Status) bool { return told().Reason != "" })
		if x := told(); !strings.Contains(x.Reason, "held for") || !strings.Contains(x.NextStep, next) {
			t.Fatalf("%s: %+v", policy, x)
		}
		h.release()
		source.end()
	}
}

// TestOverlayFullAlarm: at 80 % of what the memory has room for the operator is told, and not after.
func TestOverlayFullAlarm(t *testing.T) {
	before := overlayExtents
	overlayExtents = func() int64 { return 100 }
	defer func() { overlayExtents = before }()
	source := newAgentNode(t, RolePrimary).start()
	dev, v := source.awaitServing(), source.a.v
	told := func(s Status) Alarm { return alarmOf(s, "overlay-full") }
	v.applyMu.Lock() // the backing device stands still
	for i := range 85 {
		if x := told(source.a.Status()); i == 80 && x != (Alarm{}) {
			t.Errorf("an alarm with %d of 100 pieces not applied: %+v", i, x)
		}
		if _, err := dev.WriteAt([]byte("piece"), int64(i)*4096); err != nil {
			t.Error(err)
		}
	}
	s := source.a.Status()
	v.applyMu.Unlock()
	if x := told(s); !strings.Contains(x.Reason, "85 small pieces") || !strings.Contains(x.NextStep, "slowed") || s.Log.OverlayLimit != 100 {
		t.Errorf("with 85 of 100 pieces not applied: %+v, limit %d", x, s.Log.OverlayLimit)
	}
	source.await("the alarm taken back", func(s Status) bool { return told(s) == (Alarm{}) })
}

// TestFullAlarm: at 80 % of the log not applied the operator is told, and what it means; not before, and not after.
func TestFullAlarm(t *testing.T) {
	source := newAgentNode(t, RolePrimary).start()
	dev, v := source.awaitServing(), source.a.v
	told := func(s Status) Alarm { return alarmOf(s, "log-full") }
	v.applyMu.Lock() // the backing device stands still
	p := make([]byte, 1<<20)
	for i := range 14 {
		if x := told(source.a.Status()); i == 12 && x != (Alarm{}) {
			t.Errorf("an alarm with %d of 16 MiB not applied: %+v", i, x)
		}
		if _, err := dev.WriteAt(p, 0); err != nil {
			t.Error(err)
		}
	}
	x := told(source.a.Status())
	v.applyMu.Unlock()
	if !strings.Contains(x.Reason, "not yet applied") || !strings.Contains(x.NextStep, "slowed") || x.Since.IsZero() {
		t.Errorf("with 14 of 16 MiB not applied: %+v", x)
	}
	source.await("the alarm taken back", func(s Status) bool { return told(s) == (Alarm{}) })
}
