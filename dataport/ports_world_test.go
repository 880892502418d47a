package dataport_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

const modelClients = 2

// modelKeys are made once: one for the source, one for all the others.
var modelKeys = func() (k [2]ed25519.PrivateKey) {
	for i := range k {
		k[i], _ = dataport.GenerateKey()
	}
	return k
}()

// modelWorld is hosts 0 (source), 1 (target), 2 and more (backups) with the same clients on each.
type modelWorld struct {
	plan     *plan
	net      *dataporttest.Net
	addrs    [][]string
	nodes    []*dataport.Node
	clients  [][modelClients]*witness
	ports    [modelClients]*dataport.Port
	index    [modelClients]int // of the target, if the port is manual
	asked    bool              // Switch was called
	flows    [modelClients][][2]*courier
	ctx      context.Context
	cancel   context.CancelFunc
	restarts int
}

func newModelWorld(p *plan) (*modelWorld, error) {
	w := &modelWorld{plan: p, net: dataporttest.NewNet()}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	hosts := 1 + len(p.paths)
	w.addrs, w.nodes, w.clients = make([][]string, hosts), make([]*dataport.Node, hosts), make([][modelClients]*witness, hosts)
	for h := range hosts {
		for i := 0; h > 0 && i < p.paths[h-1]; i++ {
			w.addrs[h] = append(w.addrs[h], fmt.Sprintf("host%d:%d", h, i+1))
		}
		for c := range modelClients {
			w.clients[h][c] = newWitness()
		}
	}
	for h := range hosts {
		if err := w.start((h + 1) % hosts); err != nil { // the source at last
			return nil, err
		}
	}
	id := uint32(0)
	for c := range w.flows {
		w.flows[c] = make([][2]*courier, hosts)
		for h := range w.flows[c] {
			for k := range w.flows[c][h] {
				id++
				w.flows[c][h][k] = newCourier(w.ctx, id)
			}
		}
	}
	return w, nil
}

// start brings up a host; on the source also the ports.
func (w *modelWorld) start(h int) error {
	c := dataport.DefaultConfig()
	c.Name, c.Listen, c.Insecure, c.Dial, c.ListenFunc = fmt.Sprintf("host%d", h), w.addrs[h], true, w.net.Dial, w.net.Listen
	c.SendWindowBytes, c.ReceiveWindowBytes, c.MaxMessageBytes = w.plan.windows[0], w.plan.windows[1], 200_000
	c.MaxPaths = 5
	if w.plan.tls {
		own, other := modelKeys[min(h, 1)], modelKeys[1-min(h, 1)]
		c.Insecure, c.Key, c.Peers = false, own, []ed25519.PublicKey{pub(other)}
	}
	n, err := dataport.NewNode(c)
	if err != nil {
		return err
	}
	w.nodes[h] = n
	for i, l := range w.clients[h] {
		r, err := n.Register(fmt.Sprintf("client%d", i), l)
		if err != nil {
			return err
		}
		if h != 0 {
			continue
		}
		pc := dataport.PortConfig{Target: w.addrs[1], Backups: w.addrs[2:]}
		if w.plan.auto {
			pc.Switch = dataport.Auto
		}
		if w.plan.sched == 1 {
			pc.Scheduler = dataport.RoundRobin()
		}
		if w.ports[i], err = r.Open(context.Background(), pc); err != nil {
			return err
		}
		w.index[i] = 0
	}
	return nil
}

func (w *modelWorld) close() {
	w.cancel()
	for c := range w.flows {
		for h := range w.flows[c] {
			for _, f := range w.flows[c][h] {
				if f != nil {
					close(f.jobs)
					<-f.done
				}
			}
		}
	}
	for _, n := range w.nodes {
		if n != nil {
			_ = n.Close()
		}
	}
}

// host and addr are the link that a step is about: mostly one of the target, else of a backup.
func (w *modelWorld) host(s step) int {
	if s.a >= 9 {
		return 2 + s.b%(len(w.addrs)-2)
	}
	return 1
}

func (w *modelWorld) addr(s step) string {
	h := w.host(s)
	return w.addrs[h][s.a%len(w.addrs[h])]
}

func (w *modelWorld) way(s step) dataporttest.Direction { return dataporttest.Direction(1 + s.b%3) }

func (w *modelWorld) port(s step) *dataport.Port { return w.ports[s.b%modelClients] }

func (w *modelWorld) client(s step) *witness { return w.clients[s.a%len(w.clients)][s.b%modelClients] }

func (w *modelWorld) hole(s step, patient bool) {
	w.net.Retransmit(w.addr(s), patient)
	w.net.Blackhole(w.addr(s), w.way(s))
}

// send has a burst sent: from the source on the port's session, from the others on the newest of theirs.
func (w *modelWorld) send(s step, back int) { w.burst(s, back, 0, 1+s.b%20) }

func (w *modelWorld) call(s step, back int) { w.burst(s, back, 1, 1+s.b%3) }

func (w *modelWorld) burst(s step, back, kind, count int) {
	c, h := s.a%modelClients, 0
	port := w.ports[c]
	from := port.Session
	if back != 0 {
		h, _ = port.Target()
		h++
		from = w.clients[h][c].latest
	}
	j := job{session: from, count: count, size: w.plan.sizes[s.b%len(w.plan.sizes)], call: kind == 1}
	if s.b%10 == 0 {
		j.patient = time.Duration(s.b*7) * time.Millisecond // gives up waiting, perhaps
	}
	w.flows[c][h][kind].give(j)
}

