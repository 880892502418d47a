package mirror

import (
	"math"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// The overlay's memory. Each extent that is in the log and not applied takes some, and records may be small: a log of 100 GiB
// with 4 KiB writes has 25 million. So the overlay has a bound by itself. It is kept as that of the ring: what is retained is
// applied before its time, then writers are slowed.

const (
	// overlayExtentBytes is about what an extent takes, bytes: 40, in nodes that are two thirds full.
	overlayExtentBytes = 64
	// overlayMemory is the part of the machine's memory that the overlay may have, beside as much for the garbage collector.
	overlayMemory = 1.0 / 8
	// minOverlayExtents: so many there may be on any machine.
	minOverlayExtents = 1 << 20

	// retainedShare is the share of it that may be retained; with another layer it stays below paceStart.
	retainedShare = 3.0 / 8
	// layersOfMemory: no layer has more than that part of what there may be.
	layersOfMemory = 32
)

// overlayExtents is how many extents the overlay may have where nothing else was said: by the memory of the machine or, where that
// is less, of the control group (systemd's MemoryMax, a container).
var overlayExtents = sync.OnceValue(func() int64 {
	memory := uint64(math.MaxInt64)
	for _, of := range []func() (uint64, error){memlimit.FromSystem, memlimit.FromCgroup} {
		if n, err := of(); err == nil && n > 0 { // an error: no such limit
			memory = min(memory, n)
		}
	}
	return max(minOverlayExtents, int64(float64(memory)*overlayMemory/overlayExtentBytes))
})

// overlayShare is how much of its memory the overlay has.
func (v *Volume) overlayShare() float64 {
	return float64(v.overlay.count.Load()) / float64(v.opts.OverlayExtents)
}

// overlayFull says whether nothing may be retained any more.
func (v *Volume) overlayFull() bool { return v.overlayShare() > retainedShare }

func (v *Volume) layerExtents() int { return int(max(1, v.opts.OverlayExtents/layersOfMemory)) }
