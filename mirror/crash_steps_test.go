package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/crashtest"
	"mirror-agent/journal"
)

// The steps that the scenarios are made of: what a client, a source or an operator does, and what it is promised by that.

// fill makes n bytes that tell of their write: no other has them at the same place.
func (w *crashWorld) fill(n int) []byte {
	w.serial++
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.serial*37 + i*w.serial%251 + 1)
	}
	return p
}

func (w *crashWorld) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *crashWorld) write(off int64, n int) {
	p := w.fill(n)
	copy(w.want[off:], p)
	_, err := w.v.WriteAt(p, off)
	w.check(err)
	w.answer()
}

func (w *crashWorld) zero(off, n int64, trim bool) {
	clear(w.want[off : off+n])
	if trim {
		w.check(w.v.Trim(off, n))
	} else {
		w.check(w.v.Zero(off, n))
	}
	w.answer()
}

func (w *crashWorld) batch(n int, sync bool) {
	ws := make([]blockdev.Write, n)
	for i := range ws {
		off := int64(w.serial * 613 % (crashDevice - 1000))
		ws[i] = blockdev.Write{Offset: off, Data: w.fill(100 + i*57)}
		if i%4 == 3 {
			ws[i] = blockdev.Write{Offset: off, Length: 300, Trim: true}
			clear(w.want[off : off+300])
		}
		copy(w.want[off:], ws[i].Data)
	}
	ws[n-1].Sync = sync
	w.v.WriteBatch(ws)
	for i := range ws {
		w.check(ws[i].Err)
	}
	w.answer()
	if sync {
		w.promise(&w.flushed, w.v.log.Head())
	}
}

func (w *crashWorld) fua(off int64, n int) {
	ws := []blockdev.Write{{Offset: off, Data: w.fill(n), Sync: true}}
	copy(w.want[off:], ws[0].Data)
	w.v.WriteBatch(ws)
	w.check(ws[0].Err)
	w.answer()
	w.promise(&w.flushed, w.v.log.Head())
}

func (w *crashWorld) flush() {
	head := w.v.log.Head()
	w.check(w.v.Sync())
	w.promise(&w.flushed, head)
}

// grow makes the device as large as the disk is.
func (w *crashWorld) grow() {
	w.want = append(w.want, make([]byte, crashGrown-len(w.want))...)
	n, err := w.v.Grow(context.Background(), 0)
	w.check(err)
	if n != crashGrown {
		w.t.Fatalf("it grew to %d bytes", n)
	}
	w.answer()
	w.promise(&w.flushed, w.v.log.Head())
}

// sourceGrows is the same on a follower's source.
func (w *crashWorld) sourceGrows() {
	es := []*journal.Entry{{Op: journal.OpResize, Offset: crashGrown}, {Op: journal.OpTrim, Offset: crashDevice, Length: crashGrown - crashDevice}}
	w.check(w.source.Append(es))
	w.want = append(w.want, make([]byte, crashGrown-len(w.want))...)
}

// apply brings everything committed to the device.
func (w *crashWorld) apply() {
	_, err := w.v.log.Sync(w.v.log.Head())
	w.check(err)
	w.v.overlay.freeze()
	w.check(w.v.applyReady(context.Background()))
	w.check(w.v.relieve())
	w.answer()
}

// applyCommitted syncs nothing first: what is not durable stays in the log.
func (w *crashWorld) applyCommitted() {
	w.v.overlay.freeze()
	w.check(w.v.applyReady(context.Background()))
	w.answer()
}

func (w *crashWorld) checkpoint(name string) {
	w.check(w.v.log.Append([]*journal.Entry{{Op: journal.OpCheckpoint, Payload: []byte(name)}}))
	w.answer()
}

// fillTo writes until the log's head is at lsn; all of it is applied.
func (w *crashWorld) fillTo(lsn int64) {
	for left := lsn - int64(w.v.log.Head()); left > 128; left = lsn - int64(w.v.log.Head()) {
		w.write(0, int(min(left-64, 40<<10)))
		w.apply()
	}
}

// generation makes the volume primary.
func (w *crashWorld) generation(major bool) {
	g, err := w.v.beginGeneration(major)
	w.check(err)
	w.declared = math.MaxInt64
	w.answer()
	w.promise(&w.flushed, w.v.log.Head())
	w.note("generation", func(v *Volume) error {
		if compareRank(v.Generation(), g) < 0 || v.Role() != RolePrimary || compareRank(v.Seen(), g) < 0 && major {
			return fmt.Errorf("%v of generation %s, seen %s, after %s had begun", v.Role(), rankString(v.Generation()), rankString(v.Seen()), rankString(g))
		}
		return nil
	})
}

// restart ends the volume, by a kill or cleanly, and opens it again.
func (w *crashWorld) restart(clean bool) {
	if clean {
		w.check(w.v.Close())
		w.promise(&w.flushed, w.v.log.Head())
	} else {
		w.check(w.v.Abort())
	}
	w.open()
}

