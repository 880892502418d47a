package mirror

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-agent/journal"
)

// verifiedPair is a source and a target in sync, whose device holds data all over.
func verifiedPair(t *testing.T) (src, dst *agentNode) {
	t.Helper()
	dst = newAgentNode(t, RoleSecondary).start()
	src = newAgentNode(t, RolePrimary, dst).start()
	dev := src.awaitServing()
	src.awaitState("in sync") // so that the target's log has it too
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i>>12 + i)
	}
	if _, err := dev.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	src.awaitApplied(dst)
	return src, dst
}

// awaitApplied waits until both devices hold everything.
func (n *agentNode) awaitApplied(dst *agentNode) {
	n.t.Helper()
	for _, x := range []*agentNode{n, dst} {
		x.await("applied", func(s Status) bool { return s.Log.Applied >= n.a.Status().Log.Head })
	}
}

// order starts a verify; end waits for its end.
func (n *agentNode) verify(o VerifyOptions) {
	n.t.Helper()
	if _, err := n.a.Verify(n.t.Context(), o); err != nil {
		n.t.Fatal(err)
	}
}

func (n *agentNode) verified(o VerifyOptions) VerifyReport {
	n.t.Helper()
	n.verify(o)
	return n.awaitVerify(VerifyDone)
}

func (n *agentNode) awaitVerify(state string) VerifyReport {
	n.t.Helper()
	n.await("verify "+state, func(s Status) bool { return s.Verify != nil && s.Verify.State == state })
	r, err := n.a.VerifyReport(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// spoilDevice changes a byte of the backing device behind the agent's back.
func (n *agentNode) spoilDevice(off int64) { spoilFile(n.t, n.c.Device, off) }

func spoilFile(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 8
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func alarms(s Status) (names []string) {
	for _, a := range s.Alarms {
		names = append(names, a.Name)
	}
	return names
}

// TestVerifyAgents: the whole story between two agents. Found, told, an alarm; kept over a restart; repaired, and the alarm ends.
func TestVerifyAgents(t *testing.T) {
	src, dst := verifiedPair(t)
	if _, err := src.a.VerifyReport(t.Context()); !errors.Is(err, ErrNoVerify) {
		t.Errorf("before the first: %v", err)
	}
	r := src.verified(VerifyOptions{Direct: true})
	if r.DifferentBytes != 0 || r.DoneBytes != 1<<20 || r.ComparedBytes != 1<<20 || r.FirstLSN == 0 || r.LastLSN < r.FirstLSN || len(alarms(src.a.Status())) != 0 {
		t.Errorf("%+v, alarms %v", r, alarms(src.a.Status()))
	}
	if r.SourceRead == "" || r.TargetRead == "" {
		t.Errorf("it does not say what was read: %+v", r)
	}
	dst.spoilDevice(300001)
	r = src.verified(VerifyOptions{})
	if len(r.Differences) != 1 || r.Differences[0].Offset != 299008 || r.Differences[0].Length != 4096 || r.SourceRead != readCached || r.TargetRead != readCached {
		t.Fatalf("%+v", r)
	}
	if got := alarms(src.a.Status()); !slices.Contains(got, "verify-differs") {
		t.Errorf("alarms %v", got)
	}
	events, _ := src.a.Events(0)
	for _, kind := range []string{"verify-started", "verify-difference", "verify-done"} {
		if !slices.ContainsFunc(events, func(e Event) bool { return e.Kind == kind }) {
			t.Errorf("no event %s", kind)
		}
	}
	src.kill()
	src.start()
	src.awaitState("in sync")
	if s := src.a.Status(); s.Verify == nil || s.Verify.DifferentBytes != 4096 || !s.Verify.Ended.Equal(r.Ended) || !slices.Contains(alarms(s), "verify-differs") {
		t.Errorf("after a restart: %+v, alarms %v", s.Verify, alarms(s))
	}
	if again, err := src.a.VerifyReport(t.Context()); err != nil || !slices.Equal(again.Differences, r.Differences) {
		t.Errorf("after a restart: %+v, %v", again.Differences, err)
	}
	r = src.verified(VerifyOptions{Repair: "source"})
	if r.RepairedBytes != 4096 || r.Bad() != 0 || slices.Contains(alarms(src.a.Status()), "verify-differs") {
		t.Errorf("%+v, alarms %v", r, alarms(src.a.Status()))
	}
	src.end()
	dst.end()
	a, errA := os.ReadFile(src.c.Device)
	b, errB := os.ReadFile(dst.c.Device)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the devices differ (%v, %v)", errA, errB)
	}
}

// TestVerifyRefused: what cannot be verified says why, and what to do.
func TestVerifyRefused(t *testing.T) {
	src, dst := verifiedPair(t)
	refused := func(n *agentNode, o VerifyOptions, words ...string) {
		t.Helper()
		_, err := n.a.Verify(t.Context(), o)
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v, want …%s…", err, w)
			}
		}
	}
	refused(dst, VerifyOptions{}, "secondary", "mirror-agent verify on", src.c.NodeName)
	refused(src, VerifyOptions{Repair: "both"}, "source or target")
	refused(src, VerifyOptions{RateBytes: -1}, "negative")
	refused(src, VerifyOptions{Resume: true}, "nothing to resume")
	if _, err := src.a.StopVerify(t.Context()); err == nil || !strings.Contains(err.Error(), "no verify") {
		t.Errorf("stop: %v", err)
	}
	src.verify(VerifyOptions{RateBytes: 1}) // the first chunk goes at once, the rest takes for ever
	refused(src, VerifyOptions{}, "under way", "--stop")
	if _, err := src.a.StopVerify(t.Context()); err != nil {
		t.Error(err)
	}
	if err := src.a.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused(src, VerifyOptions{}, "suspended", "in sync")
	alone := newAgentNode(t, RolePrimary).start()
	alone.awaitServing()
	refused(alone, VerifyOptions{}, "--target")
}

