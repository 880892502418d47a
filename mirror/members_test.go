package mirror

import (
	"bytes"
	"strings"
	"testing"

	"mirror-agent/journal"
)

// trio is a source, its target and a hot backup, all in sync, where the target is configured with the backup as its own target.
func trio(t *testing.T) (source, target, backup *agentNode) {
	t.Helper()
	backup = newAgentNode(t, RoleSecondary).start()
	target = newAgentNode(t, RoleSecondary, backup).start()
	source = newAgentNode(t, RolePrimary, target, backup)
	source.c.HotBackups = []bool{true}
	source.start()
	source.awaitAll("in sync")
	return source, target, backup
}

const trioSpan = 200 << 10

// overwrite goes over a part of the device until the log of each host has forgotten what was before.
func (n *agentNode) overwrite(fill byte) {
	n.t.Helper()
	dev := n.awaitServing()
	for i := range minJournalSize / trioSpan * 3 / 2 {
		if _, err := dev.WriteAt(bytes.Repeat([]byte{fill + byte(i)}, trioSpan), 0); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := dev.Sync(); err != nil {
		n.t.Fatal(err)
	}
}

// takesOver promotes the node after its source has died.
func (n *agentNode) takesOver() {
	n.t.Helper()
	n.awaitState("waiting")
	if _, err := n.a.Promote(n.t.Context(), PromoteOptions{Force: true}); err != nil { // the other member may be away
		n.t.Fatal(err)
	}
	n.awaitServing()
}

func (n *agentNode) equals(o *agentNode) {
	n.t.Helper()
	a, err := content(n.a.v)
	if err != nil {
		n.t.Fatal(err)
	}
	b, err := content(o.a.v)
	if err != nil || !bytes.Equal(a, b) {
		n.t.Fatalf("%s and %s differ at %d (%v)", n.c.NodeName, o.c.NodeName, firstDifference(a, b), err)
	}
}

// knows waits until the anchor of the node tells of the volume id.
func (n *agentNode) knows(id [16]byte) {
	n.t.Helper()
	n.await("knows of the other", func(Status) bool {
		for _, f := range n.a.v.log.Anchor().Followers {
			if f.ID == id && f.Acked > firstLSN && f.Flags&followerLostTrack == 0 {
				return true
			}
		}
		return false
	})
}

// TestMembersMeetByDelta: the source dies, the target is promoted and meets the backup: by the log, or by a bitmap when the
// backup had been away for longer than any log reaches; never by a copy of all, also when the target was killed in between, or
// was away itself and had its log begin anew.
func TestMembersMeetByDelta(t *testing.T) {
	for name, tt := range map[string]struct {
		between func(source, target, backup *agentNode)
		resyncs int
	}{
		"in sync": {func(*agentNode, *agentNode, *agentNode) {}, 0},
		"the backup is away": {func(source, _, backup *agentNode) {
			backup.kill()
			source.overwrite(50)
		}, 1},
		"and the target is killed": {func(source, target, backup *agentNode) {
			backup.kill()
			source.overwrite(50)
			target.kill()
			target.start()
			source.await("in sync with the target", func(s Status) bool { return s.State == "in sync" })
			source.write(8)
		}, 1},
		"the backup is away for longer than the promoted target's log lasts": {func(source, target, backup *agentNode) {
			backup.kill()
			source.overwrite(50)
			source.kill()
			target.takesOver()
			target.overwrite(90)
		}, 1},
		"both are away, the target is resynced": {func(source, target, backup *agentNode) {
			id := backup.a.v.id
			backup.kill()
			target.kill()
			source.overwrite(50)
			target.start()
			source.await("in sync with the target", func(s Status) bool { return s.State == "in sync" })
			source.write(8)
			target.knows(id)
			target.kill() // what it was told is on its disk
			target.start()
			source.await("in sync with the target again", func(s Status) bool { return s.State == "in sync" })
			source.overwrite(90)
			source.write(8)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			source, target, backup := trio(t)
			if _, err := source.awaitServing().WriteAt(bytes.Repeat([]byte{5}, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
			source.write(1)
			source.await("the backup has all", func(s Status) bool { return s.Followers[1].LagBytes == 0 })
			target.knows(backup.a.v.id)
			target.knows(source.a.v.id)
			backup.knows(target.a.v.id)
			tt.between(source, target, backup)
			if target.a.v.Role() == RoleSecondary {
				source.kill()
				target.takesOver()
			}
			p := target.write(9)
			if backup.a == nil {
				backup.start()
			}
			target.await("in sync with the backup", func(s Status) bool { return s.State == "in sync" })
			target.write(9)
			backup.holds(p)
			target.equals(backup)
			all, partial := target.resyncs()
			if all != tt.resyncs || partial != all {
				es, _ := target.a.Events(0)
				t.Fatalf("%d resyncs, %d of them of what changed: %+v", all, partial, es)
			}
		})
	}
}

// TestMembersClamped: nobody is thought to have what lies beyond a fork: a base that was told is no higher than where the log is
// cut or a new generation begins, also after a crash.
func TestMembersClamped(t *testing.T) {
	h, v := quietVolume(t, RolePrimary)
	write := func() journal.LSN {
		t.Helper()
		if _, err := v.WriteAt(make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := v.log.Sync(v.log.Head()); err != nil {
			t.Fatal(err)
		}
		return v.log.Head()
	}
	a, b := [16]byte{1}, [16]byte{2}
	base := func(id [16]byte) (lsn journal.LSN) {
		for _, f := range v.dirty.followers() {
			if f.ID == id {
				lsn = f.Acked
			}
		}
		return lsn
	}
	at := write()
	v.dirty.told(a, at+100000) // is further than this volume
	v.dirty.told(b, at)
	if base(a) != at || base(b) != at {
		t.Fatalf("bases %d and %d, this log has %d", base(a), base(b), at)
	}
	next := write()
	if base(a) != next || base(b) != at {
		t.Fatalf("bases %d and %d, want %d and %d", base(a), base(b), next, at)
	}
	g, err := v.beginGeneration(true)
	if err != nil {
		t.Fatal(err)
	}
	write()
	if base(a) != g.First || base(b) != at {
		t.Fatalf("bases %d and %d after a promotion at %d", base(a), base(b), g.First)
	}
	v.dirty.told(a, 1<<40) // a new word, of this history
	end := write()
	v.role.Store(uint32(RoleSecondary))
	cutAt := end - journal.LSN(journal.RecordSize(100))
	v.declared.Store(0)
	if err := v.cut(cutAt); err != nil {
		t.Fatal(err)
	}
	stored, err := journal.ReadAnchor(h.journal)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range stored.Followers {
		if f.Acked > cutAt {
			t.Fatalf("the disk says %d of a log that was cut at %d", f.Acked, cutAt)
		}
	}
	v.role.Store(uint32(RolePrimary))
	write()
	if base(a) != cutAt {
		t.Fatalf("base %d after a cut at %d", base(a), cutAt)
	}
}

// TestMembersTable: who is kept, under which name, and who gives way.
func TestMembersTable(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	tr, at := v.dirty, v.log.Head()
	id := func(n int) [16]byte { return [16]byte{byte(n)} }
	for i := 1; i <= maxFollowers+2; i++ {
		tr.told(id(i), at)
	}
	if n := len(tr.followers()); n != maxFollowers {
		t.Fatalf("%d members", n)
	}
	if tr.told([16]byte{}, at) {
		t.Error("a member without an id is kept")
	}
	tr.keepOnly(nil)
	if n := len(tr.followers()); n != maxFollowers {
		t.Fatalf("%d members: those that are not configured were forgotten", n)
	}
	tr.adopt("host:1", id(3))
	if w := tr.view("host:1"); !w.known || w.id != id(3) {
		t.Errorf("not adopted: %+v", w)
	}
	tr.adopt("host:1", id(4)) // another volume stands there now
	if w := tr.view("host:1"); w.id != id(4) || tr.findID(id(3)) != nil {
		t.Errorf("the old volume's entry stays: %+v", w)
	}
	tr.told(id(77), at)
	tr.acked("host:2", id(99), at) // room is made
	if w := tr.view("host:2"); !w.known || len(tr.followers()) != maxFollowers {
		t.Errorf("a configured follower finds no room: %+v, %d", w, len(tr.followers()))
	}
	for _, m := range tr.others(id(4)) {
		if m.ID == id(4) || strings.HasPrefix(m.Name, memberPrefix) {
			t.Errorf("told of %+v", m)
		}
	}
	tr.promoted(at)
	if w := tr.view("host:2"); w.known || tr.findID(id(99)) == nil {
		t.Error("a promotion forgets a member, or keeps its place")
	}
}

// TestMembersMarkCommitted: a secondary marks no more than what cannot be cut; what comes to lie beyond may be of another history.
func TestMembersMarkCommitted(t *testing.T) {
	h := newHost(t, RolePrimary)
	h.track()
	o := quietOptions()
	o.Dirty = h.dirty
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Abort() })
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	var at [4]journal.LSN
	for i := range at {
		if _, err := v.WriteAt(make([]byte, 100), int64(i)*minDirtyBlock); err != nil {
			t.Fatal(err)
		}
		if at[i], err = v.log.Sync(v.log.Head()); err != nil {
			t.Fatal(err)
		}
	}
	id := [16]byte{9}
	v.dirty.told(id, at[0])
	v.dirty.leave(at[1], at[2], v.History())
	w := v.dirty.view(memberName(id))
	if w.upTo != at[2] || w.set == nil || w.set.bytes() != 2*minDirtyBlock {
		t.Fatalf("marked up to %d, committed are %d of %d: %+v", w.upTo, at[2], at[3], w)
	}
	v.dirty.leave(at[2], at[3], v.History())
	if w = v.dirty.view(memberName(id)); w.upTo != at[2] {
		t.Fatalf("marked up to %d although the tail is at %d", w.upTo, at[2])
	}
	v.role.Store(uint32(RoleSecondary))
	v.declared.Store(0)
	v.sizeReset(testDevice / 2)
	if n := v.dirty.size.Load(); n != testDevice/2 {
		t.Errorf("sets are made for %d bytes", n)
	}
}
