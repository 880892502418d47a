package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/crashtest"
	"mirror-agent/journal"
)

// crashScenarios: one row each; share is what a plain `go test` visits of its states.
var crashScenarios = []struct {
	name  string
	role  Role
	share float64
	run   func(w *crashWorld)
}{
	{"first start", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		w.write(0, 100)
		w.flush()
	}},
	{"unsynced", RolePrimary, 0.5, func(w *crashWorld) {
		w.generation(true)
		for i := range 9 { // none of them promised: every combination
			w.write(int64(i)*1000, 500+i*131)
		}
		w.flush()
		w.write(100, 3000)
	}},
	{"overlapping", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		w.write(0, 4096)
		w.write(511, 2)
		w.zero(1000, 1000, false)
		w.write(1500, 100)
		w.zero(0, 3000, true)
		w.flush()
		w.write(2999, 2)
		w.write(512, 512)
		w.apply()
		w.write(1, 700)
		w.zero(600, 2600, true)
		w.write(650, 10)
		w.apply()
		w.write(649, 12)
		w.applyCommitted() // which this is not
		w.flush()
		w.write(640, 300)
		w.applyCommitted()
	}},
	{"flush and FUA", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		for i := range 12 {
			w.write(int64(i%5)*700, 300+40*i)
			switch i % 4 {
			case 1:
				w.flush()
			case 3:
				w.fua(int64(i)*512, 600)
			}
		}
	}},
	{"batches", RolePrimary, 0.1, func(w *crashWorld) {
		w.generation(true)
		for i := range 6 {
			w.batch(3+i, i%3 == 2)
		}
		w.apply()
		w.batch(8, false)
		w.batch(2, false)
	}},
	{"applied while written", RolePrimary, 0.3, func(w *crashWorld) {
		w.generation(true)
		for i := range 6 {
			w.write(int64(i)*3000, 1200)
			w.write(int64(i)*3000+1100, 300)
			w.during = func() {
				w.write(int64(i)*3000+200, 200)
				w.zero(int64(i)*3000+900, 500, i%2 == 0)
			}
			w.apply()
			w.write(int64(i)*3000+600, 300)
		}
	}},
	{"control records", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		for i := range 5 {
			w.write(int64(i)*900, 700)
			w.checkpoint(fmt.Sprintf("point %d", i))
			w.flush()
			w.checkpoint("not flushed")
		}
		w.apply()
		w.checkpoint("alone")
	}},
	{"kills and clean ends", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		for i := range 4 {
			w.write(int64(i)*2000, 1500)
			w.flush()
			w.write(int64(i)*2000+1000, 900)
			w.restart(i%2 == 1)
			w.generation(false)
			w.write(int64(i)*100, 60)
		}
	}},
	{"laps", RolePrimary, 0.05, func(w *crashWorld) {
		w.generation(true)
		rng := rand.New(rand.NewPCG(4, 4))
		for i := 0; w.v.log.Head() < 4<<20; i++ { // nearly four laps
			w.write(int64(rng.IntN(20<<10)), 20<<10+rng.IntN(24<<10))
			if i%4 == 3 {
				w.apply()
			}
		}
		for range 3 {
			w.write(100, 900)
		}
	}},
	{"small records around the end", RolePrimary, 0.1, func(w *crashWorld) {
		w.generation(true)
		w.fillTo(testJournal - 8192 - 2000)
		for i := range 10 { // headers and payloads lie across the end of the ring
			w.write(int64(i)*333, 90+i*7)
			if i == 5 {
				w.flush()
			}
		}
		w.apply()
		w.write(5, 5)
	}},
	{"full ring", RolePrimary, 0.1, func(w *crashWorld) {
		w.generation(true)
		w.fillTo(int64(w.v.log.Capacity()) - journal.Reserve - 40<<10)
		w.write(0, 39<<10) // the last that fits
		w.checkpoint("into the reserve")
		w.apply()
		w.write(7, 30<<10) // over the first lap
		w.flush()
		w.write(8, 10)
	}},
	{"follower", RoleSecondary, 1, func(w *crashWorld) {
		for i := range 8 {
			w.sourceWrites(1 + i%3)
			w.receive()
			if i%3 == 1 {
				w.acknowledge()
			}
			if i%4 == 3 {
				w.declare(w.v.log.Durable())
				w.apply()
			}
			w.applyCommitted()
		}
	}},
	{"follower cut", RoleSecondary, 1, func(w *crashWorld) {
		for i := range 5 {
			w.sourceWrites(2)
			w.receive()
			w.acknowledge()
			keep := w.v.log.Head()
			w.declare(keep)
			if i%2 == 0 {
				w.apply()
			}
			w.sourceWrites(2)
			w.receive()
			if i > 2 {
				w.acknowledge()
			}
			w.cut(keep)
		}
		w.sourceWrites(1)
		w.receive()
	}},
	{"promotion", RoleSecondary, 1, func(w *crashWorld) {
		w.see(1)
		w.sourceGeneration(1)
		w.sourceWrites(3)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Durable())
		w.apply()
		w.sourceWrites(3)
		w.receive() // not durable, not declared: the new primary has it
		w.generation(true)
		w.write(40, 2000)
		w.flush()
		w.write(50, 20)
		w.apply()
		w.restart(false)
		w.generation(false)
		w.write(3000, 20)
	}},
	{"reset", RoleSecondary, 1, func(w *crashWorld) {
		w.sourceWrites(3)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Head())
		w.apply()
		w.reset(1 << 21)
		w.sourceWrites(2)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Head())
		w.apply()
		w.reset(200 << 10) // back: where records of before lie
		w.sourceWrites(2)
		w.receive()
	}},
	{"life 1", RolePrimary, 0.03, func(w *crashWorld) { w.life(1, 260) }},
	{"life 2", RolePrimary, 0.03, func(w *crashWorld) { w.life(2, 260) }},
	{"life 3", RolePrimary, 0.03, func(w *crashWorld) { w.life(3, 260) }},
	{"life 4", RolePrimary, 0.03, func(w *crashWorld) { w.life(4, 260) }},
	{"life 5", RolePrimary, 0.03, func(w *crashWorld) { w.life(5, 260) }},
	{"life of a follower 1", RoleSecondary, 0.05, func(w *crashWorld) { w.followerLife(6, 400) }},
	{"life of a follower 2", RoleSecondary, 0.05, func(w *crashWorld) { w.followerLife(7, 400) }},
	{"flags and fences", RoleSecondary, 1, func(w *crashWorld) {
		w.see(1)
		w.sourceGeneration(1)
		w.sourceWrites(1)
		w.receive()
		w.setFlags(stateLeft, 0)
		w.see(2)
		w.acknowledge()
		w.setFlags(0, stateLeft)
		w.see(3)
	}},
}

