package journal

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev/crashtest"
)

// rotten is a closed journal for TestFlipEveryByteOfAll: what it holds and what was promised.
type rotten struct {
	state    // what is in the log
	disk     *crashtest.Disk
	trace    *crashtest.Trace
	promised LSN // below: refused, not cut
}

// lapped is a journal of several laps: the ring is full of old records, some before the tail, some applied, some not.
// The last anchor promises `promised`; later records promise nothing more.
func lapped(t *testing.T, laps int, role uint8) *rotten {
	r := &rotten{trace: crashtest.New()}
	r.disk = r.trace.Disk(MinSize)
	mustFormat(t, r.disk, Anchor{Name: "rot", Role: role, Applied: 4096, AppliedChain: 5})
	l := mustOpen(t, r.disk, Options{Now: func() time.Time { return time.Unix(1, 0) }})
	payload := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(i*7 + n)
		}
		return p
	}
	sync := func() {
		if _, err := l.Sync(l.Head()); err != nil {
			t.Fatal(err)
		}
	}
	add := func(n int) {
		if err := l.Append([]*Entry{write(uint64(n), payload(n))}); err != nil {
			t.Fatal(err)
		}
	}
	moveTail := func(to LSN) {
		sync()
		if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = to, to }); err != nil {
			t.Fatal(err)
		}
	}
	end := LSN(laps*minRing - 700) // the records that count lie across the end of the ring
	for l.Head() < end {
		if left := int(end - l.Head()); left > 100<<10 {
			add(50 << 10)
		} else {
			add(max(min(left-HeaderSize-8, 4000), 1))
		}
		moveTail(l.Head())
	}
	for i := range 5 {
		add(40 + 90*i)
	}
	sync()
	applied := l.Head()
	add(200)
	add(130)
	sync()
	if err := l.WriteAnchor(func(a *Anchor) { a.Applied = applied }); err != nil {
		t.Fatal(err)
	}
	r.promised = l.Durable()
	add(77)
	recs, err := readBack(l, l.Tail())
	if err != nil {
		t.Fatal(err)
	}
	r.state = state{recs: recs, start: l.Tail(), anchor: l.Anchor()}
	r.trace.Begin()
	return r
}

// judgeFlip says what a flip did to the journal, and whether that is allowed.
func (r *rotten) judgeFlip(im *crashtest.Image, at LSN, inRing bool) (string, error) {
	l, _, err := Open(im, Options{})
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		if inRing && (at < r.anchor.Applied || at >= r.promised) {
			return "", fmt.Errorf("refused, though nothing of it is promised and unread: %w", err)
		}
		return "refused", nil
	case err != nil:
		return "", err
	case l.Head() < r.promised || l.Head() > r.head():
		return "", fmt.Errorf("head %d, promised %d, written %d", l.Head(), r.promised, r.head())
	}
	a := l.Anchor()
	if a.Tail != r.anchor.Tail || a.Applied != r.anchor.Applied || a.Durable != r.anchor.Durable || a.Sequence < r.anchor.Sequence {
		return "", fmt.Errorf("an older anchor was taken: %+v", a)
	}
	// What Open does not read, Verify and the readers must see; and what was promised is byte for byte the same.
	if err := l.Verify(l.Tail(), l.Head()); err != nil {
		if errors.As(err, &corrupt) && inRing && at >= r.anchor.Tail && at < r.anchor.Applied {
			return "seen by a reader", nil
		}
		return "", err
	}
	if err := r.equals(l, l.Head()); err != nil {
		return "", err
	}
	if l.Head() < r.head() {
		return "cut", nil
	}
	return "harmless", nil
}

// TestFlipEveryByteOfAll flips every byte of both anchors and of the records of a log that went round its ring, and of
// what is left of former laps beside them. Nothing changes silently what was promised.
func TestFlipEveryByteOfAll(t *testing.T) {
	patterns := []byte{0x01, 0x80, 0xff}
	step := LSN(1)
	if raceEnabled || testing.Short() {
		patterns, step = patterns[:1], 31
	}
	for _, c := range []struct {
		name string
		laps int
		role uint8
	}{{"first lap", 1, RolePrimary}, {"third lap", 3, RolePrimary}, {"third lap of a secondary", 3, RoleSecondary}} {
		t.Run(c.name, func(t *testing.T) {
			r := lapped(t, c.laps, c.role)
			ring := ring{size: minRing}
			if c.laps > 1 && ring.position(r.start) < ring.position(r.head()) {
				t.Fatal("the records do not lie across the end of the ring")
			}
			var mu sync.Mutex
			seen := map[string]int{}
			flip := func(im *crashtest.Image, off int64, bits byte, at LSN, inRing bool) {
				b := make([]byte, 1)
				_, _ = im.ReadAt(b, off)
				old := b[0]
				_, _ = im.WriteAt([]byte{old ^ bits}, off)
				what, err := r.judgeFlip(im, at, inRing)
				if err != nil {
					t.Errorf("byte %d (LSN %d) ^ %#x: %v", off, at, bits, err)
				}
				mu.Lock()
				seen[what]++
				mu.Unlock()
			}
			type job struct {
				off    int64
				at     LSN
				inRing bool
			}
			var jobs []job
			for off := LSN(0); off < ringStart; off += step {
				jobs = append(jobs, job{int64(off), 0, false})
			}
			for at := r.start; at < r.head()+2*HeaderSize; at += step { // and the free place behind
				jobs = append(jobs, job{ring.offset(at), at, true})
			}
			for at := r.head() + 2*HeaderSize; at < r.start+minRing; at += 997 * step { // former laps
				jobs = append(jobs, job{ring.offset(at), at, true})
			}
			var wg sync.WaitGroup
			for worker := range 2 {
				wg.Go(func() {
					im := r.trace.Image(r.disk)
					for i := worker; i < len(jobs); i += 2 {
						bits := patterns
						if !jobs[i].inRing {
							bits = bits[i%len(bits):][:1] // every byte of an anchor lies under a checksum
						}
						for _, bits := range bits {
							flip(im, jobs[i].off, bits, jobs[i].at, jobs[i].inRing)
							im.Rollback()
						}
					}
				})
			}
			wg.Wait()
			t.Logf("%d bytes: %v", len(jobs), seen)
			for _, what := range []string{"refused", "cut", "harmless", "seen by a reader"} {
				if seen[what] == 0 {
					t.Errorf("none was %s: %v", what, seen)
				}
			}
		})
	}
}