// slowPair has a device that takes several chunks, at a rate at which a verify does not end by itself.
func slowPair(t *testing.T) (src, dst *agentNode) {
	t.Helper()
	dst = newAgentNode(t, RoleSecondary)
	dst.c.Size = 3*maxVerifyChunk + 512
	dst.start()
	src = newAgentNode(t, RolePrimary, dst)
	src.c.Size = dst.c.Size
	src.start()
	dev := src.awaitServing()
	p := bytes.Repeat([]byte("mirror"), 1<<20)
	for off := int64(0); off < src.c.Size; off += int64(len(p)) {
		if _, err := dev.WriteAt(p[:min(int64(len(p)), src.c.Size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	src.awaitState("in sync")
	src.awaitApplied(dst)
	return src, dst
}

func (n *agentNode) awaitProgress() {
	n.t.Helper()
	n.await("under way", func(s Status) bool {
		return s.Verify != nil && s.Verify.DoneBytes > 0 && s.Verify.State == VerifyRunning
	})
}

// TestVerifyInterrupted: stopped, and ended with its agent, by a kill and by an orderly end: it says so, finds nothing that is
// not there, and goes on where it was when it is told to.
func TestVerifyInterrupted(t *testing.T) {
	src, dst := slowPair(t)
	dst.spoilDevice(dst.c.Size - 1)
	src.verify(VerifyOptions{RateBytes: 1})
	src.awaitProgress()
	if r, err := src.a.StopVerify(t.Context()); err != nil || r.State != VerifyStopped || r.DoneBytes != maxVerifyChunk {
		t.Fatalf("%+v, %v", r, err)
	}
	src.verify(VerifyOptions{RateBytes: 1, Resume: true})
	src.await("further", func(s Status) bool { return s.Verify.DoneBytes == 2*maxVerifyChunk })
	src.end()
	src.start()
	src.awaitState("in sync")
	r := src.awaitVerify(VerifyInterrupted)
	if r.DoneBytes != 2*maxVerifyChunk || r.DifferentBytes != 0 {
		t.Fatalf("after an orderly end: %+v", r)
	}
	src.verify(VerifyOptions{RateBytes: 1, Resume: true})
	src.await("further", func(s Status) bool { return s.Verify.DoneBytes == 3*maxVerifyChunk })
	src.a.keepChecks() // as it does now and then
	src.kill()
	src.start()
	src.awaitState("in sync")
	if r := src.awaitVerify(VerifyInterrupted); r.DoneBytes != 3*maxVerifyChunk {
		t.Fatalf("after a kill: %+v", r)
	}
	r = src.verified(VerifyOptions{Resume: true})
	if r.DifferentBytes != 512 || r.ComparedBytes != dst.c.Size || r.Differences[0].Offset != dst.c.Size-512 {
		t.Errorf("the last, partial block: %+v", r)
	}
	if _, err := src.a.Verify(t.Context(), VerifyOptions{Resume: true}); err == nil || !strings.Contains(err.Error(), "nothing to resume") {
		t.Errorf("resumed what is done: %v", err)
	}
}

// TestVerifyTargetAway: the target is killed in the middle: the verify waits, and goes on where it was.
func TestVerifyTargetAway(t *testing.T) {
	src, dst := slowPair(t)
	src.verify(VerifyOptions{RateBytes: maxVerifyChunk / 2})
	src.awaitProgress()
	dst.kill()
	src.awaitVerify(VerifyWaiting)
	src.write('x') // it misses this
	dst.start()
	r := src.awaitVerify(VerifyDone)
	if r.DifferentBytes != 0 || r.ComparedBytes != src.c.Size {
		t.Errorf("%+v", r)
	}
}

// TestVerifyPromoted: the target is promoted in the middle: the verify ends and says why, and has found nothing.
func TestVerifyPromoted(t *testing.T) {
	src, dst := slowPair(t)
	src.verify(VerifyOptions{RateBytes: 1})
	src.awaitProgress()
	if _, err := dst.a.Promote(t.Context(), PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	r := src.awaitVerify(VerifyFailed)
	if r.DifferentBytes != 0 || !strings.Contains(r.Reason, "generation") {
		t.Errorf("%+v", r)
	}
	if got := alarms(src.a.Status()); slices.Contains(got, "verify-differs") {
		t.Errorf("alarms %v", got)
	}
}

// TestVerifyWhileGrowing: the device becomes larger in the middle; what is new is compared, too.
func TestVerifyWhileGrowing(t *testing.T) {
	src, _ := slowPair(t)
	src.verify(VerifyOptions{RateBytes: maxVerifyChunk})
	src.awaitProgress()
	size, err := src.a.Resize(t.Context(), src.c.Size+maxVerifyChunk+1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.front.served().WriteAt([]byte("new"), size-3); err != nil {
		t.Fatal(err)
	}
	r := src.awaitVerify(VerifyDone)
	if r.DifferentBytes != 0 || r.DoneBytes != size || r.TotalBytes != size || r.ComparedBytes+r.HoleBytes != size {
		t.Errorf("%+v", r)
	}
}

// TestVerifyHoles: what is a hole on both sides is passed over, however large.
func TestVerifyHoles(t *testing.T) {
	dst := newAgentNode(t, RoleSecondary)
	dst.c.Size = 1 << 40
	dst.start()
	src := newAgentNode(t, RolePrimary, dst)
	src.c.Size = dst.c.Size
	src.start()
	dev := src.awaitServing()
	for _, off := range []int64{0, 1 << 39, 1<<40 - 512} {
		if _, err := dev.WriteAt(bytes.Repeat([]byte{3}, 512), off); err != nil {
			t.Fatal(err)
		}
	}
	src.awaitState("in sync")
	src.awaitApplied(dst)
	if r := src.verified(VerifyOptions{}); r.DifferentBytes != 0 || r.ComparedBytes > 4*maxVerifyChunk || r.ComparedBytes+r.HoleBytes != 1<<40 {
		t.Fatalf("%+v", r)
	}
	dst.spoilDevice(1 << 38) // in the middle of a hole
	r := src.verified(VerifyOptions{})
	if len(r.Differences) != 1 || r.Differences[0].Offset != 1<<38 {
		t.Errorf("data at the target where the source has a hole: %+v", r)
	}
}

// TestScrubMends: the log rots on either side, below applied; a scrub finds it and has it mended from the other side, while all
// goes on. A clean end and a start find nothing wrong.
func TestScrubMends(t *testing.T) {
	for _, side := range []string{"source", "target"} {
		t.Run(side, func(t *testing.T) {
			src, dst := verifiedPair(t)
			n := src
			if side == "target" {
				n = dst
			}
			at := logMiddle(t, n)
			before, err := os.ReadFile(n.c.Device + ".journal")
			if err != nil {
				t.Fatal(err)
			}
			spoilFile(t, n.c.Device+".journal", at)
			if err := n.a.Scrub(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.await("mended", func(s Status) bool { return s.Scrub != nil && !s.Scrub.Ended.IsZero() })
			if s := n.a.Status(); s.Scrub.Found != 1 || s.Scrub.Mended != 1 || s.Scrub.RotLSN != 0 || slices.Contains(alarms(s), "log-rot") || s.Scrub.DoneBytes < s.Scrub.TotalBytes {
				t.Errorf("%+v, alarms %v", s.Scrub, alarms(s))
			}
			after, err := os.ReadFile(n.c.Device + ".journal")
			if err != nil || !bytes.Equal(before[anchorBytes:], after[anchorBytes:]) {
				t.Errorf("the ring is not what it was (%v)", err)
			}
			src.write('y')
			src.end()
			dst.end()
			n.start()
			if s := n.a.Status(); s.Scrub.Mended != 1 {
				t.Errorf("not kept over a restart: %+v", s.Scrub)
			}
		})
	}
}

// logMiddle is a place in a node's journal file, in the payload of a record that is applied.
func logMiddle(t *testing.T, n *agentNode) int64 {
	t.Helper()
	log := n.a.v.log
	var data journal.LSN
	if err := log.Scan(log.Tail(), log.Applied(), func(r journal.Record) error {
		if r.PayloadLen > 100000 {
			data = r.Data() + 50000
		}
		return nil
	}); err != nil || data == 0 {
		t.Fatalf("no record: %v", err)
	}
	return anchorBytes + int64(uint64(data)%uint64(log.Capacity()))
}

// TestScrubCannotMend: nobody has what has rotted. Below applied everything goes on with an alarm, that ends when the log has
// moved on; a payload that is not applied stops the volume before it is.
func TestScrubCannotMend(t *testing.T) {
	t.Run("applied", func(t *testing.T) {
		src, dst := verifiedPair(t)
		at := logMiddle(t, src)
		spoilFile(t, src.c.Device+".journal", at)
		spoilFile(t, dst.c.Device+".journal", at) // the same bytes lie in the same place
		if err := src.a.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		src.await("found", func(s Status) bool { return s.Scrub != nil && !s.Scrub.Ended.IsZero() })
		s := src.a.Status()
		if s.Scrub.Found != 1 || s.Scrub.Mended != 0 || s.Scrub.Rot == "" || !slices.Contains(alarms(s), "log-rot") || src.a.v.Err() != nil {
			t.Fatalf("%+v, alarms %v, %v", s.Scrub, alarms(s), src.a.v.Err())
		}
		dev := src.awaitServing()
		p := make([]byte, 1<<20)
		for range 40 { // the ring goes around
			if _, err := dev.WriteAt(p, 0); err != nil {
				t.Fatal(err)
			}
		}
		src.await("moved on", func(s Status) bool { return !slices.Contains(alarms(s), "log-rot") })
	})
	t.Run("not applied", func(t *testing.T) {
		src := newAgentNode(t, RolePrimary)
		src.c.RetainTime = time.Hour
		src.start()
		at := src.a.v.log.Head()
		src.write('z')
		if src.a.v.log.Applied() > at {
			t.Fatal("it was applied: this test tests nothing")
		}
		spoilFile(t, src.c.Device+".journal", anchorBytes+int64(at)+journal.HeaderSize+1000)
		if err := src.a.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		src.awaitState("failed")
		if err := src.a.Scrub(context.Background()); err == nil {
			t.Error("a failed volume is scrubbed")
		}
	})
}

func TestScrubDue(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	const every = 24 * time.Hour
	for name, c := range map[string]struct{ last, want time.Time }{
		"never":           {time.Time{}, now.Add(scrubStart)},
		"an hour ago":     {now.Add(-time.Hour), now.Add(every - time.Hour)},
		"last week":       {now.Add(-7 * every), now.Add(scrubStart)},
		"in the future":   {now.Add(time.Hour), now.Add(every + time.Hour)},
		"just a bit late": {now.Add(-every), now.Add(scrubStart)},
	} {
		if got := scrubDue(c.last, now, every); !got.Equal(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestChecksFile: one that is damaged, or too long, is as good as none.
func TestChecksFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	kept := keptChecks{Verify: &VerifyReport{State: VerifyRunning, DoneBytes: 7}, Scrub: ScrubStatus{Running: true, Found: 2}}
	if err := kept.write(path); err != nil {
		t.Fatal(err)
	}
	var k checks
	dev := strings.TrimSuffix(path, "c") + "dev"
	for _, f := range []string{dev, dev + ".journal"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(path, dev+".journal.checks"); err != nil {
		t.Fatal(err)
	}
	k.open(&Config{Device: dev})
	if r := k.verify.report(true, time.Now()); r.State != VerifyInterrupted || r.DoneBytes != 7 || k.scrub.Found != 2 || k.scrub.Running {
		t.Errorf("%+v, %+v", r, k.scrub)
	}
	for _, bad := range []string{"", "{", "[]", strings.Repeat(" ", maxChecksBytes+10) + "{}"} {
		if err := os.WriteFile(dev+".journal.checks", []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		var k checks
		if k.open(&Config{Device: dev}); k.verify != nil || k.scrub.Found != 0 {
			t.Errorf("%.10q: %+v", bad, k.scrub)
		}
	}
}
