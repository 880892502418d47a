package mirror

import (
	"errors"
	"strings"
	"testing"

	"mirror-agent/journal"
)

func gen(major, minor uint32, id byte, first journal.LSN) journal.Generation {
	return journal.Generation{Major: major, Minor: minor, ID: [16]byte{id}, First: first}
}

// chains is a source's log as far as decide reads it.
func chains(at journal.LSN) (uint64, error) {
	if at%8 != 0 {
		return 0, journal.ErrNotBoundary
	}
	return uint64(at) * 3, nil
}

// TestDecide lists every pair of histories and its one outcome.
func TestDecide(t *testing.T) {
	base := []journal.Generation{gen(1, 0, 1, 100*8), gen(1, 1, 2, 200*8), gen(1, 2, 3, 300*8)}
	src := sourceView{mirror: "m", size: 1 << 20, generations: base, head: 400 * 8, tail: 150 * 8, chainAt: chains}
	ok := followerState{Mirror: "m", Node: "f", Size: 1 << 20, Generations: base, Seen: base[2], Head: 350 * 8, Chain: 350 * 8 * 3, Committed: 340 * 8}
	with := func(change func(*followerState)) followerState { f := ok; change(&f); return f }
	old := gen(0, 9, 9, 0)
	// A follower whose log the source does not reach back to, with a dirty set.
	tracked := func(f *followerState, w *trackView) {
		f.ID = [16]byte{7}
		f.Generations, f.Head, f.Committed, f.Chain = base[:1], 149*8, 0, 149*8*3
		*w = trackView{known: true, id: f.ID, base: 149 * 8, chain: 149 * 8 * 3, set: newDirtySet(1 << 20)}
	}
	for _, tt := range []struct {
		name   string
		change func(f *followerState, w *trackView)
		want   outcomeKind
		at     journal.LSN
		say    string
	}{
		{"the set begins where the follower is", func(*followerState, *trackView) {}, outcomePartial, 149 * 8, "what changed since is copied"},
		{"the set begins before that", func(_ *followerState, w *trackView) { w.base, w.chain = 110*8, 1 }, outcomePartial, 149 * 8, ""},
		{"the set begins after that: an older copy", func(_ *followerState, w *trackView) { w.base += 8 }, outcomeResync, 0, "an older state"},
		{"the set of another volume", func(_ *followerState, w *trackView) { w.id[3]++ }, outcomeResync, 0, "another volume"},
		{"the log differs at the set's base", func(_ *followerState, w *trackView) { w.chain++ }, outcomeResync, 0, "differs"},
		{"the set was lost", func(_ *followerState, w *trackView) { w.set, w.lost = nil, "rotten" }, outcomeResync, 0, "rotten"},
		{"there is no set", func(_ *followerState, w *trackView) { w.set = nil }, outcomeResync, 0, "not tracked"},
		{"nothing is known", func(_ *followerState, w *trackView) { *w = trackView{} }, outcomeResync, 0, "never tracked"},
		{"a volume without an id", func(f *followerState, _ *trackView) { f.ID = [16]byte{} }, outcomeResync, 0, "another volume"},
		{"the fork is below the tail", func(f *followerState, w *trackView) {
			f.Generations, f.Head, f.Committed, w.base = []journal.Generation{old}, 140*8, 90*8, 95*8
		}, outcomePartial, 100 * 8, ""},
		{"the fork is below the set's base", func(f *followerState, w *trackView) {
			f.Generations, f.Head, f.Committed, w.base = []journal.Generation{old}, 140*8, 90*8, 101*8
		}, outcomeResync, 0, "an older state"},
		{"committed beyond the fork", func(f *followerState, w *trackView) {
			f.Generations, f.Head, f.Committed, w.base = []journal.Generation{old}, 140*8, 110*8, 95*8
		}, outcomeDiverged, 0, "committed"},
		{"blank, and a set is known", func(f *followerState, _ *trackView) { f.Blank = true }, outcomeResync, 0, "empty"},
		{"the log has it all, and a set is known", func(f *followerState, _ *trackView) { f.Head, f.Chain = 150*8, 150*8*3 }, outcomeStream, 150 * 8, ""},
		{"it has seen a higher generation", func(f *followerState, _ *trackView) { f.Seen = gen(2, 0, 7, 0) }, outcomeFenced, 0, "2.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f := src, ok
			s.generations = append([]journal.Generation{old}, base...)
			tracked(&f, &s.track)
			tt.change(&f, &s.track)
			got := decide(s, f)
			if got.kind != tt.want || got.at != tt.at || !strings.Contains(got.reason, tt.say) {
				t.Fatalf("got %+v, want kind %d at %d saying %q", got, tt.want, tt.at, tt.say)
			}
		})
	}
	tests := []struct {
		name string
		f    followerState
		want outcomeKind
		at   journal.LSN
		say  string
	}{
		{"same history, behind", ok, outcomeStream, 350 * 8, ""},
		{"same history, equal", with(func(f *followerState) { f.Head, f.Chain = 400*8, 1200*8 }), outcomeStream, 400 * 8, ""},
		{"ahead, uncommitted: the source lost power", with(func(f *followerState) { f.Head = 420 * 8 }), outcomeStream, 400 * 8, ""},
		{"ahead and committed: the source lost durable records", with(func(f *followerState) { f.Head, f.Committed = 420*8, 410*8 }), outcomeDiverged, 0, "committed"},
		{"older generation, cut at the fork", with(func(f *followerState) { f.Generations, f.Head, f.Committed = base[:2], 310*8, 290*8 }), outcomeStream, 300 * 8, ""},
		{"older generation, behind the fork", with(func(f *followerState) { f.Generations, f.Head, f.Chain, f.Committed = base[:2], 290*8, 870*8, 0 }), outcomeStream, 290 * 8, ""},
		{"older generation, committed past the fork", with(func(f *followerState) { f.Generations, f.Head, f.Committed = base[:2], 310*8, 305*8 }), outcomeDiverged, 0, "committed"},
		{"generation that the source never had", with(func(f *followerState) { f.Generations = []journal.Generation{base[0], gen(1, 1, 9, 200*8)} }), outcomeDiverged, 0, "never had"},
		{"no history at all", with(func(f *followerState) { f.Generations = nil }), outcomeDiverged, 0, "no history"},
		{"chain differs at the head", with(func(f *followerState) { f.Chain++ }), outcomeDiverged, 0, "differs"},
		{"not a record boundary", with(func(f *followerState) { f.Head, f.Committed = 350*8+4, 0 }), outcomeDiverged, 0, "boundary"},
		{"the log was recycled", with(func(f *followerState) {
			f.Generations, f.Head, f.Committed, f.Chain = base[:1], 149*8, 0, 149*8*3
		}), outcomeResync, 0, "kept from"},
		{"blank", followerState{Node: "f", Size: 1 << 20, Blank: true}, outcomeResync, 0, "empty"},
		{"blank and too small", followerState{Node: "f", Size: 1<<20 - 512, Blank: true}, outcomeUnrelated, 0, "needed"},
		{"larger device", with(func(f *followerState) { f.Size++ }), outcomeStream, 350 * 8, ""},
		{"another mirror", with(func(f *followerState) { f.Mirror = "n" }), outcomeUnrelated, 0, "holds mirror"},
		{"saw a higher major generation", with(func(f *followerState) { f.Seen = gen(2, 0, 7, 0) }), outcomeFenced, 0, "2.0"},
		{"saw a higher minor generation", with(func(f *followerState) { f.Seen = gen(1, 3, 7, 0) }), outcomeFenced, 0, "1.3"},
		{"saw the same rank from another primary", with(func(f *followerState) { f.Seen = gen(1, 2, 8, 0) }), outcomeDiverged, 0, "independently"},
		{"refuses", with(func(f *followerState) { f.Refused = "because" }), outcomeRefused, 0, "because"},
		{"demoted, with a generation of the same rank that it gave up", followerState{Node: "f", Size: 1 << 20, Blank: true, Seen: gen(1, 2, 0, 0)}, outcomeResync, 0, "empty"},
		{"demoted, and the source is of an older rank than what it gave up", followerState{Node: "f", Size: 1 << 20, Blank: true, Seen: gen(1, 3, 0, 0)}, outcomeFenced, 0, "1.3"},
		{"refuses, but is fencing too", with(func(f *followerState) { f.Refused, f.Seen = "because", gen(2, 0, 7, 0) }), outcomeFenced, 0, "2.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(src, tt.f)
			if got.kind != tt.want || got.at != tt.at || !strings.Contains(got.reason, tt.say) {
				t.Fatalf("got %+v, want kind %d at %d saying %q", got, tt.want, tt.at, tt.say)
			}
			if got.kind == outcomeStream && got.chain != uint64(got.at)*3 {
				t.Fatalf("chain %d at %d", got.chain, got.at)
			}
		})
	}
}

