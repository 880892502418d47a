package mirror

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// flipLog inverts a bit of a host's log at an LSN.
func (h *host) flipLog(t *testing.T, at journal.LSN) {
	t.Helper()
	b := make([]byte, 1)
	off := int64(anchorBytes) + int64(uint64(at)%(testJournal-anchorBytes))
	if _, err := h.journal.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := h.journal.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestRotBehindApplied: rot in the part of the log that is applied, met when a follower that comes back needs it. The source goes
// on; the follower is resynced and equal in the end, and what had rotted is not copied to it.
func TestRotBehindApplied(t *testing.T) {
	for _, where := range []string{"payload", "header"} {
		t.Run(where, func(t *testing.T) {
			d := disconnected(t)
			defer d.close()
			src := d.v[srcHost]
			at := src.log.Head()
			for i := range 4 {
				if _, err := src.WriteAt(bytes.Repeat([]byte{byte(0xA0 + i)}, 8192), int64(i)*8192); err != nil {
					t.Fatal(err)
				}
			}
			if err := src.Sync(); err != nil {
				t.Fatal(err)
			}
			awaitVolume(t, "all is applied", func() bool { return src.log.Applied() == src.log.Head() })
			rot := at + 3*(8192+journal.HeaderSize)/2 // in the payload of the second record
			if where == "header" {
				rot = at + 8192 + journal.HeaderSize + 8
			}
			d.hosts[srcHost].flipLog(t, rot)
			for try := 0; ; try++ {
				dst := d.v[dstHost]
				d.hosts[dstHost].newStage()
				d.session = connect(src, dst, d.promise, d.hosts[dstHost].stagedIn(dst))
				err := d.session.awaitSync()
				resynced := d.session.had(followerNeedsResync)
				if err == nil && resynced {
					break
				}
				if t.Log(err); err == nil || try == 5 {
					t.Fatalf("in sync without a resync: %v", err)
				}
				d.session.close()
			}
			if err := src.Err(); err != nil {
				t.Errorf("the source has stopped: %v", err)
			}
			want, err := content(src)
			if err != nil {
				t.Fatal(err)
			}
			awaitVolume(t, "the follower has everything", func() bool { return d.v[dstHost].log.Durable() >= src.log.Head() })
			mustContent(t, "the follower", d.v[dstHost], want)
		})
	}
}

// TestServeFetch: what a source that repairs itself is told.
func TestServeFetch(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer v.Close()
	at, chain := v.log.HeadChain()
	if _, err := v.WriteAt(make([]byte, 200<<10), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		f     fetch
		words string // of the refusal, "" for none
	}{
		{"what it has", fetch{Mirror: testUUID, From: at, Chain: chain}, ""},
		{"another mirror", fetch{Mirror: "other", From: at, Chain: chain}, "another mirror"},
		{"another history", fetch{Mirror: testUUID, From: at, Chain: chain + 1}, "differs"},
		{"beyond the head", fetch{Mirror: testUUID, From: v.log.Head(), Chain: chain}, "from LSN"},
		{"below the tail", fetch{Mirror: testUUID, From: 0, Chain: chain}, "from LSN"},
		{"no boundary", fetch{Mirror: testUUID, From: at + 8, Chain: chain}, "boundary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := v.serveFetch("host", testUUID, encodeJSON(0, c.f)[1:])
			if err != nil {
				t.Fatal(err)
			}
			r, raw, err := decodeFetchReply(b)
			if err != nil || r.Seen.ID != v.Seen().ID {
				t.Fatalf("%v, %+v", err, r)
			}
			if c.words == "" && (r.Refused != "" || len(raw) != int(v.log.Head()-at)) || c.words != "" && (!strings.Contains(r.Refused, c.words) || len(raw) > 0) {
				t.Errorf("%q, %d bytes", r.Refused, len(raw))
			}
		})
	}
	for _, b := range [][]byte{nil, {1, 2}, {255, 255, 255, 255, '{'}, {2, 0, 0, 0, '{', '['}} {
		if _, _, err := decodeFetchReply(b); !errors.Is(err, errMessage) {
			t.Errorf("% x: %v", b, err)
		}
	}
}

// TestRotWithoutTarget: a source that has nobody to ask is refused as ever, and so is one that was not told that it may be
// opened damaged.
func TestRotWithoutTarget(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	v.applyMu.Lock() // nothing is applied
	at := v.log.Head()
	if _, err := v.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		t.Fatal(err)
	}
	promise := v.log.Head()
	if err := v.setFlags(0, 0); err != nil { // an anchor: it repeats the promise
		t.Fatal(err)
	}
	v.applyMu.Unlock()
	if err := v.Abort(); err != nil {
		t.Fatal(err)
	}
	if v.log.Applied() > at {
		t.Fatal("it was applied: this test tests nothing")
	}
	h.flipLog(t, at+100)
	if _, err := h.open(); !errors.Is(err, journal.ErrCorrupt) {
		t.Fatalf("opened: %v", err)
	}
	o := testOptions()
	o.Damaged = true
	before := make([]byte, testJournal)
	if _, err := h.journal.ReadAt(before, 0); err != nil {
		t.Fatal(err)
	}
	w, rec, err := openVolume(keepOpen{h.journal}, blockdev.NewFaulty(keepOpen{h.device}), o)
	if err != nil || rec.Rot == nil || w.damageNow() == nil || w.damageNow().promise != promise {
		t.Fatalf("%v, %+v", err, rec)
	}
	if _, err := w.WriteAt(make([]byte, 1), 0); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("a write to a damaged volume: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	after := make([]byte, testJournal)
	if _, err := h.journal.ReadAt(after, 0); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a damaged journal was changed by an open and a close (%v)", err)
	}
}
