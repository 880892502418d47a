package mirror

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// What a volume says to others, and what must be true by then. Each of these was a planted fault that no other test saw,
// or saw only sometimes (integration/planted).

// quietVolume does nothing by itself.
func quietVolume(t *testing.T, role Role) (*host, *Volume) {
	t.Helper()
	h := newHost(t, role)
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, quietOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Abort() })
	if role == RolePrimary {
		if _, err := v.beginGeneration(true); err != nil {
			t.Fatal(err)
		}
	}
	return h, v
}

// probeGate remembers what it was asked and answers as told.
type probeGate struct {
	requested, waited journal.LSN
	durable           journal.LSN // of the volume, when it was asked
	v                 *Volume
	answer            error
	wrote             journal.LSN
	writesDurable     bool
	refusal           error // of a write
}

func (g *probeGate) admit(context.Context) error { return nil }
func (g *probeGate) answersAtOnce() bool         { return false }
func (g *probeGate) request(lsn journal.LSN)     { g.requested = lsn }
func (g *probeGate) written(_ context.Context, lsn journal.LSN) (bool, error) {
	g.wrote = lsn
	return g.writesDurable, g.refusal
}

func (g *probeGate) wait(_ context.Context, lsn journal.LSN) error {
	g.waited, g.durable = lsn, g.v.log.Durable()
	return g.answer
}

// TestFlushAsksTheGate (G2): FLUSH and FUA are what the gate says, about all that was written, once it is durable here.
func TestFlushAsksTheGate(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	refusal := errors.New("the target has not got it")
	for _, answer := range []error{nil, refusal} {
		g := &probeGate{v: v, answer: answer}
		v.gate.Store(&gateBox{g})
		ask := map[string]func() error{
			"flush": v.Sync,
			"FUA": func() error {
				ws := []blockdev.Write{{Offset: 4096, Data: make([]byte, 10), Sync: true}}
				v.WriteBatch(ws)
				return ws[0].Err
			},
		}
		for name, do := range ask {
			if _, err := v.WriteAt([]byte("data"), 0); err != nil {
				t.Fatal(err)
			}
			err := do()
			head := v.log.Head()
			if !errors.Is(err, answer) || g.waited != head || g.requested != head || g.durable < head {
				t.Errorf("%s: %v, want %v; asked at %d and %d with %d durable, head %d", name, err, answer, g.requested, g.waited, g.durable, head)
			}
		}
	}
}

// TestAcknowledgedIsDurable (G2): a follower never says durable of what its disk may lose.
func TestAcknowledgedIsDurable(t *testing.T) {
	_, src := quietVolume(t, RolePrimary)
	_, dst := quietVolume(t, RoleSecondary)
	at, chain := src.log.HeadChain()
	if err := dst.restart(at, chain, src.History(), func(a *journal.Anchor) { a.State = 0 }); err != nil {
		t.Fatal(err)
	}
	a, b := pair()
	var wg sync.WaitGroup
	acks := make(chan ack, 100)
	a.serve(&wg, func(_ context.Context, m []byte) ([]byte, error) {
		if m[0] == kindAck {
			x, err := decodeAck(m)
			if err != nil || x.Durable > dst.log.Durable() {
				t.Errorf("the ack says durable up to %d, the log is up to %d (%v)", x.Durable, dst.log.Durable(), err)
			}
			acks <- x
		}
		return nil, nil
	})
	r := newReceiver(dst, b)
	defer func() { a.cut(); wg.Wait(); r.close() }()
	if _, err := r.handle(t.Context(), encodeJSON(kindStart, start{At: at, Chain: chain})); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := src.WriteAt(make([]byte, 3000), 0); err != nil {
			t.Fatal(err)
		}
		msg := make([]byte, recordsHeaderBytes+8192)
		n, err := src.log.ReadRaw(at, msg[recordsHeaderBytes:])
		if err != nil {
			t.Fatal(err)
		}
		recordsHeader{From: at, Declared: at, Head: at + journal.LSN(n)}.put(msg)
		if _, err := r.handle(t.Context(), msg[:recordsHeaderBytes+n]); err != nil {
			t.Fatal(err)
		}
		at += journal.LSN(n)
		for deadline := time.After(20 * time.Second); ; {
			var x ack
			select {
			case x = <-acks:
			case <-deadline:
				t.Fatalf("nothing up to %d was acknowledged", at)
			}
			if x.Received == at {
				break
			}
		}
	}
}

