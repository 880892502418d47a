package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// books compares the ledgers of two hosts, piece by piece as they grow: what the
// one sent and what the other's client was handed have to be the same messages in
// the same order, and no message may count as consumed that was not handed over.
type books struct {
	t        testing.TB
	pairs    map[pairKey]*pair
	problems []string
}

// pairKey names one stream of one session in one direction.
type pairKey struct {
	client, session string
	stream          byte
	fromPort        bool // sent by the side that opened the session
}

type pair struct {
	sent, received []byte // not yet compared
	same           int    // messages compared
	states         []byte
	living         bool
}

func newBooks(t testing.TB) *books { return &books{t: t, pairs: map[pairKey]*pair{}} }

// pull takes what the ledgers of some clients have got since the last time.
func (b *books) pull(users ...*user) {
	b.t.Helper()
	for _, u := range users {
		var pages []bookPage
		u.ask(portOrder{Do: "ledger", Client: u.client}, &pages)
		for _, p := range pages {
			b.take(u.client, &p)
		}
		if f := u.view().Faults; len(f) > 0 {
			b.problem("%s/%s: %v", u.name, u.client, f)
		}
	}
}

// recover takes the rest from the diary of a process that was killed.
func (b *books) recover(u *user) {
	b.t.Helper()
	for _, p := range readDiary(b.t, u.node.Diary, u.client) {
		if q := b.pairs[keyOf(u.client, &p)]; q != nil {
			had := len(q.received)
			if p.Sent {
				had = len(q.sent)
			}
			p.Lines = p.Lines[min(q.same*16+had, len(p.Lines)):]
		}
		b.take(u.client, &p)
	}
}

func keyOf(client string, p *bookPage) pairKey {
	return pairKey{client, p.Session, p.Stream, p.Sent != p.Inbound}
}

func (b *books) problem(format string, args ...any) {
	if len(b.problems) < 20 {
		b.problems = append(b.problems, fmt.Sprintf(format, args...))
	}
}

func (b *books) take(client string, p *bookPage) {
	k := keyOf(client, p)
	q := b.pairs[k]
	if q == nil {
		q = &pair{}
		b.pairs[k] = q
	}
	if p.Sent {
		q.sent = append(q.sent, p.Lines...)
		q.states = append(q.states, p.States...)
		q.living = p.Living
	} else {
		q.received = append(q.received, p.Lines...)
	}
	for len(q.sent) >= 16 && len(q.received) >= 16 {
		if !bytes.Equal(q.sent[:16], q.received[:16]) {
			b.problem("%+v: message %d of the ledgers is %s for the sender, %s for the receiver", k, q.same, line(q.sent), line(q.received))
			q.sent, q.received = nil, nil
			return
		}
		q.sent, q.received = q.sent[16:], q.received[16:]
		q.same++
	}
}

// streams is how many messages of each stream were handed over.
func (b *books) streams() map[byte]int {
	n := map[byte]int{}
	for k, q := range b.pairs {
		n[k.stream] += q.same
	}
	return n
}

func line(p []byte) string {
	return fmt.Sprintf("number %d (%016x)", binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]))
}

// account is what the books say in the end.
type account struct {
	Sessions  int
	Forth     int // messages handed over, from the side that opened the session
	Back      int
	Lost      int // failed receipts: the session ended first
	Uncertain int // of these handed over all the same
}

// close waits until nothing is on its way any more and judges. The loads must
// have been stopped.
func (b *books) close(users ...*user) account {
	b.t.Helper()
	for _, u := range users {
		u.do(portOrder{Do: "settled", Within: portLimit})
	}
	b.pull(users...)
	var a account
	sessions := map[string]bool{}
	for k, q := range b.pairs {
		sessions[k.client+k.session] = true
		if k.fromPort {
			a.Forth += q.same
		} else {
			a.Back += q.same
		}
		if len(q.received) > 0 {
			b.problem("%+v: %d messages were handed over and never sent, first %s", k, len(q.received)/16, line(q.received))
		}
		if q.living && len(q.sent) > 0 {
			b.problem("%+v: the session lives and %d messages are missing, first %s", k, len(q.sent)/16, line(q.sent))
		}
		for i, s := range q.states {
			switch {
			case s == stateConsumed && i >= q.same:
				b.problem("%+v: the receipt of message %d says consumed, and it was not handed over", k, i)
			case s == stateLost && i < q.same:
				a.Uncertain++
				a.Lost++
			case s == stateLost:
				a.Lost++
			}
			if s == stateLost && q.living {
				b.problem("%+v: message %d failed and the session lives", k, i)
			}
		}
	}
	a.Sessions = len(sessions)
	for _, p := range b.problems {
		b.t.Error("ledger: " + p)
	}
	if a.Forth+a.Back == 0 {
		b.t.Error("the ledgers are empty")
	}
	return a
}

// TestBooks shows that the oracle sees what it has to see.
func TestBooks(t *testing.T) {
	message := func(n uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, n), n*77)
	}
	ledger := func(numbers ...uint64) (p []byte) {
		for _, n := range numbers {
			p = append(p, message(n)...)
		}
		return p
	}
	all := []byte{stateConsumed, stateConsumed, stateConsumed}
	for _, c := range []struct {
		name           string
		sent, received []byte
		states         []byte
		living, ok     bool
	}{
		{"equal", ledger(1, 2, 3), ledger(1, 2, 3), all, true, true},
		{"one is missing at the end", ledger(1, 2, 3), ledger(1, 2), all, true, false},
		{"one is missing at the end of an ended session", ledger(1, 2, 3), ledger(1, 2), []byte{1, 1, stateLost}, false, true},
		{"that one has a receipt", ledger(1, 2, 3), ledger(1, 2), all, false, false},
		{"lost and handed over all the same", ledger(1, 2, 3), ledger(1, 2, 3), []byte{1, 1, stateLost}, false, true},
		{"lost in a session that lives", ledger(1, 2, 3), ledger(1, 2, 3), []byte{1, 1, stateLost}, true, false},
		{"a gap", ledger(1, 2, 3), ledger(1, 3), all, false, false},
		{"twice", ledger(1, 2, 3), ledger(1, 2, 2, 3), all, true, false},
		{"twice at the end", ledger(1, 2, 3), ledger(1, 2, 3, 3), all, true, false},
		{"another order", ledger(1, 2, 3), ledger(2, 1, 3), all, true, false},
		{"never sent", nil, ledger(1), nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{TB: t}
			b := newBooks(rec)
			k := bookKey{Session: "s", Stream: 1}
			sent, received := k, k
			sent.Sent, received.Inbound = true, true
			half := len(c.sent) / 32 * 16
			b.take("c", &bookPage{bookKey: sent, Lines: c.sent[:half], Living: c.living})
			b.take("c", &bookPage{bookKey: received, Lines: c.received})
			b.take("c", &bookPage{bookKey: sent, Lines: c.sent[half:], States: c.states, Living: c.living})
			b.close()
			if rec.failed == c.ok {
				t.Errorf("failed: %v; %v", rec.failed, b.problems)
			}
		})
	}
}

// recorder notes that a test would have failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Error(...any) { r.failed = true }
