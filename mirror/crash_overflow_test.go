package mirror

import (
	"context"
	"fmt"
	"sync/atomic"

	"mirror-agent/journal"
)

// The steps of a log that overflows or moves while followers are away: what they lack is in the log or marked, never lost.

// crashCorner is where the traffic goes that makes the log leave its tail behind. Before it every block has writes of its
// own, few enough that a forgotten one is not made good by the next.
const crashCorner = 48 << 10

// crashFollower is the volume of a follower.
func crashFollower(name string) (id [16]byte) {
	copy(id[:], name)
	return id
}

// acknowledges: the follower called name is durable up to at, and an anchor tells of it.
func (w *crashWorld) acknowledges(name string, at journal.LSN) {
	first := true
	for _, f := range w.facts {
		if f.name == name {
			f.until, first = min(f.until, w.trace.Len()), false
		}
	}
	holds := func() { w.note(name, func(v *Volume) error { return w.reaches(v, name, at) }) }
	w.v.dirty.acked(name, crashFollower(name), at)
	if !first {
		holds() // as long as the anchor tells of less, more is lacking
	}
	w.check(w.v.noteFollowers())
	if first {
		holds()
	}
}

// reaches is G6: v, opened after a crash, knows what the follower called name, which has acknowledged at, may lack. Its log
// reaches back to the follower, or a durable set has every block that the records up to the log's tail changed.
func (w *crashWorld) reaches(v *Volume, name string, at journal.LSN) error {
	e, tail := v.dirty.view(name), v.log.Tail()
	switch {
	case !e.known || e.id != crashFollower(name):
		return fmt.Errorf("it is forgotten: %+v", e)
	case e.lost != "":
		return fmt.Errorf("what it lacks is lost: %s", e.lost)
	case e.base > at:
		return fmt.Errorf("tracked from LSN %d on, it has %d", e.base, at)
	case e.set == nil && e.base < tail:
		return fmt.Errorf("the log begins at LSN %d, it has %d, and nothing is marked", tail, e.base)
	case e.set == nil:
		return nil
	case e.upTo < tail || e.upTo > v.log.Head():
		return fmt.Errorf("marked up to LSN %d, the log has %d to %d", e.upTo, tail, v.log.Head())
	}
	based := false
	for _, chain := range w.chains {
		m := w.moments[chain]
		based = based || m.lsn == e.base && chain == e.chain
		if m.lsn <= e.base || m.lsn > e.upTo {
			continue
		}
		for block := m.changed.off / e.set.block; block*e.set.block < m.changed.end; block++ {
			if !e.set.bits.Contains(uint32(block)) {
				return fmt.Errorf("block %d, changed up to LSN %d, is not marked in [%d, %d)", block, m.lsn, e.base, e.upTo)
			}
		}
	}
	if !based {
		return fmt.Errorf("base %d with chain %x was never in the history", e.base, e.chain)
	}
	return nil
}

// tracks says how it stands with the follower called name, so that a scenario that does too little is noticed.
func (w *crashWorld) tracks(name string, want bool) {
	w.t.Helper()
	dirty, size := w.v.dirty.dirtyBytes(name), w.v.size.Load()
	if dirty > 0 != want || dirty == size {
		w.t.Fatalf("operation %d: %d of %d bytes are marked for %s; tracked should be %v", w.trace.Len(), dirty, size, name, want)
	}
}

// overflow writes n times into the corner, between times to a block that has nothing else, and applies now and then.
func (w *crashWorld) overflow(n int) {
	for i := range n {
		w.write(crashCorner, crashDevice-crashCorner-i%5)
		if i%4 == 1 {
			off := int64(w.serial*5%12) * minDirtyBlock
			switch w.serial % 3 {
			case 0:
				w.zero(off+100, 700, i%8 == 1)
			default:
				w.write(off+int64(w.serial%500), 40+i)
			}
		}
		if i%3 == 2 {
			w.apply()
		}
	}
	w.apply()
}

// resizeLog moves the log to a file of so many bytes, while writes go on.
func (w *crashWorld) resizeLog(bytes int64) {
	n := int64(0)
	w.moveLog(bytes, func() {
		n++
		w.write(n*minDirtyBlock, 600)
		w.flush()
		w.write(n*minDirtyBlock+300, 600)
	})
}

// moveLog is resizeLog with something else that goes on.
func (w *crashWorld) moveLog(bytes int64, meanwhile func()) {
	d := w.trace.Disk(bytes)
	w.disks = append(w.disks, d)
	times := 0
	var syncs atomic.Int64
	var moved atomic.Bool
	d.Before = func(sync bool, p []byte, off, length int64) { // the volume's own goroutine comes here, too, once the log is there
		if moved.Load() {
			w.syncs(sync, p, off, length)
			return
		}
		if !sync {
			return
		}
		if n := syncs.Add(1); n == 2 || n == 3 { // the empty ring's, and that of the first copy
			times++
			meanwhile()
		}
	}
	directory := w.disks[crashDirectory]
	w.check(w.v.resizeLog(context.Background(), d, bytes, func() error {
		if _, err := directory.WriteAt([]byte{byte(len(w.disks) - crashResized)}, 0); err != nil {
			return err
		}
		return directory.Sync()
	}))
	moved.Store(true)
	durable := w.v.log.Durable()
	w.synced.Store(uint64(durable))
	w.answer()
	w.promise(&w.flushed, durable)
	if got := w.v.log.Capacity(); got != bytes-8192 || times != 2 {
		w.t.Fatalf("a ring of %d bytes in a file of %d, %d times something went on meanwhile", got, bytes, times)
	}
}