func (w *modelWorld) onPath(s step, do func(*dataport.Port, dataport.PathID) error) {
	if paths := w.port(s).Stats().Paths; len(paths) > 0 {
		_ = do(w.port(s), paths[s.a%len(paths)].ID) // the last one cannot be removed
	}
}

func (w *modelWorld) switchTo(s step) {
	if to := s.a % len(w.plan.paths); w.port(s).Switch(context.Background(), to) == nil {
		w.asked = true
		w.index[s.b%modelClients] = to
	}
}

// restart is a process that dies without a word and begins anew, with what it had forgotten.
func (w *modelWorld) restart(h int) {
	w.restarts++
	down := w.addrs[h]
	if h == 0 {
		down = slices.Concat(w.addrs...)
	}
	for _, a := range down {
		w.net.Refuse(a, true)
		w.net.Cut(a)
	}
	_ = w.nodes[h].Close()
	for _, a := range down {
		w.net.Refuse(a, false)
	}
	if err := w.start(h); err != nil {
		panic(err)
	}
}

func (w *modelWorld) mend() {
	for h := range w.addrs {
		for _, a := range w.addrs[h] {
			w.net.Blackhole(a, 0)
			w.net.Stall(a, 0)
			w.net.Refuse(a, false)
			w.net.SlowAccept(a, 0)
			w.net.Jitter(a, 0, 0)
			w.net.Rate(a, dataporttest.Both, 0)
			w.net.Spare(a) // heartbeats alone may come to the place of one long after
		}
		for _, l := range w.clients[h] {
			l.stall(false)
		}
	}
	for _, p := range w.ports {
		_ = p.Resume()
	}
}

// bounded: what is held is within the windows; one message may exceed the receiver's.
func (w *modelWorld) bounded() error {
	for h := range w.clients {
		for c, l := range w.clients[h] {
			l.mu.Lock()
			sessions, bad := l.sessions, l.bad
			l.mu.Unlock()
			if bad != "" {
				return errors.New(bad)
			}
			for _, s := range sessions {
				st := s.Stats()
				if room := w.plan.windows[1] + 200_000 + 64<<10; st.QueuedBytes > w.plan.windows[0] || st.BufferedBytes > room || st.BufferedBytes < 0 {
					return fmt.Errorf("client %d of host %d holds %d bytes for its peer and %d from it", c, h, st.QueuedBytes, st.BufferedBytes)
				}
			}
			if h == 0 && !w.plan.auto {
				if i, _ := w.ports[c].Target(); i != w.index[c] {
					return fmt.Errorf("manual port %d is on target %d, was sent to %d", c, i, w.index[c])
				}
			}
		}
	}
	for _, a := range slices.Concat(w.addrs[2:]...) {
		if _, ever := w.net.Connections(a); ever > 0 && !w.plan.auto && !w.asked {
			return fmt.Errorf("%d connections to the backup %s before Switch", ever, a)
		}
	}
	return nil
}

// settled: every port works, both ways, and no flow is stuck.
func (w *modelWorld) settled() error {
	for c, p := range w.ports {
		i, _ := p.Target()
		if st := p.State(); st != dataport.PortConnected {
			return fmt.Errorf("port %d is %v: %+v", c, st, p.Stats())
		}
		for h := range w.flows[c] {
			for k, f := range w.flows[c][h] {
				if n := len(f.jobs); n > 0 {
					return fmt.Errorf("flow %d (client %d, host %d, kind %d) has %d jobs left", f.id, c, h, k, n)
				}
			}
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		f := newCourier(ctx, uint32(100+c))
		f.jobs <- job{session: p.Session, count: 8, size: 5000, call: true}
		close(f.jobs)
		<-f.done
		cancel()
		if e := f.sent[p.Session().ID()]; len(e) != 8 || e[7].err != nil {
			return fmt.Errorf("calls on port %d: %d, the last one: %+v; %s", c, len(e), e[len(e)-1], f.bad)
		}
		if err := f.check(w.clients[i+1][c]); err != nil {
			return err
		}
	}
	for h := range w.clients {
		for c, l := range w.clients[h] {
			s := l.latest()
			if s == nil || s.Err() != nil {
				continue
			}
			if st := s.Stats(); st.QueuedBytes != 0 || st.BufferedBytes != 0 {
				return fmt.Errorf("client %d of host %d: all is delivered, and %d bytes are held for the peer and %d from it", c, h, st.QueuedBytes, st.BufferedBytes)
			}
		}
	}
	return w.bounded()
}

func (w *modelWorld) check() error {
	for c := range modelClients {
		for h := range w.flows[c] {
			for _, f := range w.flows[c][h] {
				var err error
				if h == 0 { // its sessions lead to one of the others
					err = f.check(w.merged(c))
				} else {
					err = f.check(w.clients[0][c])
				}
				if err != nil {
					return err
				}
			}
		}
		for h := range w.clients {
			if err := w.clients[h][c].grammar(); err != nil {
				return fmt.Errorf("client %d of host %d: %w", c, h, err)
			}
		}
		if err := w.clients[0][c].switches(w.addrs[1:]); err != nil {
			return fmt.Errorf("client %d: %w", c, err)
		}
	}
	return nil
}

// merged is what a client was handed on all targets; a session leads to one of them.
func (w *modelWorld) merged(c int) *witness {
	m := newWitness()
	for _, clients := range w.clients[1:] {
		l := clients[c]
		l.mu.Lock()
		for k, got := range l.got {
			m.got[k] = append(m.got[k], got...)
		}
		l.mu.Unlock()
	}
	return m
}