// TestFollowerStates walks the table: what leads where, and that nothing else
// moves a state.
func TestFollowerStates(t *testing.T) {
	path := []struct {
		e    followerEvent
		want FollowerState
	}{
		{followerConnected, FollowerHandshake},
		{followerNeedsResync, FollowerResync},
		{followerLost, FollowerConnecting},
		{followerConnected, FollowerHandshake},
		{followerNeedsResync, FollowerResync},
		{followerCopied, FollowerCatchUp},
		{followerCaughtUp, FollowerStreaming},
		{followerCaughtUp, FollowerStreaming},
		{followerUnreachable, FollowerDown},
		{followerCaughtUp, FollowerDown},
		{followerConnected, FollowerHandshake},
		{followerStream, FollowerCatchUp},
		{followerSuspend, FollowerSuspended},
		{followerConnected, FollowerSuspended},
		{followerLeave, FollowerSuspended},
		{followerResume, FollowerConnecting},
		{followerRefuse, FollowerRefused},
		{followerStream, FollowerRefused},
		{followerLeave, FollowerIdle},
		{followerLost, FollowerIdle},
		{followerDial, FollowerConnecting},
	}
	s := FollowerConnecting
	for i, p := range path {
		if s = nextFollowerState(s, p.e); s != p.want {
			t.Fatalf("step %d (%s): %s, want %s", i, p.e, s, p.want)
		}
	}
	for s := range followerTransitions {
		if s.counts() != (s == FollowerStreaming) {
			t.Errorf("%s counts", s)
		}
	}
}

