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
	"mirror-agent/journal"
)

// clocked is a volume whose records are a second apart, with all of its log kept.
type clocked struct {
	*Volume
	h      *host
	now    time.Time
	starts []journal.LSN // of each write
	ends   []journal.LSN
	times  []time.Time
	states [][]byte // after each write
}

func newClocked(t *testing.T, writes int) *clocked {
	t.Helper()
	c := &clocked{h: newHost(t, RolePrimary), now: time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)}
	o := testOptions()
	o.RetainTime = time.Hour
	o.Now = func() time.Time { return c.now }
	v, _, err := openVolume(keepOpen{c.h.journal}, keepOpen{c.h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	c.Volume = v
	t.Cleanup(func() { _ = v.Abort() })
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	state := make([]byte, testDevice)
	for i := range writes {
		c.now = c.now.Add(time.Second)
		c.starts = append(c.starts, v.log.Head())
		p := bytes.Repeat([]byte{byte(i + 1)}, 2560+i*16) // all of it is retained: less than three eighths of the ring
		off := int64(i) * 2048 % (testDevice - 64<<10)
		if _, err := v.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(state[off:], p)
		c.ends, c.times, c.states = append(c.ends, v.log.Head()), append(c.times, c.now), append(c.states, bytes.Clone(state))
	}
	return c
}

// TestPoints: every word for a point finds the record boundary that it means, and what lies outside of the window is refused with its
// bounds.
func TestPoints(t *testing.T) {
	c := newClocked(t, 100)
	at := func(word string) (Point, error) {
		s, err := parsePoint(word)
		if err != nil {
			t.Fatal(err)
		}
		return c.resolve(s, c.now.Add(time.Minute))
	}
	expect := func(word string, lsn journal.LSN) {
		t.Helper()
		p, err := at(word)
		if err != nil || p.LSN != uint64(lsn) {
			t.Fatalf("%s: %v (%v), wanted LSN %d", word, p, err, lsn)
		}
		w, err := c.openView(lsn, noLimit, memoryScratch(c.h.power))
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		w.end(errViewClosed)
	}
	for i := range c.ends {
		expect(fmt.Sprintf("lsn:%d", c.ends[i]), c.ends[i])
		expect(fmt.Sprintf("lsn:%d", c.ends[i]+40), c.ends[i]) // inside of the next, or beyond
		if i == len(c.ends)-2 {
			break
		}
	}
	for i := range c.times {
		expect(c.times[i].Format(time.RFC3339Nano), c.ends[i])
		expect(c.times[i].Add(300*time.Millisecond).Format(time.RFC3339Nano), c.ends[i])
		expect(c.times[i].Add(-time.Millisecond).Format(time.RFC3339Nano), c.starts[i])
	}
	expect("", c.log.Head())
	if _, err := c.Checkpoint(t.Context(), "noon"); err != nil {
		t.Fatal(err)
	}
	end := c.log.Head()
	if _, err := c.WriteAt([]byte("later"), 0); err != nil {
		t.Fatal(err)
	}
	expect("checkpoint:noon", end)

	for word, want := range map[string]string{
		"lsn:8": "outside", fmt.Sprintf("lsn:%d", c.log.Head()+8): "outside", "2026-11-22T19:00:00Z": "outside",
		"2026-11-22T22:00:00Z": "in the future", "checkpoint:dusk": `no checkpoint "dusk"`,
	} {
		if _, err := at(word); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, wanted %q", word, err, want)
		}
	}
	// Some of it leaves the window.
	if err := c.Sync(); err != nil {
		t.Fatal(err)
	}
	c.overlay.freeze()
	c.settling.Store(true)
	if err := c.applyReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	outside := (*OutsideError)(nil)
	for _, word := range []string{fmt.Sprintf("lsn:%d", c.ends[50]), c.times[50].Format(time.RFC3339), "checkpoint:noon"} {
		if _, err := at(word); !errors.As(err, &outside) || outside.Window.From.LSN != uint64(c.log.Applied()) {
			t.Errorf("%s is applied: %v", word, err)
		}
	}
}

// TestGoBack: a volume goes back to each of its points; what came after is in the export, replayed it gives what there was before,
// and a crash right after changes nothing of it.
func TestGoBack(t *testing.T) {
	for _, i := range []int{0, 17, 98, 99} {
		c := newClocked(t, 100)
		c.role.Store(uint32(RoleSecondary))
		c.declared.Store(uint64(c.log.Head())) // all of it is committed
		if _, err := c.log.Sync(c.log.Head()); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "divergence.log")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		head := c.log.Head()
		p := Point{LSN: uint64(c.ends[i]), Time: c.times[i]}
		g, err := c.goBack(p, path, "here")
		if i == 99 {
			if g != nil || err != nil {
				t.Fatalf("nothing lies behind: %v %v", g, err)
			}
			continue
		}
		if err == nil || c.log.Head() != head {
			t.Fatalf("without an export it went back to %d (%v)", c.log.Head(), err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if g, err = c.goBack(p, path, "here"); err != nil || g.Bytes != int64(head-c.ends[i]) || g.Seconds != float64(99-i) || c.log.Head() != c.ends[i] {
			t.Fatalf("%+v, head %d: %v", g, c.log.Head(), err)
		}
		if got, err := content(c.Volume); err != nil || !bytes.Equal(got, c.states[i]) {
			t.Fatalf("after write %d it held something else (%v)", i, err)
		}
		if err := c.Abort(); err != nil {
			t.Fatal(err)
		}
		v, _, err := openVolume(keepOpen{c.h.journal}, keepOpen{c.h.device}, testOptions())
		if err != nil {
			t.Fatal(err)
		}
		got, err := content(v)
		if err != nil || !bytes.Equal(got, c.states[i]) {
			t.Fatalf("after a crash it holds something else (%v)", err)
		}
		if err := v.Abort(); err != nil {
			t.Fatal(err)
		}
		copyOf := filepath.Join(dir, "copy")
		if err := os.WriteFile(copyOf, got, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := ApplyExcerpt(t.Context(), path, copyOf, false); err != nil || !r.Applied {
			t.Fatalf("%+v: %v", r, err)
		}
		if got, err := os.ReadFile(copyOf); err != nil || !bytes.Equal(got, c.states[99]) {
			t.Fatalf("the export does not lead to what there was (%v)", err)
		}
	}
}

// TestPoint_words: what is no point is refused, with the words that are.
func TestPoint_words(t *testing.T) {
	for _, word := range []string{"noon", "lsn:", "lsn:0", "lsn:-8", "lsn:x", "lsn:18446744073709551615", ":", "checkpoint:", "checkpoint:a b", "2026-11-22", "time:2026-11-22T20:15:00Z"} {
		if err := CheckPoint(word); err == nil || !strings.Contains(err.Error(), "lsn:NUMBER or checkpoint:NAME") {
			t.Errorf("%q: %v", word, err)
		}
	}
	for _, word := range []string{"", "lsn:4096", "checkpoint:a", "2026-11-22T20:15:00Z", "2026-11-22T20:15:00.5+01:00"} {
		if err := CheckPoint(word); err != nil {
			t.Errorf("%q: %v", word, err)
		}
	}
}

var _ blockdev.Device = (*view)(nil)
