package mirror

import "mirror-agent/journal"

// word is the mode's word as a state machine: what was answered, what each
// follower has, and whether the active one is waited for.
//
//	               the active one is durable up to all that was answered
//	  ┌────────────────────────────────────────────────────────┐
//	alone ←── given up, expired ──── expected ── the same ──→ counting
//	  ↑                                 ↑                      │  │  │
//	  │                                 └──── lost, session ───┘  │  │
//	  ├────────────── given up ───────────────────────────────────┘  │
//	  └── activate: alone, one that is not in sync; expected, one ───┘
//	      that is; counting, one that has all that was answered
//
// A FLUSH waits for who counts, and for who is expected to. So what was
// answered stands still while the active one is expected: one that is in sync
// begins to count as soon as it has that. Alone, on-loss decides. The other
// followers are never waited for; they are in sync while they are not far
// behind. The log is in order, so what was answered before a follower counted
// is there too as soon as a later record is.
type word struct {
	mode     Mode
	onLoss   OnLoss
	closed   bool
	answered journal.LSN  // a FLUSH was answered up to here
	members  []memberWord // none: a mirror without targets, which keeps its word alone
	active   int
	standing standing
	spell    uint64 // grows when the active one begins to count or is another: an older expire is void
}

// memberWord is what a follower has said in its session.
type memberWord struct {
	received, durable journal.LSN // 0: not known
	level             bool        // in sync
	need              journal.LSN // to be in sync, when it is not the active one
}

// standing of the active follower.
type standing uint8

const (
	isAlone    standing = iota
	isExpected          // it was in sync, or is about to be
	isCounting          // it is
)

// maxBehindBytes: a follower that lacks more of the log than this is not yet
// in sync; a FLUSH would wait for all of it. One that was and lacks twice as
// much is not any more, unless it is the one that counts.
const maxBehindBytes = 16 << 20

// levelNews says whether a follower came into sync, or fell out of it.
type levelNews uint8

const (
	noNews levelNews = iota
	cameLevel
	fellBehind
)

func newsOf(was, is bool) levelNews {
	switch {
	case is && !was:
		return cameLevel
	case was && !is:
		return fellBehind
	}
	return noNews
}

func behind(head, lsn journal.LSN) int64 { return int64(head - min(head, lsn)) }

// acknowledge takes what follower i has; head is that of the log.
func (w *word) acknowledge(i int, received, durable, head journal.LSN) levelNews {
	m := &w.members[i]
	m.received, m.durable = max(m.received, received), max(m.durable, durable)
	was, near := m.level, behind(head, m.durable) <= maxBehindBytes
	switch {
	case i != w.active && was:
		m.level = behind(head, m.durable) <= 2*maxBehindBytes
	case i != w.active:
		m.level = near && m.durable >= m.need
	case w.standing == isCounting:
	case near && m.durable >= w.answered:
		m.level, w.standing = true, isCounting
		w.spell++
	default:
		m.level = was && w.standing == isExpected
	}
	return newsOf(was, m.level)
}

// add takes one more follower. The first one is active, and may be expected to come into sync.
func (w *word) add(expected bool) (spell uint64) {
	w.members = append(w.members, memberWord{})
	if len(w.members) == 1 {
		w.active, w.standing = 0, isAlone
		if expected {
			w.standing = isExpected
		}
		w.spell++
	}
	return w.spell
}

// session: one with follower i begins; what it has is not known yet.
func (w *word) session(i int) {
	w.lost(i)
	w.members[i].need = w.answered
}

// lost: the session with follower i is gone. The active one is expected back,
// until expire is called with what lost returns.
func (w *word) lost(i int) (spell uint64) {
	w.members[i] = memberWord{}
	if i == w.active && w.standing == isCounting {
		w.standing = isExpected
	}
	return w.spell
}

// expire: an active follower that has not come into sync since is expected no
// longer.
func (w *word) expire(spell uint64) levelNews {
	if w.standing != isExpected || w.spell != spell {
		return noNews
	}
	w.standing = isAlone
	was := w.members[w.active].level
	w.members[w.active].level = false
	return newsOf(was, false)
}

// giveUp: follower i does not count, and is not expected, until it is in sync
// again.
func (w *word) giveUp(i int) {
	w.members[i] = memberWord{}
	if i == w.active {
		w.standing = isAlone
	}
}

// activate makes i the active one. It counts at once when it is in sync and
// has everything that was answered.
func (w *word) activate(i int, head journal.LSN) (spell uint64, news levelNews) {
	m := &w.members[i]
	was := m.level
	m.level = was && behind(head, m.durable) <= maxBehindBytes
	w.active = i
	w.spell++
	switch {
	case !m.level:
		w.standing = isAlone
	case m.durable >= w.answered:
		w.standing = isCounting
	default:
		w.standing = isExpected
	}
	return w.spell, newsOf(was, m.level)
}

// flushed: may a FLUSH up to lsn be answered, given that lsn is durable here?
func (w *word) flushed(lsn journal.LSN) bool {
	switch {
	case len(w.members) == 0:
		return true
	case w.standing == isCounting:
		return w.mode == ModeAsync || w.members[w.active].durable >= lsn
	case w.onLoss == OnLossFreeze:
		return false
	case w.mode == ModeAsync:
		return true
	}
	return w.standing == isAlone && !w.closed
}

// written: may a write up to lsn be answered, which is in the log here?
func (w *word) written(lsn journal.LSN) bool {
	switch {
	case len(w.members) == 0 || w.mode != ModeReceive:
		return true
	case w.standing == isCounting:
		return w.members[w.active].received >= lsn
	case w.onLoss == OnLossFreeze:
		return false
	}
	return w.standing == isAlone && !w.closed
}

// answer notes that a FLUSH up to lsn is answered.
func (w *word) answer(lsn journal.LSN) { w.answered = max(w.answered, lsn) }

// frozen: writes have to wait.
func (w *word) frozen() bool {
	return len(w.members) > 0 && w.onLoss == OnLossFreeze && w.standing != isCounting
}

// flags are what follower i has to do at once with what it is sent.
func (w *word) flags(i int) recordsFlags {
	if i != w.active {
		return 0
	}
	return w.mode.pushes()
}
