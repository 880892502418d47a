package dataport

// Which paths carry data is decided here, by both sides of a session with the same rule. The side that dials has the
// say: it tells the other one with flagStandby on every frame of a path that it wants data kept off.
// Nothing in this file knows a clock, a connection or a goroutine.

// candidate is a path as an election sees it.
type candidate struct {
	id    PathID
	state PathState
	asked bool // the peer wants no data here
}

// elect says which of the candidates carry data, at most most of them (0: all). Of those that are well:
//
//   - one that the peer does not want is taken only when there is no other, and then one alone;
//   - one that carries data already goes before one that does not, so that a path that returns pushes nobody out;
//   - else the lower id, which is the order of the addresses.
//
// When one is well, one is elected.
func elect(all []candidate, most int, elected []bool) []bool {
	elected = elected[:0]
	wanted := false
	for _, c := range all {
		elected = append(elected, false)
		wanted = wanted || c.state.well() && !c.asked
	}
	if !wanted {
		most = 1
	} else if most <= 0 {
		most = len(all)
	}
	for range min(most, len(all)) {
		best := -1
		for i, c := range all {
			if elected[i] || !c.state.well() || wanted && c.asked {
				continue
			}
			if best < 0 || c.before(all[best]) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		elected[best] = true
	}
	return elected
}

func (c candidate) before(o candidate) bool {
	if (c.state == PathActive) != (o.state == PathActive) {
		return c.state == PathActive
	}
	return c.id < o.id
}

// mostActive is how many paths are to carry data, 0 for all: as configured, else as the scheduler says.
func mostActive(configured int, s Scheduler) int {
	if limited, ok := s.(interface{ ActivePaths() int }); ok && configured == 0 {
		return limited.ActivePaths()
	}
	return configured
}

// elect holds an election and moves the paths that it concerns. For the path new, which has just become well, there is
// one event whichever way it goes, with reason. s.mu is held.
func (s *Session) elect(new *path, reason string) {
	s.candidates = s.candidates[:0]
	for _, p := range s.paths {
		s.candidates = append(s.candidates, candidate{p.id, p.state, p.asked})
	}
	s.elected = elect(s.candidates, s.mostActive, s.elected)
	for i, p := range s.paths {
		switch {
		case s.elected[i] && s.shift(p, pathActivate, ""):
			why := reason
			if p != new {
				why = "takes over"
			}
			s.event(PathUp, p.id, why)
		case !s.elected[i] && s.shift(p, pathRest, ""):
			why := "not needed"
			if p.asked {
				why = "the peer has others"
			}
			s.event(PathIsStandby, p.id, why)
			s.reclaimQueued(p)
		case p == new && p.state == PathStandby:
			s.event(PathIsStandby, p.id, reason)
		default:
			continue
		}
		p.ackDue = true // the peer has to know
		p.poke()
	}
}

// shift feeds the state machine of a path that is the session's, and its record. s.mu is held.
func (s *Session) shift(p *path, in pathInput, reason string) bool {
	next, changed := p.state.next(in)
	if changed {
		p.state = next
		p.rec.set(next, reason)
	}
	return changed
}

// rests reports whether a path that joins now will be a standby. It is told to the peer before it could send there.
func (s *Session) rests() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	active := 0
	for _, p := range s.paths {
		if p.state == PathActive {
			active++
		}
	}
	return s.mostActive > 0 && active >= s.mostActive
}