// newSource is the log of a follower's source.
func (w *crashWorld) newSource(a journal.Anchor) {
	disk := crashtest.New().Disk(testJournal)
	a.Role = uint8(RolePrimary)
	w.check(journal.Format(disk, a))
	l, _, err := journal.Open(disk, journal.Options{Now: func() time.Time { return time.Unix(1, 0) }})
	w.check(err)
	w.source = l
}

func (w *crashWorld) sourceWrites(n int) {
	for range n {
		off := int64(w.serial * 719 % (crashDevice - 4000))
		e := &journal.Entry{Op: journal.OpWrite, Offset: uint64(off), Payload: w.fill(300 + w.serial*97%900)}
		copy(w.want[off:], e.Payload)
		if w.serial%4 == 0 {
			e = &journal.Entry{Op: journal.OpTrim, Offset: uint64(off), Length: 2000}
			clear(w.want[off : off+2000])
		}
		w.check(w.source.Append([]*journal.Entry{e}))
	}
}

func (w *crashWorld) sourceGeneration(major uint32) {
	first, chain := w.source.HeadChain()
	g := journal.Generation{Major: major, ID: [16]byte{byte(major)}, First: first, Chain: chain}
	w.check(w.source.Append([]*journal.Entry{{Op: journal.OpGeneration, Payload: encodeGeneration(g)}}))
}

// receive takes what the source has, in two messages.
func (w *crashWorld) receive() {
	buf := make([]byte, 2000)
	for {
		n, err := w.source.ReadRaw(w.v.log.Head(), buf)
		if err == io.EOF {
			break
		}
		w.check(err)
		_, err = w.v.appendRaw(context.Background(), w.v.log.Head(), buf[:n])
		w.check(err)
	}
	w.answer()
}

// acknowledge tells the source how much is durable.
func (w *crashWorld) acknowledge() {
	d, err := w.v.log.Sync(w.v.log.Head())
	w.check(err)
	w.promise(&w.flushed, d)
}

func (w *crashWorld) declare(lsn journal.LSN) {
	w.v.declare(lsn)
	w.declared = max(w.declared, lsn)
}

// cut is what a follower does whose source lost its tail; the source then writes something else there.
func (w *crashWorld) cut(lsn journal.LSN) {
	w.promise(&w.flushed, lsn)
	w.promise(&w.answered, lsn)
	dropped := w.forget(lsn)
	w.check(w.v.cut(lsn))
	w.bury(dropped)
	w.answer()
	w.check(w.source.Cut(lsn))
}

// reset begins the log anew at lsn: the content stays, everything before is forgotten.
func (w *crashWorld) reset(lsn journal.LSN) {
	w.takeOver(lsn, func(chain uint64) error { return w.v.restart(lsn, chain, nil, func(*journal.Anchor) {}) })
}

// takeOver replaces the history by one that begins at lsn with what is wanted now.
func (w *crashWorld) takeOver(lsn journal.LSN, do func(chain uint64) error) {
	old := make([]*moment, 0, len(w.chains))
	for _, c := range w.chains {
		old = append(old, w.moments[c])
	}
	w.serial++
	chain := uint64(w.serial) * 0x9e3779b97f4a7c15
	w.promise(&w.flushed, 0)
	w.promise(&w.answered, 0)
	w.moments[chain] = &moment{lsn: lsn, content: bytes.Clone(w.want), dead: math.MaxInt}
	w.chains = []uint64{chain}
	w.declared = lsn
	w.synced.Store(uint64(lsn))
	w.check(do(chain))
	w.check(w.source.Reset(lsn, chain, nil))
	w.bury(old)
	w.synced.Store(uint64(lsn))
	w.answer()
	w.promise(&w.flushed, lsn)
}

// resync builds a new state beside the volume and takes it over at lsn, where the source's log goes on.
func (w *crashWorld) resync(lsn journal.LSN) {
	st, err := newStaging(w.v, w.stage, func() error { return nil })
	w.check(err)
	for _, off := range []int64{0, 3000, resyncBlockBytes - 500, crashDevice - 700} {
		p := w.fill(600)
		copy(w.want[off:], p)
		w.check(st.write(p, off, int64(len(p)), false))
	}
	clear(w.want[9000:9900])
	w.check(st.write(nil, 9000, 900, true))
	w.takeOver(lsn, func(chain uint64) error { return st.finish(lsn, chain, nil) })
}

// see stores a generation; from then on it is never forgotten (G5).
func (w *crashWorld) see(major uint32) {
	g := journal.Generation{Major: major, ID: [16]byte{byte(major)}}
	w.check(w.v.see(g))
	w.note("fence", func(v *Volume) error {
		if compareRank(v.Seen(), g) < 0 {
			return fmt.Errorf("seen %s, %s was stored", rankString(v.Seen()), rankString(g))
		}
		return nil
	})
}

func (w *crashWorld) setFlags(set, clear uint32) {
	for _, f := range w.facts {
		if f.name == "flags" {
			f.until = min(f.until, w.trace.Len())
		}
	}
	w.check(w.v.setFlags(set, clear))
	want := w.v.flags()
	w.note("flags", func(v *Volume) error {
		if got := v.flags(); got != want {
			return fmt.Errorf("flags %#x, %#x were stored", got, want)
		}
		return nil
	})
}