// life does n random things, and starts anew often enough that never more is unsynced than can be combined.
func (w *crashWorld) life(seed uint64, n int) {
	rng := rand.New(rand.NewPCG(seed, crashSeed(w.t)))
	w.generation(true)
	for range n {
		off := int64(rng.IntN(crashDevice - 8192))
		switch rng.IntN(24) {
		case 0, 1:
			w.flush()
		case 2:
			w.fua(off, 1+rng.IntN(900))
		case 3:
			w.zero(off, 1+rng.Int64N(8000), rng.IntN(2) == 0)
		case 4:
			w.batch(1+rng.IntN(5), rng.IntN(3) == 0)
		case 5:
			w.checkpoint("point")
		case 6:
			w.apply()
		case 7:
			w.during = func() { w.write(off, 200) }
			w.write(off+100, 50)
			w.apply()
			w.during = nil
		case 8:
			if rng.IntN(4) == 0 {
				w.restart(rng.IntN(3) == 0)
				w.generation(false)
			}
		case 9:
			if rng.IntN(3) == 0 { // towards the end of the ring and over it
				w.write(0, 50<<10)
				w.apply()
			}
		default:
			w.write(off, 1+rng.IntN(1500))
		}
	}
}

func (w *crashWorld) followerLife(seed uint64, n int) {
	rng := rand.New(rand.NewPCG(seed, crashSeed(w.t)))
	committed := w.v.log.Head()
	for i := range n {
		switch rng.IntN(12) {
		case 0:
			w.acknowledge()
		case 1:
			w.acknowledge()
			committed = w.v.log.Durable()
			w.declare(committed)
		case 2:
			w.apply()
		case 3:
			if rng.IntN(2) == 0 {
				w.cut(committed)
			}
		case 4:
			if rng.IntN(4) == 0 {
				w.acknowledge()
				w.declare(w.v.log.Head())
				w.apply() // a reset keeps what is on the device
				w.reset(w.v.log.Head() + journal.LSN(rng.IntN(1<<20))&^7)
				committed = w.v.log.Head()
			}
		case 5:
			w.see(uint32(i + 1))
		default:
			w.sourceWrites(1 + rng.IntN(2))
			w.receive()
		}
	}
}

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

// reset begins the log anew at lsn, as the end of a resync does: the content stays, everything before is forgotten.
func (w *crashWorld) reset(lsn journal.LSN) {
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
	w.check(w.v.restart(lsn, chain, nil, func(a *journal.Anchor) {}))
	w.check(w.source.Reset(lsn, chain, nil))
	w.bury(old)
	w.declared, w.synced = lsn, lsn
	w.answer()
	w.promise(&w.flushed, lsn)
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
