package mirror

import (
	"fmt"
	"testing"

	"mirror-agent/journal"
)

// wordStep is an event of the machine, as the tables write it.
type wordStep func(w *word) (levelNews, uint64)

func saysTo(i int, durable, head journal.LSN) wordStep {
	return func(w *word) (levelNews, uint64) { return w.acknowledge(i, durable, durable, head), 0 }
}

func beginsTo(i int) wordStep {
	return func(w *word) (levelNews, uint64) { w.session(i); return noNews, 0 }
}

func losesTo(i int) wordStep {
	return func(w *word) (levelNews, uint64) { return noNews, w.lost(i) }
}

func givesUp(i int) wordStep {
	return func(w *word) (levelNews, uint64) { w.giveUp(i); return noNews, 0 }
}

func moves(i int, head journal.LSN) wordStep {
	return func(w *word) (levelNews, uint64) { s, n := w.activate(i, head); return n, s }
}

func answers(lsn journal.LSN) wordStep {
	return func(w *word) (levelNews, uint64) { w.answer(lsn); return noNews, 0 }
}

// expires the newest spell; late: the one before.
func expires(late uint64) wordStep {
	return func(w *word) (levelNews, uint64) { return w.expire(w.spell - late), 0 }
}

// TestWord: what the active follower's standing is, and who is in sync, after each sequence of events.
func TestWord(t *testing.T) {
	const far = 3 * maxBehindBytes
	steps := func(s ...wordStep) []wordStep { return s }
	both := steps(saysTo(0, 100, 100), saysTo(1, 100, 100))
	after := func(first []wordStep, more ...wordStep) []wordStep {
		return append(append([]wordStep{}, first...), more...)
	}
	tests := []struct {
		name     string
		do       []wordStep
		standing standing
		level    [2]bool
		last     levelNews // of the last event
	}{
		{"nobody has said anything", nil, isAlone, [2]bool{false, false}, noNews},
		{"the active one has all that was answered", steps(saysTo(0, 50, 60)), isCounting, [2]bool{true, false}, cameLevel},
		{"it lacks what was answered", steps(saysTo(0, 49, 60)), isAlone, [2]bool{false, false}, noNews},
		{"it lacks too much of the log", steps(saysTo(0, 50, 50+maxBehindBytes+1)), isAlone, [2]bool{false, false}, noNews},
		{"who counts goes on, far behind or not", steps(saysTo(0, 50, 50), saysTo(0, 51, far)), isCounting, [2]bool{true, false}, noNews},
		{"one that is not active does not count", steps(saysTo(1, 50, 60)), isAlone, [2]bool{false, true}, cameLevel},
		{"it is in sync although answers go on", after(steps(saysTo(0, 50, 50), beginsTo(1), answers(90)), saysTo(1, 60, 100)), isCounting, [2]bool{true, true}, cameLevel},
		{"not with less than was answered before its session", after(steps(saysTo(0, 90, 90), answers(90), beginsTo(1)), saysTo(1, 89, 100)), isCounting, [2]bool{true, false}, noNews},
		{"it falls behind", after(both, saysTo(1, 101, 101+2*maxBehindBytes+1)), isCounting, [2]bool{true, false}, fellBehind},
		{"and not too soon", after(both, saysTo(1, 101, 101+2*maxBehindBytes)), isCounting, [2]bool{true, true}, noNews},

		{"moved to one that has all", after(both, answers(100), moves(1, 100)), isCounting, [2]bool{true, true}, noNews},
		{"moved to one that lacks a little: it is waited for", after(both, saysTo(0, 120, 120), answers(120), moves(1, 120)), isExpected, [2]bool{true, true}, noNews},
		{"and counts when it has that", after(both, saysTo(0, 120, 120), answers(120), moves(1, 120), saysTo(1, 120, 130)), isCounting, [2]bool{true, true}, noNews},
		{"and is in sync until then", after(both, saysTo(0, 120, 120), answers(120), moves(1, 120), saysTo(1, 119, 130)), isExpected, [2]bool{true, true}, noNews},
		{"it is not waited for for ever", after(both, saysTo(0, 120, 120), answers(120), moves(1, 120), expires(0)), isAlone, [2]bool{true, false}, fellBehind},
		{"moved to one that is far behind", after(both, moves(1, far)), isAlone, [2]bool{true, false}, fellBehind},
		{"moved to one that nothing is known of", after(steps(saysTo(0, 50, 50)), moves(1, 50)), isAlone, [2]bool{true, false}, noNews},
		{"moved and moved back", after(both, moves(1, 100), moves(0, 100)), isCounting, [2]bool{true, true}, noNews},
		{"who was active says more", after(both, moves(1, 100), saysTo(0, 150, 150)), isCounting, [2]bool{true, true}, noNews},
		{"who was active is lost", after(both, moves(1, 100), losesTo(0)), isCounting, [2]bool{false, true}, noNews},
		{"the dead one's time does not end the new one's", after(both, losesTo(0), answers(120), moves(1, 120), expires(1)), isExpected, [2]bool{false, true}, noNews},

		{"lost: it is expected", after(both, losesTo(0)), isExpected, [2]bool{false, true}, noNews},
		{"and back in a new session", after(both, losesTo(0), beginsTo(0), saysTo(0, 100, 100)), isCounting, [2]bool{true, true}, cameLevel},
		{"a new session knows nothing", after(both, beginsTo(0)), isExpected, [2]bool{false, true}, noNews},
		{"expired", after(both, losesTo(0), expires(0)), isAlone, [2]bool{false, true}, noNews},
		{"an older time expires", after(both, losesTo(0), saysTo(0, 100, 100), losesTo(0), expires(1)), isExpected, [2]bool{false, true}, noNews},
		{"who counts does not expire", after(both, expires(0)), isCounting, [2]bool{true, true}, noNews},
		{"given up", after(both, givesUp(0)), isAlone, [2]bool{false, true}, noNews},
		{"another one given up", after(both, givesUp(1)), isCounting, [2]bool{true, false}, noNews},
		{"lost before it ever counted", steps(losesTo(0)), isAlone, [2]bool{false, false}, noNews},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := &word{mode: ModeFlush, onLoss: OnLossContinue, answered: 50, members: make([]memberWord, 2)}
			last := noNews
			for _, do := range tt.do {
				last, _ = do(w)
			}
			if level := [2]bool{w.members[0].level, w.members[1].level}; w.standing != tt.standing || level != tt.level || last != tt.last {
				t.Errorf("standing %d, in sync %v, news %d; want %d, %v, %d", w.standing, level, last, tt.standing, tt.level, tt.last)
			}
		})
	}
}

