package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/journal"
)

// fetchLink is a link to a host that answers from v.
func fetchLink(t testing.TB, v *Volume, answer func(b []byte) ([]byte, error)) *memLink {
	t.Helper()
	a, b := pair()
	var wg sync.WaitGroup
	if answer == nil {
		answer = func(b []byte) ([]byte, error) { return v.serveFetch("dst", testUUID, b[1:]) }
	}
	b.serve(&wg, func(_ context.Context, b []byte) ([]byte, error) { return answer(b) })
	t.Cleanup(func() { a.cut(); wg.Wait() })
	return a
}

// reopenAsItWas opens the old source's volume after a crash, as an agent does: no generation is begun before the followers were
// asked.
func (h *host) reopenAsItWas(t testing.TB) *Volume {
	t.Helper()
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, h.options())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestFetchBack cuts the source's power at every operation of its disks while it writes, where what the follower had received was
// answered for, and again at operations of the restart. Whatever it had lost comes back: it goes on with all that the follower has.
func TestFetchBack(t *testing.T) {
	step := 1
	if testing.Short() || raceEnabled {
		step = 4
	}
	cuts, back := 0, 0
	for n := 1; ; n += step {
		cut, got, err := fetchBackOnce(t, n)
		if err != nil {
			t.Fatalf("cut at operation %d: %v", n, err)
		}
		if !cut {
			break
		}
		cuts++
		if got {
			back++
		}
	}
	t.Logf("%d cuts, in %d something came back", cuts, back)
	if cuts < 10 || back == 0 {
		t.Fatal("too little happened")
	}
}

func fetchBackOnce(t *testing.T, n int) (cut, got bool, err error) {
	src := newHost(t, RolePrimary)
	src.quiet = true
	d := duoOf(t, src, newHost(t, RoleSecondary))
	defer d.close()
	h := d.hosts[srcHost]
	h.power.CutAfter(n)
	err = d.scenario(80, never)
	h.power.CutAfter(1 << 30)
	if err == nil && !h.power.Lost() {
		return false, false, nil
	}
	d.session.close()
	_ = d.v[srcHost].Abort()
	rng := rand.New(rand.NewPCG(uint64(n), 9))
	h.power.Restore(rng)
	dst := d.v[dstHost]
	has, chain := dst.log.HeadChain()
	lost := false
	want, err := content(dst)
	if err != nil {
		return true, false, err
	}
	// The restart is interrupted, too: after so many operations the power goes again.
	h.power.CutAfter(1 + rng.IntN(12))
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, h.options())
	if err == nil {
		lost = v.log.Head() < has
		_, _, _ = v.fetchBack(t.Context(), fetchLink(t, dst, nil), testUUID)
		h.power.CutAfter(1 << 30)
		_ = v.Abort()
	}
	h.power.CutAfter(1 << 30)
	if h.power.Lost() {
		h.power.Restore(rng)
	}
	v = h.reopenAsItWas(t)
	d.v[srcHost] = v
	lost = lost || v.log.Head() < has
	if _, _, err := v.fetchBack(t.Context(), fetchLink(t, dst, nil), testUUID); err != nil {
		return true, lost, err
	}
	head, c := v.log.HeadChain()
	if durable := v.log.Durable(); durable < head {
		return true, lost, fmt.Errorf("only LSN %d of %d is durable", durable, head)
	}
	if head < has || head == has && c != chain {
		return true, lost, fmt.Errorf("the log ends at LSN %d, the follower had it up to %d", head, has)
	}
	if v.log.Durable() < head {
		return true, lost, fmt.Errorf("it is durable up to %d of %d only", v.log.Durable(), head)
	}
	if now, err := content(v); err != nil || head == has && !bytes.Equal(now, want) {
		return true, lost, fmt.Errorf("it does not hold what the follower holds (%w)", err)
	}
	if _, err := v.beginGeneration(false); err != nil {
		return true, lost, err
	}
	if d.model, err = content(v); err != nil {
		return true, lost, err
	}
	d.promise.close()
	d.lead()
	d.session = connect(v, dst, d.promise, nil)
	if err := d.session.awaitSync(); err != nil {
		return true, lost, err
	}
	return true, lost, d.finish()
}

