package mirror

import (
	"math"
	"sync/atomic"
	"time"

	"mirror-agent/journal"
)

// VolumeStats is what a volume's log, overlay and applier are doing.
type VolumeStats struct {
	Log journal.Stats

	OverlayBytes   int64 // of the device that are newer in the log
	OverlayExtents int
	OverlayLimit   int64 // extents that there may be (memory.go)
	AbsorbedBytes  int64 // of the device that never had to be written: they were overwritten before

	UnappliedBytes int64         // of log that the applier has not got to
	UnappliedAge   time.Duration // of the oldest record among them

	UsedBytes   int64 // of the ring: what is not applied or read by a follower, and history
	PinnedBytes int64 // of these, what the tail may not leave behind yet
	// WriteBytesPerSecond is how fast the log grows at present, FullIn how long the rest of the ring lasts at that rate when
	// nothing more is applied or read; negative when it is not growing.
	WriteBytesPerSecond float64
	FullIn              time.Duration

	WritersWaiting int // in line, for room in the log or for their turn while writers are slowed
}

// Stats may be called at any time. It reads one header of the log.
func (v *Volume) Stats() VolumeStats {
	now := time.Now()
	s := VolumeStats{Log: v.log.Stats(), WriteBytesPerSecond: v.pulse.rate(now), FullIn: -1}
	_, _, s.OverlayExtents = v.overlay.pending()
	s.OverlayLimit = v.opts.OverlayExtents
	s.OverlayBytes, s.AbsorbedBytes = v.overlay.volume()
	tail, applied := v.log.Tail(), v.log.Applied() // the head only grows meanwhile, unless it is cut
	pinned := max(min(applied, journal.LSN(v.holdMark.Load())), tail)
	head := max(v.log.Head(), applied)
	s.UnappliedBytes, s.UsedBytes, s.PinnedBytes = int64(head-applied), int64(head-tail), int64(head-pinned)
	s.WritersWaiting = int(v.line.waiting.Load())
	s.UnappliedAge = v.ageAt(applied, head, now)
	if s.WriteBytesPerSecond >= 1 {
		room := max(0, v.log.Capacity()-journal.Reserve-s.PinnedBytes)
		s.FullIn = time.Duration(min(float64(room)/s.WriteBytesPerSecond, maxFullIn.Seconds()) * float64(time.Second))
	}
	return s
}

// maxFullIn is longer than anybody looks ahead.
const maxFullIn = 365 * 24 * time.Hour

// ageAt is the age of the oldest record in [lsn, head), 0 when there is none.
func (v *Volume) ageAt(lsn, head journal.LSN, now time.Time) time.Duration {
	if lsn >= head {
		return 0
	}
	var oldest int64
	_ = v.log.Scan(max(lsn, v.log.Tail()), head, func(r journal.Record) error {
		oldest = r.Time
		return errStopScan
	})
	if oldest == 0 {
		return 0
	}
	return max(0, now.Sub(time.Unix(0, oldest)))
}

// pulse measures how fast the log grows, averaged over some seconds. beat is called by one goroutine, rate by any.
type pulse struct {
	last  journal.LSN
	at    time.Time
	value atomic.Uint64 // float64, bytes per second
	when  atomic.Int64  // of value, Unix ns
}

// pulseSpan is how long a change takes to show by two thirds.
const pulseSpan = 3 * time.Second

func (p *pulse) beat(head journal.LSN, now time.Time) {
	span := now.Sub(p.at).Seconds()
	if p.at.IsZero() || head < p.last || span <= 0 {
		p.last, p.at = head, now
		return
	}
	weight := 1 - math.Exp(-span/pulseSpan.Seconds())
	before := math.Float64frombits(p.value.Load())
	p.value.Store(math.Float64bits(before + weight*(float64(head-p.last)/span-before)))
	p.when.Store(now.UnixNano())
	p.last, p.at = head, now
}

// rate is the last one measured, as it fades when no beat comes.
func (p *pulse) rate(now time.Time) float64 {
	when := p.when.Load()
	if when == 0 {
		return 0
	}
	silent := max(0, now.Sub(time.Unix(0, when))-pulseSpan)
	return math.Float64frombits(p.value.Load()) * math.Exp(-silent.Seconds()/pulseSpan.Seconds())
}
