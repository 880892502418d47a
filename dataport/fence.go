package dataport

import "fmt"

// Fencing: who sends carries a generation, and who has seen a higher one refuses it. A client that takes the lead from
// another raises its generation above it; from then on, whichever peer has heard of that is out of reach for the old one.
//
//	who dials (generation g) ── open, join: g ──────────► who accepts: seen = the highest of its own and of all that dialled
//	          g < seen:  ◄── refused: fenced, seen ──     and its running sessions that were dialled below seen end
//	          otherwise: ◄── accepted ──────────────      seen = g
//
// A port that is refused so ends its session, goes to PortFenced, tells its client (Fenced) and neither dials nor
// switches until SetGeneration has reached what fenced it. So does a port whose own client is dialled by a higher one.
// The side that is dialled may be lower: it learns.
//
// Generations are compared within one history only (SetHistory), and never with 0, which is a client that uses none.
// What was seen from peers is forgotten when the process ends: keeping it is the client's business.

// fencing is a registration's part of it, guarded by its mutex.
type fencing struct {
	history [16]byte
	own     uint64
	seen    uint64 // never below own
}

// SetHistory says what the client's generations are generations of: numbers of different histories are not compared.
// Another history than before begins without a generation; sessions that this side dialled begin anew.
func (r *Registration) SetHistory(id [16]byte) {
	r.mu.Lock()
	if r.fence.history == id {
		r.mu.Unlock()
		return
	}
	r.fence = fencing{history: id}
	r.mu.Unlock()
	r.enforce()
}

// SetGeneration raises the client's generation; a lower one than before changes nothing. Sessions that were dialled with
// a lower one end at once, on both sides: those of the client's own ports to be opened anew with this one, those of
// peers to be refused. It may be called from callbacks. What has to survive the process the client stores before.
func (r *Registration) SetGeneration(g uint64) {
	r.mu.Lock()
	if g <= r.fence.own {
		r.mu.Unlock()
		return
	}
	r.fence.own = g
	r.fence.seen = max(r.fence.seen, g)
	r.mu.Unlock()
	r.enforce()
}

// Generation returns the client's generation and the highest one it knows of, its own or a peer's.
func (r *Registration) Generation() (own, seen uint64) {
	f := r.fencing()
	return f.own, f.seen
}

func (r *Registration) fencing() fencing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fence
}

// tells returns what a hello of this client says.
func (r *Registration) tells(kind helloKind) (history [16]byte, generation uint64) {
	f := r.fencing()
	if kind == helloOpen || kind == helloJoin {
		return f.history, f.own
	}
	return f.history, f.seen
}

// meet takes the generation of a peer that dials. It returns the one that fences it, 0: none does. raised: it is the
// highest by now, and enforce is due.
func (r *Registration) meet(h *hello) (higher uint64, raised bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &r.fence
	switch {
	case h.generation == 0 || h.history != f.history:
		return 0, false
	case h.generation < f.seen:
		return f.seen, false
	}
	raised = h.generation > f.seen
	f.seen = h.generation
	return 0, raised
}

// comparable returns the generation of a peer's hello, 0 when it is of another history.
func (r *Registration) comparable(h *hello) uint64 {
	if f := r.fencing(); h.history != f.history {
		return 0
	}
	return h.generation
}

// enforce ends what is below the highest generation. No lock is held.
func (r *Registration) enforce() {
	f := r.fencing()
	for _, s := range r.node.sessionsOf(r) {
		if s.peer.Inbound && s.history == f.history && s.generation != 0 && s.generation < f.seen {
			s.fail(fmt.Sprintf("generation %d is fenced by %d", s.generation, f.seen), endQuietly)
		}
	}
	for _, p := range r.portsNow() {
		p.enforce(r.node.conf.Name)
	}
}

func (r *Registration) portsNow() []*Port {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := make([]*Port, 0, len(r.ports))
	for p := range r.ports {
		l = append(l, p)
	}
	return l
}

// enforce brings a port in step with its client's generation: fenced by a higher one, or with a session that carries it.
func (p *Port) enforce(by string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	why := by + " has seen a higher generation"
	f := p.reg.fencing()
	fenced := f.own != 0 && f.seen > f.own
	s := p.sess
	if p.machine.base == PortIsClosed {
		return
	}
	if s != nil && (fenced || s.generation != f.own || s.history != f.history) {
		p.sess = nil
		p.well.Store(0)
		p.lastLife, p.declared = p.node.clock.now(), false
		p.step(portSessionDown, "the generation is another one now")
		s.end("the generation is another one now", endQuietly)
		p.hurry()
	}
	switch {
	case fenced && f.seen > p.fenced:
		p.fenced = f.seen
		p.step(portFence, why)
		p.reg.emit(Event{Kind: Fenced, Port: p, Target: p.targets[p.index][0], Reason: why, Generation: f.seen, By: by})
	case !fenced && p.fenced != 0:
		p.fenced = 0
		p.lastLife, p.declared = p.node.clock.now(), false
		p.step(portRaise, "")
		p.hurry()
	}
	p.changed()
}

func (p *Port) hurry() {
	for _, sl := range p.slots {
		sl.hurry()
	}
}

// refusedBy takes a refusal of a port's hello: whether it fences the port.
func (p *Port) refusedBy(a *hello) bool {
	if a == nil || a.kind != helloRefused || a.code != RefusedFenced {
		return false
	}
	r := p.reg
	r.mu.Lock()
	f := &r.fence
	fences := a.history == f.history && f.own != 0 && a.generation > f.own
	if fences {
		f.seen = max(f.seen, a.generation)
	}
	r.mu.Unlock()
	if !fences {
		return false // raised meanwhile, or it talks nonsense
	}
	for _, p := range r.portsNow() {
		p.enforce(a.name)
	}
	return true
}

// mayDial waits while the port is fenced. It reports false when ctx ended first.
func (p *Port) mayDial(done <-chan struct{}) bool {
	for {
		p.mu.Lock()
		fenced, change := p.fenced != 0, p.change
		p.mu.Unlock()
		if !fenced {
			return true
		}
		select {
		case <-change:
		case <-done:
			return false
		}
	}
}
