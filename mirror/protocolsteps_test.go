package mirror

import "mirror-agent/journal"

// next adds all that may happen in the present state.
func (m *protocolModel) next() {
	s := m.order[m.now]
	for i := range m.nodes {
		if !s.node[i].up {
			m.restart(s, i)
			continue
		}
		m.disk(s, i)
		if s.node[i].serves() {
			m.lead(s, i)
			for j := range m.nodes {
				if j != i {
					m.feed(s, i, j)
				}
			}
		}
		m.promote(s, i)
		m.fault(s, i)
	}
}

func (m *protocolModel) restart(s modelState, i int) {
	x := &s.node[i]
	x.up, x.asking, x.votes = true, 0, 0
	x.decl = x.touched // what was declared is forgotten
	s.word[i] = modelWord{}
	for j := range m.nodes {
		s.follower[i][j] = modelFollowerIndex(FollowerConnecting)
	}
	if x.prim && !x.fenced {
		if x.n >= modelLog || int(s.gens) >= modelGens {
			return
		}
		g := s.gen[x.own] // a new minor generation after an unclean end
		m.begin(&s, i, g.major, g.minor+1, s.gens)
	}
	m.add(&s, modelStep{"restart", i, 0, 0})
}

// disk: the log is fdatasynced, and what is committed reaches the device.
func (m *protocolModel) disk(s modelState, i int) {
	x := &s.node[i]
	if x.dur < x.n {
		t := s
		t.node[i].dur = x.n
		m.add(&t, modelStep{"fdatasync", i, 0, 0})
	}
	if lim := x.committed(); lim > x.touched {
		t := s
		t.node[i].touched = lim
		m.add(&t, modelStep{"apply", i, int(lim), 0})
	}
}

// lead: what a primary does by itself.
func (m *protocolModel) lead(s modelState, i int) {
	x := &s.node[i]
	if s.writes < m.writes && x.n < modelLog {
		t := s
		t.node[i].log[x.n] = t.record
		t.node[i].n++
		t.record++
		t.writes++
		m.add(&t, modelStep{"write", i, 0, 0})
	}
	w := &s.word[i]
	t := s
	answered := false
	m.asWord(&t, i, func(w *word) {
		if answered = w.flushed(journal.LSN(x.dur)) && journal.LSN(x.dur) > w.answered; answered {
			w.answer(journal.LSN(x.dur))
		}
	})
	if answered || w.standing == isCounting && (s.nflush != x.dur || s.flushBy != x.own) && w.members[w.active].durable >= x.dur {
		if w.standing == isCounting {
			m.answerFlush(&t, i, x.dur)
		}
		m.add(&t, modelStep{"flush", i, int(x.dur), int(w.standing)})
	}
	if w.standing == isExpected {
		t := s
		m.asWord(&t, i, func(w *word) { m.news(&t, i, w.active, w.expire(w.spell)) })
		m.add(&t, modelStep{"expire", i, 0, 0})
	}
	for k := range m.nodes {
		if k != i && k != int(w.active) && !s.fed[i][w.active] && s.fed[i][k] {
			t := s
			m.asWord(&t, i, func(w *word) {
				_, n := w.activate(k, journal.LSN(x.n))
				m.news(&t, i, k, n)
			})
			m.add(&t, modelStep{"switch", i, k, 0})
		}
	}
}

