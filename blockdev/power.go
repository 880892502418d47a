package blockdev

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// sectorBytes is what a disk writes wholly or not at all.
const sectorBytes = 512

// Power is the power supply that Memory devices share, so that a test can take it away from all of them between two
// operations, or in the middle of one:
//
//	on ── Cut, or the operation that CutAfter chose ──► lost ── Restore ──► on
//
// While it is lost every operation of every device, reads too, fails with ErrPowerLost. Restore gives each device what a
// disk could have kept: all that was synced, and of each write, zero and trim since then any set of its 512-byte sectors,
// applied in the order in which they were written. So the whole code under test must have stopped before Restore, as it
// would have when the host lost power.
type Power struct {
	mu      sync.Mutex // guards what follows and makes the order of operations one for all devices
	devices []*Memory
	ops     int
	left    int // operations until the cut; 0 is no cut planned

	lost atomic.Bool // changed under mu
}

// NewPower returns a power that is on.
func NewPower() *Power { return &Power{} }

func (p *Power) add(m *Memory) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices = append(p.devices, m)
}

// op counts one changing operation. alive says whether the device still had power when it began; err is what the
// operation returns. The one that is hit by the cut is alive and fails. p.mu is held.
func (p *Power) op() (alive bool, err error) {
	if p.lost.Load() {
		return false, ErrPowerLost
	}
	p.ops++
	if p.left > 0 {
		if p.left--; p.left == 0 {
			p.lost.Store(true)
			return true, ErrPowerLost
		}
	}
	return true, nil
}

// CutAfter plans a cut: the n-th write, zero, trim or sync from now on, of any device, and all after it fail with
// ErrPowerLost. The n-th itself may survive in part. With n < 1 there is no plan any more.
func (p *Power) CutAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = max(n, 0)
}

// Cut takes the power away now.
func (p *Power) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = 0
	p.lost.Store(true)
}

// Lost says whether the power is away.
func (p *Power) Lost() bool { return p.lost.Load() }

// Ops returns how many writes, zeroes, trims and syncs the devices have begun, with the one that a cut hit.
func (p *Power) Ops() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ops
}

// Restore brings the power back, with what the devices kept chosen by rng; a power that was on is cut first.
// No plan for a cut is left.
func (p *Power) Restore(rng *rand.Rand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = 0
	for _, m := range p.devices {
		m.restore(rng)
	}
	p.lost.Store(false)
}

// survivors chooses, for one device with n unsynced changes, which sectors were kept. The function it returns is asked
// once for every sector of every change, in order. All, none and a prefix in order are what disks mostly do, so they come
// often; the rest is any subset, dense or sparse.
func survivors(rng *rand.Rand, n int) func(change int, sector, sectors int64) bool {
	switch mode := rng.IntN(6); {
	case mode == 0 || n == 0:
		return func(int, int64, int64) bool { return false }
	case mode == 1:
		return func(int, int64, int64) bool { return true }
	case mode == 2: // a prefix of the changes, the last of them torn
		last, torn := rng.IntN(n), rng.Float64()
		return func(i int, sector, sectors int64) bool {
			return i < last || i == last && float64(sector) < torn*float64(sectors)
		}
	case mode == 3: // whole changes in any set
		kept := make([]bool, n)
		for i := range kept {
			kept[i] = rng.IntN(2) == 0
		}
		return func(i int, _, _ int64) bool { return kept[i] }
	default: // any set of sectors
		dense := rng.Float64()
		return func(int, int64, int64) bool { return rng.Float64() < dense }
	}
}
