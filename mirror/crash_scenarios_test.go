package mirror

import (
	"fmt"
	"math/rand/v2"

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
	{"growing", RolePrimary, 1, func(w *crashWorld) {
		w.generation(true)
		w.write(crashDevice-700, 700)
		w.grow()
		w.write(crashDevice-300, 900) // across the old end
		w.restart(false)
		w.generation(false)
		w.flush()
		w.apply()
		w.zero(crashDevice, 5000, true)
		w.write(crashGrown-10, 10)
		w.restart(true)
		w.generation(false)
		w.write(crashGrown-900, 60)
		w.apply()
	}},
	{"growing follower", RoleSecondary, 1, func(w *crashWorld) {
		w.sourceWrites(2)
		w.receive()
		w.acknowledge()
		keep := w.v.log.Head()
		w.declare(keep)
		w.sourceGrows()
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Durable())
		w.apply()
		w.sourceWrites(2)
		w.receive()
		w.restart(false)
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
		w.fillTo(w.v.log.Capacity() - 1100)
		for i := range 10 { // headers and payloads lie across the end of the ring
			w.write(int64(i)*333, 90+i*7)
			if i == 5 {
				w.flush()
			}
		}
		if head := int64(w.v.log.Head()); head < w.v.log.Capacity() {
			w.t.Fatalf("the records end at %d, before the ring does", head)
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
	{"resync", RoleSecondary, 0.5, func(w *crashWorld) {
		w.sourceWrites(4)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Head())
		w.apply()
		w.sourceWrites(2)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Head()) // part of what the resync builds upon, and only in the log
		w.resync(300 << 10)
		w.sourceWrites(3)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Head())
		w.apply()
	}},
	{"bitmap overflow", RolePrimary, 0.2, func(w *crashWorld) {
		w.generation(true)
		w.write(0, 100)
		w.flush()
		w.acknowledges("behind", w.v.log.Head())
		w.overflow(8)
		w.acknowledges("later", w.v.log.Head())
		late := w.v.log.Head()
		w.overflow(24)
		w.tracks("behind", true)
		w.acknowledges("behind", late) // which the log does not reach back to any more
		w.tracks("behind", true)
		w.restart(false)
		w.generation(false)
		w.overflow(14)
		w.tracks("later", true)
		w.write(0, 30) // not durable when it is acknowledged
		w.acknowledges("behind", w.v.log.Head())
		w.tracks("behind", false)
		w.overflow(30)
		w.tracks("behind", true)
		w.restart(true)
		w.generation(false)
		w.overflow(2)
	}},
	{"bitmap after a hold", RolePrimary, 0.5, func(w *crashWorld) {
		w.generation(true)
		w.acknowledges("behind", w.v.log.Head())
		w.write(5000, 50)
		hold := w.v.newHold("reader", w.v.log.Tail(), func() {})
		w.overflow(25)
		w.tracks("behind", false)
		hold.release()
		w.write(2000, 50)
		w.check(w.v.relieve()) // nothing is applied: the tail moves alone
		w.tracks("behind", true)
		w.write(9000, 50)
	}},
	{"ring resized", RolePrimary, 0.2, func(w *crashWorld) {
		w.generation(true)
		w.acknowledges("behind", w.v.log.Head())
		w.overflow(6)
		w.write(100, 900)
		w.resizeLog(testJournal + 512<<10)
		w.write(200, 900)
		w.overflow(27) // as far as the larger ring reaches, which the smaller one could not
		w.tracks("behind", false)
		w.restart(false)
		w.generation(false)
		w.write(3000, 40)
		w.resizeLog(testJournal) // for that the tail has to move
		w.tracks("behind", true)
		w.write(4000, 40)
		w.restart(true)
		w.generation(false)
		w.overflow(5)
	}},
	{"follower's ring resized", RoleSecondary, 0.5, func(w *crashWorld) {
		w.sourceWrites(5)
		w.receive()
		w.acknowledge()
		w.declare(w.v.log.Durable())
		w.sourceWrites(2)
		w.receive()
		w.moveLog(testJournal+256<<10, func() {
			w.sourceWrites(1)
			w.receive()
		})
		w.declare(w.v.log.Durable())
		w.apply()
		w.sourceWrites(2)
		w.receive()
		w.moveLog(testJournal, func() {
			w.sourceWrites(1)
			w.receive()
			w.acknowledge()
		})
		w.cut(w.v.log.Durable())
		w.sourceWrites(2)
		w.receive()
		w.restart(false)
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