// feed: what happens between a primary and another member.
func (m *protocolModel) feed(s modelState, i, j int) {
	x, y := &s.node[i], &s.node[j]
	if !s.fed[i][j] {
		switch modelFollower[s.follower[i][j]] {
		case FollowerHandshake, FollowerCatchUp, FollowerStreaming, FollowerResync: // the loss is noticed
			t := s
			t.transition(i, j, followerLost)
			m.asWord(&t, i, func(w *word) { w.lost(j) })
			m.add(&t, modelStep{"notice the loss", i, j, 0})
			return
		case FollowerConnecting:
			if !s.reach(i, j) {
				t := s
				t.transition(i, j, followerUnreachable)
				m.asWord(&t, i, func(w *word) { w.giveUp(j) })
				m.add(&t, modelStep{"unreachable", i, j, 0})
			}
		default:
		}
		if !s.reach(i, j) {
			return
		}
		t := s
		m.connect(&t, i, j)
		m.add(&t, modelStep{"connect", i, j, 0})
		if compareRank(s.generation(x.own, 0), s.generation(y.seen, 0)) >= 0 && (y.fenced || !y.prim && modelFollower[s.follower[i][j]] == FollowerRefused) {
			u := s
			m.rejoin(&u, i, j)
			m.add(&u, modelStep{"rejoin", i, j, 0})
		}
		return
	}
	if y.stager > 0 {
		m.resync(s, i, j)
		return
	}
	if y.n < x.n {
		t := s
		t.node[j].log[y.n] = x.log[y.n]
		t.node[j].n++
		m.add(&t, modelStep{"receive", i, j, 0})
	}
	if d := min(x.dur, y.n); d > y.decl {
		t := s
		t.node[j].decl = d
		m.add(&t, modelStep{"declare", i, j, int(d)})
	}
	t := s
	m.asWord(&t, i, func(w *word) {
		m.news(&t, i, j, w.acknowledge(j, journal.LSN(y.n), journal.LSN(y.dur), journal.LSN(x.n)))
	})
	if t != s {
		m.add(&t, modelStep{"acknowledge", j, i, int(y.dur)})
	}
}

// resync: what happens while i is copied to j.
func (m *protocolModel) resync(s modelState, i, j int) {
	x, y := &s.node[i], &s.node[j]
	if y.staged < x.n {
		t := s
		t.node[j].staged++
		m.add(&t, modelStep{"stream to the copy", i, j, int(y.staged) + 1})
	}
	if !y.copied {
		t := s
		t.node[j].copied = true
		m.add(&t, modelStep{"all is copied", i, j, 0})
		return
	}
	t := s
	m.takeOver(&t, i, j)
	m.add(&t, modelStep{"take over", i, j, int(y.staged)})
}

// promote: i stands, is given words, and begins; or an operator orders it.
func (m *protocolModel) promote(s modelState, i int) {
	x := &s.node[i]
	if x.prim {
		return
	}
	if s.promotions < m.promotions && x.n < modelLog && int(s.gens) < modelGens {
		t := s
		t.promotions++
		if needed(m.nodes) > 0 {
			if m.stand(&t, i) {
				m.add(&t, modelStep{"stand", i, 0, 0})
			}
		}
		if v := m.voter(&s, i); m.forced && s.promotions == 0 || needed(m.nodes) == 0 && v.source == "" {
			t := s
			t.promotions++
			g := max(s.gen[x.seen].major, s.gen[s.newest(i)].major) + 1
			if m.forced && !m.has(&s, i) { // the operator gives it up
				t.flushed, t.nflush = [modelLog]uint8{}, 0
			}
			m.begin(&t, i, g, 0, t.gens)
			if m.forced {
				t.flushBy = t.node[i].own
			}
			m.add(&t, modelStep{"promote by order", i, 0, 0})
		}
	}
	if x.asking == 0 {
		return
	}
	for j := range m.nodes {
		if j != i && x.votes&(1<<j) == 0 && s.reach(i, j) {
			t := s
			if m.vote(&t, i, j) {
				m.add(&t, modelStep{"vote", j, i, 0})
			}
		}
	}
	if m.elected(&s, i) && x.n < modelLog {
		t := s
		g := t.gen[x.asking]
		m.begin(&t, i, g.major, g.minor, x.asking)
		m.add(&t, modelStep{"promote by majority", i, int(g.major), 0})
	}
}

// fault is a fault: a kill, a power loss, a host cut off or back.
func (m *protocolModel) fault(s modelState, i int) {
	if s.isolated[i] {
		t := s
		t.isolated[i] = false
		m.add(&t, modelStep{"back on the network", i, 0, 0})
	}
	if s.faults >= m.faults {
		return
	}
	s.faults++
	apart := func(t *modelState) {
		for j := range m.nodes {
			t.fed[i][j], t.fed[j][i] = false, false
		}
	}
	x := &s.node[i]
	for keep := x.dur; keep <= x.n; keep++ {
		t := s
		t.node[i].up = false
		apart(&t)
		t.node[i].trim(keep)
		t.node[i].dur = keep // recovery syncs what it finds
		m.add(&t, modelStep{"down, keeps", i, int(keep), int(x.n)})
	}
	if !s.isolated[i] {
		t := s
		t.isolated[i] = true
		apart(&t)
		m.add(&t, modelStep{"cut off", i, 0, 0})
	}
}
