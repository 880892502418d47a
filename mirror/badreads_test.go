package mirror

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"mirror-agent/blockdev"
)

// TestBadReadsModel: the places that are bad are those of a list of units in which each operation sets or clears some, and each
// is bad since the first of them.
func TestBadReadsModel(t *testing.T) {
	const size = 40 // fewer places than are kept
	rapid.Check(t, func(t *rapid.T) {
		var b badReads
		var want [size]bool
		now := time.Unix(1000, 0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			off := rapid.IntRange(0, size-1).Draw(t, "off")
			end := rapid.IntRange(off, size).Draw(t, "end")
			bad := rapid.Bool().Draw(t, "bad") && end > off
			now = now.Add(time.Second)
			if bad {
				b.failed(int64(off), int64(end), now, unix.EIO)
			} else {
				b.good(int64(off), int64(end))
			}
			for i := off; i < end; i++ {
				want[i] = bad
			}
			var got [size]bool
			for _, x := range b.places {
				for i := x.off; i < x.end; i++ {
					if got[i] {
						t.Fatalf("%d is in two places", i)
					}
					got[i] = true
				}
			}
			if got != want || b.some.Load() != (got != [size]bool{}) {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})
	var b badReads
	for i := range int64(3 * maxBadReads) {
		b.failed(2*i, 2*i+1, time.Unix(1000+i, 0), unix.EIO)
	}
	b.good(1, 5)
	b.failed(0, 7, time.Unix(9000, 0), unix.EIO)
	if x, n := b.worst(); n > maxBadReads || x.off != 0 || x.end != 7 || !x.since.Equal(time.Unix(1000, 0)) {
		t.Errorf("%d places, the oldest is %+v", n, x)
	}
}

// TestReadErrorAlarm: a device that does not give what an application reads is told of, with the place and what can be done,
// until that is read well or has been written anew. The application got its error, and nobody else knew.
func TestReadErrorAlarm(t *testing.T) {
	const at = 8192
	h := newHost(t, RolePrimary)
	v, _, dev := h.openFaulty(t)
	defer func() { _ = v.Abort() }()
	a := &Agent{c: Config{Device: "/dev/bad"}, v: v}
	told := func() (found []Alarm) {
		s := Status{Log: LogStatus{SizeBytes: v.log.Capacity()}}
		a.alarmsLocked(&s, time.Now())
		return s.Alarms
	}
	p := make([]byte, 4096)
	apply := func() {
		t.Helper()
		if _, err := v.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
		if err := v.settle(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(off int64, well bool) {
		t.Helper()
		if _, err := v.ReadAt(p, off); (err == nil) != well {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	apply()
	for _, c := range []struct {
		name string
		end  func() // of the alarm
	}{
		{"read well", func() { read(at, true) }},
		{"written anew", apply},
	} {
		dev.Set(blockdev.Rule{Op: blockdev.OpRead, Offset: at, Length: 512, Err: unix.EIO})
		read(0, true)
		if x := told(); len(x) != 0 {
			t.Fatalf("%s: alarms before: %+v", c.name, x)
		}
		read(at, false)
		read(0, true) // another place
		x := told()
		if len(x) != 1 || x[0].Name != "device-read-error" || x[0].Since.IsZero() || x[0].NextStep == "" ||
			!strings.Contains(x[0].Reason, fmt.Sprintf("/dev/bad does not give 4096 bytes at offset %d", at)) {
			t.Fatalf("%s: alarms %+v", c.name, x)
		}
		dev.Set()
		c.end()
		if x := told(); len(x) != 0 {
			t.Fatalf("%s: alarms after: %+v", c.name, x)
		}
	}
}