// TestFetchBackRefuses: what does not continue this log, or is of a generation that is not its own, is not taken.
func TestFetchBackRefuses(t *testing.T) {
	made := func(t *testing.T, records int) (*duo, *Volume) {
		d := newDuo(t)
		if err := errors.Join(d.scenario(records, never), d.v[srcHost].Sync()); err != nil {
			t.Fatal(err)
		}
		d.session.close()
		return d, d.v[srcHost]
	}
	head := func(v *Volume) string { h, c := v.log.HeadChain(); return fmt.Sprintf("%d %x", h, c) }
	t.Run("another continuation", func(t *testing.T) {
		d, v := made(t, 20)
		defer d.close()
		// Both go on from the same place, each by itself.
		fork := v.log.Head()
		other := d.v[dstHost]
		other.role.Store(uint32(RolePrimary))
		for _, x := range []*Volume{v, other} {
			for i := range 4 {
				if _, err := x.WriteAt(bytes.Repeat([]byte(fmt.Sprintf("%p", x)), 100), int64(i)*2000); err != nil {
					t.Fatal(err)
				}
			}
		}
		was := head(v)
		if _, _, err := v.fetchBack(t.Context(), fetchLink(t, other, nil), testUUID); err != nil {
			t.Fatal(err)
		}
		if head(v) != was {
			t.Fatalf("after LSN %d the log went on with another one's records", fork)
		}
		// Nor when the other side does not look at the chain.
		blind := fetchLink(t, other, func(b []byte) ([]byte, error) {
			var f fetch
			if err := decodeJSON(b[1:], &f); err != nil {
				return nil, err
			}
			var err error
			f.Chain, err = other.log.ChainAt(f.From)
			if err != nil {
				return fetchReply{Refused: err.Error()}.encode(nil), nil
			}
			return other.serveFetch("dst", testUUID, encodeJSON(kindFetch, f)[1:])
		})
		for range 3 { // more there than here, so that there is something at this head
			if _, err := other.WriteAt(make([]byte, 3000), 0); err != nil {
				t.Fatal(err)
			}
		}
		at, chain := v.log.HeadChain()
		b, err := other.serveFetch("dst", testUUID, encodeJSON(kindFetch, fetch{Mirror: testUUID, From: at, Chain: chain})[1:])
		if err != nil {
			t.Fatal(err)
		}
		if r, raw, err := decodeFetchReply(b); err != nil || len(raw) > 0 || !strings.Contains(r.Refused, "differs") {
			t.Errorf("asked for what follows another chain it answers %d bytes, %q (%v)", len(raw), r.Refused, err)
		}
		_, _, err = v.fetchBack(t.Context(), blind, testUUID)
		if head(v) != was {
			t.Fatalf("the log went on with another one's records (%v)", err)
		}
		if err == nil || !errors.Is(err, journal.ErrChain) {
			t.Errorf("%v, should say that the chain differs", err)
		}
	})
	t.Run("a promoted follower", func(t *testing.T) {
		d, v := made(t, 20)
		defer d.close()
		other := d.v[dstHost]
		if _, err := other.beginGeneration(true); err != nil {
			t.Fatal(err)
		}
		was := head(v)
		_, seen, err := v.fetchBack(t.Context(), fetchLink(t, other, nil), testUUID)
		if err != nil || compareRank(seen, v.Seen()) <= 0 || head(v) != was {
			t.Fatalf("%v, seen %s: the log went on to %s", err, rankString(seen), head(v))
		}
		if err := v.see(seen); err != nil { // as if it were known
			t.Fatal(err)
		}
		if _, _, err := v.fetchBack(t.Context(), fetchLink(t, other, nil), testUUID); !errors.Is(err, errNotOwn) || head(v) != was {
			t.Fatalf("%v: the log went on to %s", err, head(v))
		}
	})
	t.Run("fenced meanwhile", func(t *testing.T) {
		d, v := made(t, 20)
		defer d.close()
		other := d.v[dstHost]
		other.role.Store(uint32(RolePrimary))
		if _, err := other.WriteAt(make([]byte, 3000), 0); err != nil { // goes on where this one ends
			t.Fatal(err)
		}
		was := head(v)
		v.endTakingBack()
		if took, _, err := v.fetchBack(t.Context(), fetchLink(t, other, nil), testUUID); !errors.Is(err, ErrFenced) || took != 0 || head(v) != was {
			t.Fatalf("%v: %d bytes came, the log went on to %s", err, took, head(v))
		}
		v.backEnd = false
		if took, _, err := v.fetchBack(t.Context(), fetchLink(t, other, nil), testUUID); err != nil || took == 0 || head(v) == was {
			t.Fatalf("%v: %d bytes came although nothing forbids it", err, took)
		}
	})
	t.Run("another mirror", func(t *testing.T) {
		d, v := made(t, 20)
		defer d.close()
		was := head(v)
		if _, _, err := v.fetchBack(t.Context(), fetchLink(t, d.v[dstHost], nil), strings.Repeat("0", 8)); err != nil || head(v) != was {
			t.Fatal(err)
		}
	})
}

// TestFetchBackAgents: a write was answered since the target had received it (mode receive); then the source's power went, and its
// log has lost it. The same source goes on with it.
func TestFetchBackAgents(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target)
	source.c.SyncInterval, source.c.Mode, source.c.StartWait = time.Hour, ModeReceive, 20*time.Second
	source.start()
	source.awaitState("in sync")
	source.write(1) // and a flush
	from := source.a.v.log.Durable()
	p := bytes.Repeat([]byte{2}, 70000)
	if _, err := source.front.served().WriteAt(p, 4096); err != nil {
		t.Fatal(err)
	}
	if d, h := source.a.v.log.Durable(), source.a.v.log.Head(); d != from || h <= from {
		t.Fatalf("durable up to %d of %d, it was %d", d, h, from)
	}
	head := source.a.v.log.Head()
	source.kill()
	f, err := os.OpenFile(source.c.journalPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const ringAt = 8192 // the log has not gone around yet
	_, err = f.WriteAt(make([]byte, head-from), int64(ringAt+from))
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	source.start()
	source.awaitWithin(20*time.Second, "in sync", func(s Status) bool { return s.State == "in sync" })
	source.holds(p)
	target.holds(p)
	if kinds := eventKinds(source.a); !slices.Contains(kinds, "fetched-back") || !slices.Contains(kinds, "generation") {
		t.Errorf("events %v", kinds)
	}
}
