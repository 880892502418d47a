package mirror

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/journal"
)

// tenure is a primary's time by an arbiter's lease, as a state machine without a clock.
//
//	      renewed: until = when the call was made + TTL − margin
//	none ──────────────────────────────────────────────────────→ held ──┐
//	                                                              │ ↑   │ renewed
//	                                         the clock is past it │ │←──┘
//	                                                              ↓ │ renewed: nobody else had it meanwhile
//	                                                             over
//
// Nothing is answered unless it is held. The arbiter measures the TTL from a
// later moment, by its own clock, so it is over here before the lease can pass
// to another one; the margin is for clocks that run at different speeds.
//
// Who may get the lease is in the arbiter's record: members that have everything
// that a FLUSH was answered for. recorded are all that the record may name now,
// those of a call under way among them. A FLUSH is answered when each of them has
// what it covers; one that does not keep up has to leave the record first.
type tenure struct {
	until    int64 // by the clock since boot, ns; 0: none
	recorded []memberID
	fresh    bool // recorded is what the record has
}

// leaseMargin is what is left of a TTL for clocks of different speed.
func leaseMargin(ttl time.Duration) time.Duration { return ttl / 5 }

func (t *tenure) renewed(sent int64, ttl time.Duration) {
	if ttl > 0 {
		t.until = max(t.until, sent+int64(ttl-leaseMargin(ttl)))
	}
}

func (t *tenure) held(now int64) bool { return now < t.until }

// records: a call that makes ids the record's is about to be made.
func (t *tenure) records(ids []memberID) {
	t.fresh = t.fresh && slices.Equal(t.recorded, ids)
	for _, id := range ids {
		if !slices.Contains(t.recorded, id) {
			t.recorded = append(slices.Clone(t.recorded), id)
		}
	}
}

// hasRecorded: the arbiter says what the record is.
func (t *tenure) hasRecorded(ids []memberID) { t.recorded, t.fresh = slices.Clone(ids), true }

// covers: everybody whom the record may name has what was answered up to lsn; has is what each is known to have.
func (t *tenure) covers(lsn journal.LSN, has func(memberID) journal.LSN) bool {
	for _, id := range t.recorded {
		if has(id) < lsn {
			return false
		}
	}
	return true
}

// sinceBoot is a clock that goes on while the process, or the machine, is stopped.
func sinceBoot() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("mirror: CLOCK_BOOTTIME: " + err.Error()) // Linux has had it since 2.6.39
	}
	return ts.Nano()
}
