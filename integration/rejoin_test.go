package integration

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport/dataporttest"
	"mirror-agent/mirror"
)

// twoWay is a mirror of two hosts that both listen and both name the other.
func twoWay(t *testing.T, lay layout) (m *testMirror, cables []*dataporttest.Proxy) {
	t.Helper()
	back := freePort(t, "127.0.0.1")
	toSource := dataporttest.NewProxy(back)
	t.Cleanup(toSource.Close)
	common := []string{"--start-wait", "2s", "--unreachable-after", "1s"}
	lay.sourceArgs = append(append(lay.sourceArgs, common...), "--listen", back)
	lay.targetArgs = append(append(lay.targetArgs, common...), "--target", toSource.Addr(), "--announced=false")
	m = newMirror(t, lay)
	return m, append(m.toTarget, toSource)
}

// untilFollowed waits until a primary's other host has all that it has, whatever it calls that host.
func (a *agent) untilFollowed() follower {
	a.t.Helper()
	var f follower
	a.until(40*time.Second, "followed, and level", func(s *status) bool {
		for _, x := range s.Followers {
			if x.State == streaming && x.LagBytes == 0 && x.DirtyBytes == 0 && x.Durable >= s.Log.Head {
				f = x
				return true
			}
		}
		return false
	})
	return f
}

// since are the blocks that were written by the load from write first on.
func (l *ledger) since(first int) map[int64]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	blocks := map[int64]bool{}
	for _, w := range l.writes[first:] {
		blocks[int64(w.block)] = true
	}
	return blocks
}

// TestRejoinRounds: again and again, both ways round, the source is cut off, writes on alone and is killed; the other host is
// promoted and written to; the old source comes back, is fenced, says what only it has, exports exactly that, and follows the
// new one while that is written to. Nothing is compared as a whole, what is copied is what differs, and at the end both
// devices are equal.
func TestRejoinRounds(t *testing.T) {
	m, cables := twoWay(t, layout{size: 32 << 20, journal: "128MiB"})
	m.start()
	lead, other := m.source, m.target
	rng := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := lead.dial(startLimit)
	for round := range rounds(t, 10) {
		ld := l.startLoad(c, rng, 8, 20)
		ld.untilAnswered(t, 200)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
		ld = l.startLoad(c, rng, 8, 20)
		ld.untilAnswered(t, 50)
		for _, p := range cables {
			p.Blackhole(true)
		}
		ld.untilAnswered(t, 200) // alone, most of it
		lead.kill()
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}

		m.promote(other)
		c = other.dial(startLimit)
		if err := l.verify(c.read, allSettled); err != nil {
			t.Fatalf("round %d: promoted: %v", round, err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
		first := len(l.writes)
		ld = l.startLoad(c, rng, 8, 20)
		ld.untilAnswered(t, 200)

		for _, p := range cables {
			p.Blackhole(false)
		}
		lead.start()
		old := lead.until(30*time.Second, "fenced, and it knows what only it has", func(s *status) bool {
			return s.State == "fenced" && strings.Contains(s.Reason, "were made here only")
		})
		if _, err := dialNBD(lead.nbd, mirrorName); err == nil {
			t.Fatalf("round %d: the old source serves", round)
		}
		lost := m.demoteRunning(lead, old)
		ld.untilAnswered(t, 100)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		differ := l.since(first)
		for b := range lost {
			differ[b] = true
		}
		f := other.untilFollowed()
		x, most := f.Resynced, int64(len(differ))*ledgerBlock
		if x == nil || x.All {
			t.Fatalf("round %d: it came back by %+v", round, x)
		}
		t.Logf("round %d: %d KiB sent, at most %d KiB differed (%d KiB of it on the old side), of %d KiB", round, x.SentBytes>>10, most>>10, len(lost)*ledgerBlock>>10, m.size>>10)
		if x.SentBytes*5 > most*6 {
			t.Errorf("round %d: %d bytes were sent, %d differed", round, x.SentBytes, most)
		}
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		lead, other = other, lead
	}
	c.close()
	lead.untilFollowed()
	lead.stop()
	other.stop()
	sameFile(t, m.source.device, m.target.device)
}

// demoteRunning gives up the volume of a fenced agent that runs, and returns the blocks that only it had changed.
func (m *testMirror) demoteRunning(a *agent, s status) map[int64]bool {
	m.t.Helper()
	var dry, d mirror.DemoteResult
	if err := json.Unmarshal([]byte(a.mustCommand("demote", "--dry-run", "--json")), &dry); err != nil {
		m.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(a.mustCommand("demote", "--json")), &d); err != nil {
		m.t.Fatal(err)
	}
	if !d.Exact || !d.Complete || d.Export == nil || dry.Export != nil || d.From != dry.From || d.Records != dry.Records || d.Head != s.Log.Head {
		m.t.Fatalf("dry run %+v, then %+v; the log ended at LSN %d", dry, d, s.Log.Head)
	}
	var report mirror.LogReport
	if err := json.Unmarshal([]byte(runAgent(m.t, "log", "inspect", "--json", d.Export.Path).stdout), &report); err != nil {
		m.t.Fatal(err)
	}
	if report.From != d.From || report.Head != s.Log.Head || report.Records != d.Records || report.Damage != "" {
		m.t.Errorf("the export is %+v, demote said %+v", report, d)
	}
	blocks := map[int64]bool{}
	next := d.From
	for line := range strings.Lines(runAgent(m.t, "log", "inspect", "--records", "--json", d.Export.Path).stdout) {
		var r mirror.LogRecord
		if !strings.HasPrefix(line, `{"lsn"`) {
			break // the report comes after them
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			m.t.Fatal(err)
		}
		if r.LSN < next {
			m.t.Errorf("a record at LSN %d, behind %d", r.LSN, next)
		}
		next = r.LSN
		for at := int64(r.Offset); at < int64(r.Offset)+int64(r.Length); at += ledgerBlock {
			blocks[at/ledgerBlock] = true
		}
	}
	if len(blocks) == 0 {
		m.t.Errorf("nothing in the export %+v", report)
	}
	return blocks
}