// TestWordAnswers: what is answered, by mode, policy and standing.
func TestWordAnswers(t *testing.T) {
	// Columns: a FLUSH up to 100, a write up to 100, writes are frozen. The active one has received 100 and is durable up to 60.
	tests := map[standing]map[OnLoss]map[Mode][3]bool{
		isAlone: {
			OnLossContinue: {ModeAsync: {true, true, false}, ModeFlush: {true, true, false}, ModeReceive: {true, true, false}, ModeDurable: {true, true, false}},
			OnLossFreeze:   {ModeAsync: {false, true, true}, ModeFlush: {false, true, true}, ModeReceive: {false, false, true}, ModeDurable: {false, true, true}},
		},
		isExpected: {
			OnLossContinue: {ModeAsync: {true, true, false}, ModeFlush: {false, true, false}, ModeReceive: {false, false, false}, ModeDurable: {false, true, false}},
			OnLossFreeze:   {ModeAsync: {false, true, true}, ModeFlush: {false, true, true}, ModeReceive: {false, false, true}, ModeDurable: {false, true, true}},
		},
		isCounting: {
			OnLossContinue: {ModeAsync: {true, true, false}, ModeFlush: {false, true, false}, ModeReceive: {false, true, false}, ModeDurable: {false, true, false}},
			OnLossFreeze:   {ModeAsync: {true, true, false}, ModeFlush: {false, true, false}, ModeReceive: {false, true, false}, ModeDurable: {false, true, false}},
		},
	}
	for at, byPolicy := range tests {
		for policy, byMode := range byPolicy {
			for mode, want := range byMode {
				w := word{mode: mode, onLoss: policy, standing: at, active: 1, members: []memberWord{{received: 200, durable: 200}, {received: 100, durable: 60}}}
				if got := [3]bool{w.flushed(100), w.written(100), w.frozen()}; got != want {
					t.Errorf("standing %d, %s, %s: %v, want %v", at, policy, mode, got, want)
				}
				if w.members = nil; !w.flushed(100) || !w.written(100) || w.frozen() {
					t.Errorf("%s, %s: a mirror without targets waits", policy, mode)
				}
			}
		}
	}
}

// TestWordExplored goes through every sequence of events on two followers and LSNs up to 3. What must hold in each state: who counts
// is durable up to all that was answered; an answer given while somebody counts is durable there; nothing is answered alone
// while somebody is expected.
func TestWordExplored(t *testing.T) {
	type state struct {
		members        [2]memberWord
		active         int
		standing       standing
		answered, head journal.LSN
	}
	const most = 3
	pack := func(w *word, head journal.LSN) state {
		return state{members: [2]memberWord{w.members[0], w.members[1]}, active: w.active, standing: w.standing, answered: w.answered, head: head}
	}
	seen := map[state]bool{}
	var queue []state
	add := func(w *word, head journal.LSN) {
		s := pack(w, head)
		if w.standing == isCounting && w.members[w.active].durable < w.answered {
			t.Fatalf("counts with %d, %d was answered: %+v", w.members[w.active].durable, w.answered, s)
		}
		if w.standing == isCounting && !w.members[w.active].level {
			t.Fatalf("counts and is not in sync: %+v", s)
		}
		if !seen[s] {
			seen[s] = true
			queue = append(queue, s)
		}
	}
	add(&word{members: make([]memberWord, 2)}, 1)
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		step := func(do func(w *word)) {
			w := &word{mode: ModeFlush, onLoss: OnLossContinue, members: append([]memberWord{}, s.members[:]...), active: s.active, standing: s.standing, answered: s.answered}
			do(w)
			add(w, s.head)
		}
		if s.head < most {
			w := &word{members: append([]memberWord{}, s.members[:]...), active: s.active, standing: s.standing, answered: s.answered}
			add(w, s.head+1)
		}
		for i := range 2 {
			for durable := range s.head + 1 {
				for received := durable; received <= s.head; received++ {
					step(func(w *word) { w.acknowledge(i, received, durable, s.head) })
				}
			}
			step(func(w *word) { w.session(i) })
			step(func(w *word) { w.lost(i) })
			step(func(w *word) { w.giveUp(i) })
			step(func(w *word) { w.activate(i, s.head) })
		}
		step(func(w *word) { w.expire(w.spell) })
		for lsn := range s.head + 1 {
			step(func(w *word) {
				if !w.flushed(lsn) {
					return
				}
				if w.standing == isExpected || w.standing == isCounting && w.members[w.active].durable < lsn {
					t.Fatalf("a FLUSH up to %d is answered: %+v", lsn, s)
				}
				w.answer(lsn)
			})
		}
	}
	if len(seen) < 1000 {
		t.Fatalf("only %d states", len(seen))
	}
	t.Log(fmt.Sprint(len(seen), " states"))
}
