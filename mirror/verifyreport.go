package mirror

import (
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/journal"
)

// Difference is an extent of the device in which both sides did not hold the same.
type Difference struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	LSN    uint64 `json:"lsn"`  // at which both sides were seen
	Kind   string `json:"kind"` // differs, or unreadable on source, target or both
	// Repaired says from where, Why why not; both are empty when nobody asked for it.
	Repaired string `json:"repaired,omitempty"`
	Why      string `json:"why,omitempty"`
}

var kindOf = map[verdict]string{
	unitDiffers: "differs", unitUnreadableHere: "unreadable on the source", unitUnreadableThere: "unreadable on the target", unitUnreadable: "unreadable on both",
}

// States of a verify.
const (
	VerifyRunning     = "running"
	VerifyWaiting     = "waiting"     // for the target to be in sync
	VerifyDone        = "done"        // all was compared
	VerifyStopped     = "stopped"     // by the operator
	VerifyInterrupted = "interrupted" // the agent ended
	VerifyFailed      = "failed"
)

// VerifyOptions are what the operator says when ordering a verify.
type VerifyOptions struct {
	// Repair: "", "source" (its bytes go to the target) or "target" (the target's go to the source).
	Repair string `json:"repair"`
	// RateBytes is how much is compared in a second at most, 0 without a limit.
	RateBytes int64 `json:"rate_bytes"`
	// NoYield goes on as fast beside applications that are at work.
	NoYield bool `json:"no_yield"`
	// Direct reads both disks below the systems' caches, where that can be.
	Direct bool `json:"direct"`
	// Resume goes on where the last one ended before its end.
	Resume bool `json:"resume"`
}

// VerifyReport is how a verify goes, or went. Field names are a contract.
type VerifyReport struct {
	State   string        `json:"state"`
	Reason  string        `json:"reason,omitempty"`
	Target  string        `json:"target"`
	Options VerifyOptions `json:"options"`
	Started time.Time     `json:"started"`
	Ended   time.Time     `json:"ended,omitzero"`

	TotalBytes    int64 `json:"total_bytes"`    // of the device
	DoneBytes     int64 `json:"done_bytes"`     // up to here
	ComparedBytes int64 `json:"compared_bytes"` // read on both sides
	HoleBytes     int64 `json:"hole_bytes"`     // holes on both sides
	Exact         int64 `json:"exact_blocks"`   // looked at a second time: written meanwhile, or different

	FirstLSN   uint64 `json:"first_lsn"`
	LastLSN    uint64 `json:"last_lsn"`
	SourceRead string `json:"source_read,omitempty"` // from where: page cache, disk
	TargetRead string `json:"target_read,omitempty"`

	// RateBytes is what it is allowed in a second at present; Yields: because applications are at work.
	RateBytes   int64    `json:"rate_bytes"`
	Yields      bool     `json:"yields"`
	LeftSeconds *float64 `json:"left_seconds,omitempty"`

	DifferentBytes  int64 `json:"different_bytes"` // of all kinds
	UnreadableBytes int64 `json:"unreadable_bytes"`
	RepairedBytes   int64 `json:"repaired_bytes"`
	Extents         int64 `json:"different_extents"`
	// Differences are the first of them; status leaves them out.
	Differences []Difference `json:"differences,omitempty"`
}

// running: it is not at its end.
func (r *VerifyReport) running() bool { return r.State == VerifyRunning || r.State == VerifyWaiting }

// Bad is how many bytes differ, or cannot be read, and were not repaired.
func (r *VerifyReport) Bad() int64 { return r.DifferentBytes - r.RepairedBytes }

// Found says what was found, in words.
func (r *VerifyReport) Found() string {
	what := fmt.Sprintf("%s bytes in %s", humanize.Comma(r.DifferentBytes), places(r.Extents))
	switch {
	case r.DifferentBytes == 0:
		return "no difference"
	case r.Bad() == 0:
		return what + " differed, all repaired"
	case r.RepairedBytes > 0:
		return fmt.Sprintf("%s differed, %s repaired", what, humanize.Comma(r.RepairedBytes))
	}
	return what + " differ"
}

// maxDifferences are listed; all are counted.
const maxDifferences = 1000

// verifyTally collects what a verify finds. Its methods may be called from any goroutine.
type verifyTally struct {
	mu    sync.Mutex // guards all below
	r     VerifyReport
	began time.Time // of this run, which may be the rest of one
	from  int64     // where it began
	found func(Difference)
}

func (t *verifyTally) change(f func(*VerifyReport)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.r)
}

func (t *verifyTally) sawLocked(at journal.LSN) {
	if t.r.FirstLSN == 0 {
		t.r.FirstLSN = uint64(at)
	}
	t.r.LastLSN = max(t.r.LastLSN, uint64(at))
}

// seen: a chunk was seen on both sides at an LSN, read from wherever.
func (t *verifyTally) seen(at journal.LSN, here, there bool) {
	t.change(func(r *VerifyReport) {
		t.sawLocked(at)
		r.SourceRead, r.TargetRead = readFrom(r.SourceRead, here), readFrom(r.TargetRead, there)
	})
}

// readFrom keeps "page cache" once that was true.
func readFrom(before string, below bool) string {
	if below && before != readCached {
		return readDisk
	}
	return readCached
}

const (
	readCached = "page cache"
	readDisk   = "disk"
)

func (t *verifyTally) compared(n int64) { t.change(func(r *VerifyReport) { r.ComparedBytes += n }) }
func (t *verifyTally) exactly(n int64)  { t.change(func(r *VerifyReport) { r.Exact += n }) }

func (t *verifyTally) skipped(n int64, at journal.LSN) {
	t.change(func(r *VerifyReport) { r.HoleBytes += n; t.sawLocked(at) })
}

// add takes a difference, joined with the one before where they are of one kind.
func (t *verifyTally) add(d Difference) {
	t.mu.Lock()
	r := &t.r
	r.DifferentBytes += d.Length
	if d.Kind != kindOf[unitDiffers] {
		r.UnreadableBytes += d.Length
	}
	if d.Repaired != "" {
		r.RepairedBytes += d.Length
	}
	n := len(r.Differences)
	var last *Difference
	if n > 0 && int64(n) == r.Extents {
		last = &r.Differences[n-1]
	}
	switch {
	case last != nil && last.Offset+last.Length == d.Offset && last.Kind == d.Kind && last.Repaired == d.Repaired && last.Why == d.Why:
		last.Length, last.LSN = last.Length+d.Length, d.LSN
	case n < maxDifferences:
		r.Differences = append(r.Differences, d)
		r.Extents++
	default:
		r.Extents++
	}
	found := t.found
	t.mu.Unlock()
	if found != nil {
		found(d)
	}
}

// report is a copy; full has the differences.
func (t *verifyTally) report(full bool, now time.Time) VerifyReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.r
	r.Differences = nil
	if full {
		r.Differences = append([]Difference{}, t.r.Differences...)
	}
	if spent := now.Sub(t.began).Seconds(); r.State == VerifyRunning && r.DoneBytes > t.from && spent > 0.5 {
		left := spent * float64(r.TotalBytes-r.DoneBytes) / float64(r.DoneBytes-t.from)
		r.LeftSeconds = &left
	}
	return r
}
