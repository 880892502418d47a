package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"mirror-agent/journal"
)

func generation(major, minor uint32, id byte) journal.Generation {
	return journal.Generation{Major: major, Minor: minor, ID: [16]byte{id}}
}

func listOf(version uint64, ids ...byte) electorate {
	e := electorate{Mirror: "m", Major: 1, Version: version}
	for _, id := range ids {
		e.Members = append(e.Members, elector{ID: memberID{id}, Node: fmt.Sprintf("n%d", id)})
	}
	return e
}

// TestVote: who gives the word to whom.
func TestVote(t *testing.T) {
	first := generation(1, 0, 100)
	asked := ballot{Version: protocolVersion, Mirror: "m", Candidate: memberID{2}, Node: "n2", Position: position{first, 5000}, List: listOf(3), Proposed: generation(2, 0, 22)}
	for name, c := range map[string]struct {
		change func(v *voter, b *ballot)
		want   refusal
		says   string
	}{
		"level":                               {func(*voter, *ballot) {}, granted, ""},
		"the candidate is further":            {func(v *voter, _ *ballot) { v.position.LSN = 4096 }, granted, ""},
		"polled":                              {func(_ *voter, b *ballot) { b.Proposed = journal.Generation{} }, granted, ""},
		"polled after a word":                 {func(v *voter, b *ballot) { v.seen = generation(7, 0, 1); b.Proposed = journal.Generation{} }, granted, ""},
		"the same one again":                  {func(v *voter, b *ballot) { v.seen = b.Proposed }, granted, ""},
		"another one, the same number":        {func(v *voter, _ *ballot) { v.seen = generation(2, 0, 33) }, refusedBound, "its word for generation 2.0"},
		"a higher number was seen":            {func(v *voter, _ *ballot) { v.seen = generation(2, 1, 33) }, refusedBound, "generation 2.1"},
		"another one, a lower number":         {func(v *voter, b *ballot) { v.seen = generation(2, 0, 33); b.Proposed = generation(3, 0, 22) }, granted, ""},
		"longer":                              {func(v *voter, _ *ballot) { v.position.LSN = 5001 }, refusedAhead, "n1 is ahead, at LSN 5001 of generation 1.0"},
		"of a later generation, and shorter":  {func(v *voter, _ *ballot) { v.position = position{generation(1, 1, 101), 4096} }, refusedAhead, "generation 1.1"},
		"of an earlier generation, longer":    {func(v *voter, b *ballot) { b.Position.Generation = generation(1, 1, 101); v.position.LSN = 9000 }, granted, ""},
		"another generation of that number":   {func(v *voter, _ *ballot) { v.position.Generation.ID = [16]byte{7} }, refusedApart, "promoted independently"},
		"fed by a live source":                {func(v *voter, _ *ballot) { v.source = "nyc1" }, refusedFed, "n1 is fed by nyc1, which is alive"},
		"is primary":                          {func(v *voter, _ *ballot) { v.serves = true }, refusedServes, "n1 is primary of generation 1.0"},
		"has the word of others":              {func(v *voter, _ *ballot) { v.rises = true }, refusedRises, "promoted itself"},
		"never in sync":                       {func(v *voter, _ *ballot) { v.unfit = "it has never been in sync" }, refusedUnfit, "never been in sync"},
		"knows of no members":                 {func(v *voter, _ *ballot) { v.listed = errNoElectors }, refusedStranger, "never told"},
		"was removed itself":                  {func(v *voter, _ *ballot) { v.list = listOf(3, 2, 3) }, refusedStranger, "n1 is not among"},
		"the candidate was removed":           {func(v *voter, _ *ballot) { v.list = listOf(3, 1, 3) }, refusedStranger, "removed, or never in sync"},
		"the candidate was removed just now":  {func(v *voter, _ *ballot) { v.list = listOf(4, 1, 3) }, refusedList, "newer list"},
		"the candidate came in later":         {func(v *voter, _ *ballot) { v.list = listOf(2, 1, 3) }, granted, ""},
		"the candidate's list is old":         {func(v *voter, _ *ballot) { v.list = listOf(4, 1, 2, 3) }, refusedList, "newer list"},
		"another mirror":                      {func(v *voter, _ *ballot) { v.mirror = "x" }, refusedOther, "mirror x"},
		"a mirror without a name is no match": {func(v *voter, b *ballot) { v.mirror, b.Mirror = "", "" }, refusedOther, "mirror"},
		"another version":                     {func(_ *voter, b *ballot) { b.Version++ }, refusedOther, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			v := voter{mirror: "m", id: [16]byte{1}, node: "n1", list: listOf(3, 1, 2, 3), seen: first, position: position{first, 5000}}
			b := asked
			c.change(&v, &b)
			got := v.answer(&b)
			if says := v.says(got, &b); got != c.want || !strings.Contains(says, c.says) || says == "" != (got == granted) {
				t.Errorf("%d %q, want %d %q", got, says, c.want, c.says)
			}
		})
	}
}

// TestElection: when it is enough, and when it cannot be any more.
func TestElection(t *testing.T) {
	for _, c := range []struct {
		members   int
		answers   string // y, n
		won, lost bool
	}{
		{1, "", false, true},
		{2, "", false, true},
		{2, "y", false, true}, // no majority without the primary
		{3, "", false, false},
		{3, "n", false, false},
		{3, "y", true, false},
		{3, "ny", true, false},
		{3, "nn", false, true},
		{4, "y", false, false},
		{4, "yy", true, false},
		{4, "nn", false, true},
		{5, "yy", false, false}, // a majority, and two are missing that may have answered a FLUSH
		{5, "yyy", true, false},
		{5, "nn", false, true},
	} {
		x := newElection(c.members, generation(1, 0, 1))
		for i, a := range c.answers {
			r := granted
			if a == 'n' {
				r = refusedAhead
			}
			x.count(r, generation(uint32(i+2), 0, 9))
		}
		if x.won() != c.won || x.lost() != c.lost {
			t.Errorf("%d members, %q: won %t lost %t", c.members, c.answers, x.won(), x.lost())
		}
		if p := x.proposal([16]byte{5}); p.Major != uint32(len(c.answers)+2) || p.ID != [16]byte{5} {
			t.Errorf("%d members, %q: proposes %d", c.members, c.answers, p.Major)
		}
	}
}