// TestHelloIsStoredFirst (G5): when a source's hello is answered, its generation is on the disk; one below is not taken.
func TestHelloIsStoredFirst(t *testing.T) {
	h, v := quietVolume(t, RoleSecondary)
	a, _ := pair()
	defer a.cut()
	r := newReceiver(v, a)
	defer r.close()
	r.mirror, r.name, r.node = testUUID, "vol", "dst"
	accepted := 0
	r.accepted = func() { accepted++ }
	greet := func(major uint32) {
		t.Helper()
		g := journal.Generation{Major: major, ID: [16]byte{byte(major)}}
		m := encodeJSON(kindHello, hello{Version: protocolVersion, Mirror: testUUID, Name: "vol", Node: "src", Size: testDevice, Generations: []journal.Generation{g}})
		if _, err := r.handle(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []struct {
		major, seen uint32
		accepted    int
	}{{3, 3, 1}, {2, 3, 1}, {3, 3, 2}, {4, 4, 3}} {
		greet(want.major)
		stored, err := journal.ReadAnchor(h.journal)
		if err != nil || stored.Seen.Major != want.seen || accepted != want.accepted {
			t.Errorf("hello %d of generation %d: %d on the disk, accepted %d times (%v); want %d, %d", i, want.major, stored.Seen.Major, accepted, err, want.seen, want.accepted)
		}
	}
}

// TestTailWaitsForFollower (G6): what a connected follower still reads stays in the log, and no longer than that.
func TestTailWaitsForFollower(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	p := make([]byte, 40<<10)
	held := v.log.Head()
	h := v.newHold("somebody", held, func() {})
	for v.log.Free() > 100<<10 {
		if _, err := v.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := v.log.Sync(v.log.Head()); err != nil {
			t.Fatal(err)
		}
		v.overlay.freeze()
		if err := errors.Join(v.applyReady(t.Context()), v.relieve()); err != nil {
			t.Fatal(err)
		}
		if tail := v.log.Tail(); tail > held {
			t.Fatalf("the tail moved to %d, a follower reads at %d", tail, held)
		}
	}
	h.release()
	if err := v.relieve(); err != nil {
		t.Fatal(err)
	}
	if tail := v.log.Tail(); tail <= held {
		t.Fatalf("the tail stays at %d when nobody reads there", tail)
	}
}

// TestWriteAsksTheGate: a write is answered as the gate says, about all of it, and is durable here before that when it says so.
func TestWriteAsksTheGate(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	refusal := errors.New("the target has not got it")
	for _, answer := range []error{nil, refusal} {
		for _, durable := range []bool{false, true} {
			g := &probeGate{v: v, refusal: answer, writesDurable: durable}
			v.gate.Store(&gateBox{g})
			ws := []blockdev.Write{{Offset: 0, Data: make([]byte, 4096)}, {Offset: 8192, Length: 4096, Zero: true}}
			v.WriteBatch(ws)
			if g.wrote != v.log.Head() || !errors.Is(ws[0].Err, answer) || !errors.Is(ws[1].Err, answer) {
				t.Errorf("durable %v: asked at %d, head %d; answers %v, %v, want %v", durable, g.wrote, v.log.Head(), ws[0].Err, ws[1].Err, answer)
			}
			if waited := g.waited == v.log.Head() && g.durable >= g.waited; waited != (durable && answer == nil) {
				t.Errorf("durable %v: waited at %d with %d durable, head %d", durable, g.waited, g.durable, v.log.Head())
			}
		}
	}
}

// TestMixedBatchAsksTheGate: when the sync that one write of a batch asks for comes to nothing, the others are answered as the
// gate says of a write. They were answered well, whatever the mode had promised of them.
func TestMixedBatchAsksTheGate(t *testing.T) {
	noFlush, noWrite := errors.New("not durable"), errors.New("not received")
	for _, c := range []struct {
		name        string
		gate        probeGate
		plain, sync error
	}{
		{"all is well", probeGate{}, nil, nil},
		{"a flush covers a write", probeGate{refusal: noWrite}, nil, nil},
		{"a write promises nothing", probeGate{answer: noFlush}, nil, noFlush},
		{"a write has to be received", probeGate{answer: noFlush, refusal: noWrite}, noWrite, noFlush},
		{"a write has to be durable", probeGate{answer: noFlush, writesDurable: true}, noFlush, noFlush},
	} {
		_, v := quietVolume(t, RolePrimary)
		c.gate.v = v
		v.gate.Store(&gateBox{&c.gate})
		ws := []blockdev.Write{
			{Offset: 0, Data: make([]byte, 4096)},
			{Offset: 8192, Data: make([]byte, 4096), Sync: true},
			{Offset: testDevice, Data: make([]byte, 4096)},
		}
		v.WriteBatch(ws)
		if !errors.Is(ws[0].Err, c.plain) || !errors.Is(ws[1].Err, c.sync) || !errors.Is(ws[2].Err, blockdev.ErrOutOfRange) {
			t.Errorf("%s: answers %v, %v, %v; want %v, %v", c.name, ws[0].Err, ws[1].Err, ws[2].Err, c.plain, c.sync)
		}
	}
}
