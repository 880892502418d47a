package mirror

// Pulse is a sign of life: what Run's loop has found the last time it went around.
type Pulse struct {
	Turn          uint64 // how often it has gone around; 0 before the first time
	Role          string
	State, Reason string
}

// Pulse returns the latest one. It takes no lock, so that whoever asks learns that the loop hangs, and does not hang with it.
func (a *Agent) Pulse() Pulse {
	if p := a.pulse.Load(); p != nil {
		return *p
	}
	return Pulse{}
}

// beat is called by Run's loop each time it has gone around.
func (a *Agent) beat() {
	a.mu.Lock()
	p := Pulse{Turn: a.Pulse().Turn + 1, State: a.state.state, Reason: a.state.reason}
	a.mu.Unlock()
	p.Role = a.v.Role().String()
	a.pulse.Store(&p)
}