// A candidate that has given its word to another one since begins nothing.
func TestMayBegin(t *testing.T) {
	mine := generation(2, 0, 22)
	for seen, want := range map[journal.Generation]bool{mine: true, generation(2, 0, 33): false, generation(3, 0, 22): false, generation(1, 9, 22): false} {
		if mayBegin(seen, mine) != want {
			t.Errorf("bound to %s of %d: %t", rankString(seen), seen.ID[0], !want)
		}
	}
}

// TestElectorate: who comes in, who goes, and which list is the newer one.
func TestElectorate(t *testing.T) {
	g := generation(1, 0, 1)
	must := func(e electorate, err error) electorate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	source := elector{ID: memberID{1}, Node: "nyc1"}
	e := must(electorate{}.with(source, g))
	e = must(e.with(elector{ID: memberID{2}, Node: "fra2", Place: "f:1", Addresses: []string{"f:1"}}, g))
	e = must(e.with(elector{ID: memberID{3}, Node: "ams1", Place: "a:1", Addresses: []string{"a:1"}}, g))
	if len(e.Members) != 3 || e.Version != 3 {
		t.Fatalf("%+v", e)
	}
	if again := must(e.with(elector{ID: memberID{3}, Node: "ams1", Place: "a:1", Addresses: []string{"a:1"}}, g)); again.newer(&e) {
		t.Error("nothing changed, and it is a newer list")
	}
	moved := must(e.with(elector{ID: memberID{3}, Node: "ams1", Place: "a:1", Addresses: []string{"a:2"}}, g))
	if !moved.newer(&e) || e.newer(&moved) || moved.Members[2].Addresses[0] != "a:2" || e.Members[2].Addresses[0] != "a:1" {
		t.Errorf("%+v", moved)
	}
	other := must(e.with(elector{ID: memberID{4}, Node: "ams1", Place: "a:1"}, g))
	if other.has(memberID{3}) || !other.has(memberID{4}) || len(other.Members) != 3 {
		t.Errorf("another volume at its place: %+v", other)
	}
	promoted := must(moved.with(elector{ID: memberID{2}, Node: "fra2", Addresses: []string{"f:1"}}, generation(2, 0, 2)))
	if !promoted.newer(&moved) || promoted.Version != 1 || promoted.find(memberID{2}).Place != "f:1" {
		t.Errorf("%+v", promoted)
	}
	for _, word := range []string{"nyc1", "0100000000000000"} {
		next, gone, err := e.without(word, g)
		if err != nil || gone.ID != source.ID || next.has(source.ID) || !next.newer(&e) || !e.has(source.ID) {
			t.Errorf("%s: %+v %v", word, next, err)
		}
	}
	if _, _, err := e.without("f:1", g); err != nil {
		t.Error(err)
	}
	for _, word := range []string{"", "nobody", "01"} {
		if _, _, err := e.without(word, g); err == nil {
			t.Errorf("%q was removed", word)
		}
	}
	twins := must(e.with(elector{ID: memberID{5}, Node: "fra2"}, g))
	if _, _, err := twins.without("fra2", g); err == nil || !strings.Contains(err.Error(), "2 members") {
		t.Error(err)
	}
	for i := byte(10); len(e.Members) < maxElectors; i++ {
		e = must(e.with(elector{ID: memberID{i}}, g))
	}
	if _, err := e.with(elector{ID: memberID{99}}, g); err == nil || !strings.Contains(err.Error(), "member remove") {
		t.Error(err)
	}
	if err := e.validate(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]electorate{
		"too many": {Members: make([]elector, maxElectors+1)}, "no id": {Members: make([]elector, 1)},
		"twice":   {Members: []elector{{ID: memberID{1}}, {ID: memberID{1}}}},
		"a novel": {Members: []elector{{ID: memberID{1}, Node: strings.Repeat("x", maxElectorText+1)}}},
	} {
		if bad.validate() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestElectorateFile: the list is there after a restart, a newer one stays, and one that is another mirror's, or unreadable, is none.
func TestElectorateFile(t *testing.T) {
	path := t.TempDir() + "/dev.journal.members"
	mirror := "m"
	open := func() *electorateStore { return openElectorate(path, func() string { return mirror }) }
	s := open()
	if _, err := s.list(); !errors.Is(err, errNoElectors) {
		t.Fatal(err)
	}
	for version, want := range map[uint64]bool{3: true} {
		if news, err := s.set(listOf(version, 1, 2)); news != want || err != nil {
			t.Fatal(news, err)
		}
	}
	if news, err := s.set(listOf(2, 1, 2, 3)); news || err != nil {
		t.Fatal("an older list was taken", err)
	}
	e, err := open().list()
	if err != nil || e.Version != 3 || len(e.Members) != 2 || e.Members[1].Node != "n2" {
		t.Fatalf("%+v %v", e, err)
	}
	mirror = "x"
	if _, err := open().list(); !errors.Is(err, errNoElectors) {
		t.Fatal(err)
	}
	if err := replaceFile(path, []byte(`{"members": [`)); err != nil {
		t.Fatal(err)
	}
	if _, err := open().list(); err == nil || errors.Is(err, errNoElectors) {
		t.Fatal(err)
	}
}