func TestParseNames(t *testing.T) {
	if _, err := ParseMode("sync"); err == nil || !strings.Contains(err.Error(), "async, flush, receive or durable") {
		t.Error(err)
	}
	if m, err := ParseMode("FLUSH"); err != nil || m != ModeFlush {
		t.Error(m, err)
	}
	for _, bad := range []string{"", "a b", strings.Repeat("x", 65), "ä"} {
		if validName(bad) == nil {
			t.Errorf("name %q is accepted", bad)
		}
	}
}

// FuzzFollowerMessages: whatever a peer sends, the follower neither panics nor
// takes a record before a handshake.
func FuzzFollowerMessages(f *testing.F) {
	h := hello{Version: protocolVersion, Mirror: testUUID, Name: "vol", Size: testDevice, Node: "x", Generations: []journal.Generation{gen(1, 0, 1, firstLSN)}}
	f.Add(encodeJSON(kindHello, h))
	f.Add(encodeJSON(kindStart, start{At: firstLSN}))
	f.Add(encodeJSON(kindResync, resyncBegin{From: firstLSN, Size: testDevice}))
	f.Add(encodeJSON(kindResync, resyncBegin{From: firstLSN, Size: testDevice, Partial: &partialBegin{At: firstLSN, Base: firstLSN}}))
	f.Add(encodeJSON(kindResyncEnd, resyncEnd{At: firstLSN}))
	b := make([]byte, recordsHeaderBytes+64)
	recordsHeader{From: firstLSN}.put(b)
	f.Add(b)
	f.Add(hashRequest{Offset: 0, Length: resyncBlockBytes, Unit: resyncBlockBytes}.encode())
	b = make([]byte, blockHeaderBytes+512)
	blockHeader{Length: 512}.put(b)
	f.Add(b)
	f.Add([]byte{kindBye})
	f.Fuzz(func(t *testing.T, b []byte) {
		hst := newHost(t, RoleSecondary)
		v := hst.mustOpen(t)
		defer func() { _ = v.Abort() }()
		a, _ := pair()
		defer a.cut()
		r := newReceiver(v, a)
		defer r.close()
		r.mirror, r.name, r.newStage = testUUID, "vol", inPlace(v)
		_, _ = r.handle(t.Context(), b)
		if err := v.Err(); err != nil {
			t.Fatalf("a message stopped the volume: %v", err)
		}
		if v.log.Head() != firstLSN {
			t.Fatalf("a message without a handshake moved the log to %d", v.log.Head())
		}
		if _, err := decodeAck(b); err != nil && !errors.Is(err, errMessage) {
			t.Fatal(err)
		}
	})
}
