package dataport_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// calm is for tests of exact events: the default thresholds, for a busy machine is not to be mistaken for a fault.
func calm(c dataport.Config) dataport.Config {
	c.Timing = dataport.DefaultTiming()
	return c
}

// pathsOf returns the remote addresses of a port's paths that are active, and of those that are not.
func pathsOf(p *dataport.Port) (up, down []string) {
	for _, st := range p.Stats().Paths {
		if st.State == dataport.PathActive {
			up = append(up, st.Remote)
		} else {
			down = append(down, st.Remote)
		}
	}
	return up, down
}

func TestAddressesComeAndGo(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, calm(config("target", "127.0.0.1:0")))
	register(t, tn, target)
	seed := tn.Addrs()[0]
	p := open(t, register(t, node(t, calm(config("source"))), source), dataport.PortConfig{Target: []string{seed}, UseAnnounced: true})
	source.awaitEvent(t, dataport.SessionUp, 1)
	if _, err := p.Call(context.Background(), []byte("first")); err != nil {
		t.Fatal(err)
	}
	s := p.Session()
	sent := target.ledgerOf(s.ID())
	var wg sync.WaitGroup
	enough := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			b := pattern(i, 5000)
			r, err := p.Send(context.Background(), b)
			if err == nil {
				err = r.Wait(context.Background())
			}
			if err != nil {
				t.Errorf("send %d: %v", i, err)
				return
			}
			sent.add(b)
			select {
			case <-enough:
				return
			default:
			}
		}
	})

	second, err := tn.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up := source.awaitEvent(t, dataport.PathUp, 2)
	if err := tn.Unlisten(second); err != nil {
		t.Fatal(err)
	}
	if down := source.awaitEvent(t, dataport.PathDown, 1); down.Path != up.Path {
		t.Errorf("path %d came and path %d went", up.Path, down.Path)
	}
	if _, err := tn.Listen(second); err != nil {
		t.Fatal(err)
	}
	if again := source.awaitEvent(t, dataport.PathUp, 3); again.Path == up.Path {
		t.Errorf("another path has the number %d of one that was removed", again.Path)
	}
	// What the client configured stays, whatever is announced.
	if err := tn.Unlisten(seed); err != nil {
		t.Fatal(err)
	}
	if err := tn.Unlisten(seed); !errors.Is(err, dataport.ErrNotListening) {
		t.Errorf("unlisten twice: %v", err)
	}
	third, err := tn.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 4)
	close(enough)
	wg.Wait()
	if got := target.ledgerOf(s.ID()); got != sent {
		t.Errorf("target got %+v, sent %+v", got, sent)
	}
	if got := source.kinds(dataport.PathSuspect); got != "PathUp SessionUp PathUp PathIsDraining PathDown PathUp PathUp" {
		t.Errorf("events %s", got)
	}
	if st := p.State(); st != dataport.PortConnected {
		t.Errorf("state %v", st)
	}
	for _, st := range p.Stats().Paths {
		if st.Announced != (st.Remote != seed) {
			t.Errorf("path to %s: announced %v", st.Remote, st.Announced)
		}
	}
	if got, want := tn.Announced(), []string{second, third}; !slices.Equal(got, want) {
		t.Errorf("announced %v, want %v", got, want)
	}
	if got, want := s.PeerAddrs(), []string{second, third}; !slices.Equal(got, want) {
		t.Errorf("the source knows %v, want %v", got, want)
	}
}

// The only path that is up is kept although its address is not announced any more, until another one is up.
func TestTheLastPathOutlivesItsAddress(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
	register(t, tn, target)
	seed := dataporttest.NewProxy(tn.Addrs()[0])
	t.Cleanup(seed.Close)
	first, second := tn.Addrs()[0], tn.Addrs()[1]
	if err := tn.Unlisten(first); err != nil { // behind the proxy: not one of the announced
		t.Fatal(err)
	}
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: []string{seed.Addr()}, UseAnnounced: true})
	source.awaitEvent(t, dataport.TargetUnreachable, 1)
	if _, err := tn.Listen(first); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 3) // the seed, first itself, second
	seed.Refuse(true)
	seed.Cut()
	source.awaitEvent(t, dataport.PathDown, 1)
	for _, a := range []string{first, second} {
		if err := tn.Unlisten(a); err != nil {
			t.Fatal(err)
		}
	}
	source.awaitEvent(t, dataport.PathDown, 2)
	_ = stream(t, p, 50)
	if up, _ := pathsOf(p); len(up) != 1 || up[0] == seed.Addr() {
		t.Errorf("paths that are up: %v", up)
	}
	if _, err := tn.Listen(second); err != nil {
		t.Fatal(err)
	}
	seed.Refuse(false)
	last := source.awaitEvent(t, dataport.PathIsDraining, 2)
	source.mu.Lock()
	defer source.mu.Unlock()
	at := slices.IndexFunc(source.events, func(e dataport.Event) bool { return e == last })
	if at < 1 || source.events[at-1].Kind != dataport.PathUp {
		t.Errorf("the last path went before another one had come:\n%s", source.list())
	}
}

// lab is a network in memory whose nodes have addresses of their own on hosts that gain and lose them. A node listens on
// the wildcard of its port; who dials an address that its host has not got is refused.
type lab struct {
	net *dataporttest.Net

	mu    sync.Mutex
	hosts map[string][]netip.Prefix // by the port of the host's node
	dials [][2]string               // local, remote
}

func newLab() *lab { return &lab{net: dataporttest.NewNet(), hosts: map[string][]netip.Prefix{}} }

func (l *lab) set(port string, prefixes ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[port] = nil
	for _, p := range prefixes {
		l.hosts[port] = append(l.hosts[port], netip.MustParsePrefix(p))
	}
}

func (l *lab) dialed() [][2]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.dials
	l.dials = nil
	return d
}

func (l *lab) config(name, port string, listen ...string) dataport.Config {
	c := memConfig(l.net, name, listen...)
	c.HostAddrs = func() ([]netip.Prefix, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return slices.Clone(l.hosts[port]), nil
	}
	c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
		to := netip.MustParseAddrPort(remote)
		p := fmt.Sprint(to.Port())
		l.mu.Lock()
		l.dials = append(l.dials, [2]string{local, remote})
		there := slices.ContainsFunc(l.hosts[p], func(x netip.Prefix) bool { return x.Addr() == to.Addr() })
		l.mu.Unlock()
		if !there {
			return nil, errors.New("no route to host")
		}
		return l.net.Dial(ctx, local, "0.0.0.0:"+p)
	}
	return c
}

func (l *lab) start(t *testing.T, c dataport.Config, name string) (*dataport.Node, *dataport.Registration, *list) {
	n, err := dataport.NewNode(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &list{got: map[dataport.SessionID][]int{}}
	reg, err := n.Register(name, r)
	if err != nil {
		t.Fatal(err)
	}
	return n, reg, r
}

// A wildcard stands for the addresses of its host, and the paths follow them; the source binds the address of the
// subnet, and leaves out one that it has not got.
func TestWildcardFollowsTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.set("7000", "127.0.0.1/8", "10.1.0.2/24", "10.2.0.2/24", "169.254.3.3/16", "fe80::1/64")
		l.set("9000", "127.0.0.1/8", "10.1.0.1/24", "10.2.0.1/24", "10.3.0.1/24")
		tn, _, _ := l.start(t, l.config("target", "7000", "0.0.0.0:7000"), "test")
		defer tn.Close()
		sc := l.config("source", "9000")
		sc.LocalAddrs = []string{"10.3.0.1", "10.2.0.1", "10.1.0.1"}
		sn, sr, source := l.start(t, sc, "test")
		defer sn.Close()
		p, err := sr.Open(context.Background(), dataport.PortConfig{Target: []string{"10.1.0.2:7000"}, UseAnnounced: true})
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, announced, up, events []string, dials ...[2]string) {
			t.Helper()
			if got := tn.Announced(); !slices.Equal(got, announced) {
				t.Errorf("%s: announced %v, want %v", what, got, announced)
			}
			var got []string
			for _, st := range p.Stats().Paths {
				if st.State == dataport.PathActive {
					got = append(got, fmt.Sprint(st.ID))
				}
			}
			if !slices.Equal(got, up) {
				t.Errorf("%s: paths %v are up, want %v", what, got, up)
			}
			if got := source.kinds(); !slices.Equal(got, events) {
				t.Errorf("%s: events %v, want %v", what, got, events)
			}
			if got := l.dialed(); !slices.Equal(got, dials) {
				t.Errorf("%s: dials %v, want %v", what, got, dials)
			}
			if st := p.State(); st != dataport.PortConnected {
				t.Errorf("%s: %v", what, st)
			}
		}
		time.Sleep(500 * time.Millisecond)
		events := []string{"PathUp", "SessionUp", "PathUp"}
		check("one seed", []string{"10.1.0.2:7000", "10.2.0.2:7000"}, []string{"1", "2"}, events,
			[2]string{"10.1.0.1", "10.1.0.2:7000"}, [2]string{"10.2.0.1", "10.2.0.2:7000"})

		l.set("7000", "10.1.0.2/24", "10.2.0.2/24", "10.3.0.2/24")
		time.Sleep(1500 * time.Millisecond)
		events = append(events, "PathUp")
		check("an address came", []string{"10.1.0.2:7000", "10.2.0.2:7000", "10.3.0.2:7000"}, []string{"1", "2", "3"}, events,
			[2]string{"10.3.0.1", "10.3.0.2:7000"})

		l.set("7000", "10.1.0.2/24", "10.3.0.2/24")
		time.Sleep(1500 * time.Millisecond)
		events = append(events, "PathIsDraining", "PathDown")
		check("an address went", []string{"10.1.0.2:7000", "10.3.0.2:7000"}, []string{"1", "3"}, events)

		// Our own address of the new subnet is not there: another one takes its turn; the path
		// takes the right one when it is built anew and that is back.
		l.set("9000", "10.1.0.1/24", "10.3.0.1/24")
		time.Sleep(1500 * time.Millisecond)
		l.set("7000", "10.1.0.2/24", "10.2.0.2/24", "10.3.0.2/24")
		time.Sleep(1500 * time.Millisecond)
		events = append(events, "PathUp")
		check("without our own address", []string{"10.1.0.2:7000", "10.2.0.2:7000", "10.3.0.2:7000"}, []string{"1", "3", "4"}, events,
			[2]string{"10.3.0.1", "10.2.0.2:7000"})
		l.set("9000", "10.1.0.1/24", "10.2.0.1/24", "10.3.0.1/24")
		time.Sleep(1500 * time.Millisecond)
		if err := p.ResetPath(4); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		events = append(events, "PathDown", "PathUp")
		check("our own address is back", []string{"10.1.0.2:7000", "10.2.0.2:7000", "10.3.0.2:7000"}, []string{"1", "3", "4"}, events,
			[2]string{"10.2.0.1", "10.2.0.2:7000"})
	})
}

// A named address that its host loses is not announced while it is away, although it is listened on.
func TestANamedAddressThatTheHostLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.set("7000", "10.1.0.2/24", "10.2.0.2/24")
		tn, _, _ := l.start(t, l.config("target", "7000", "10.1.0.2:7000", "10.2.0.2:7000", "192.0.2.9:7000"), "test")
		defer tn.Close()
		for _, step := range []struct{ host, want []string }{
			{[]string{"10.1.0.2/24", "10.2.0.2/24"}, []string{"10.1.0.2:7000", "10.2.0.2:7000", "192.0.2.9:7000"}}, // the last one was never the host's: not ours to judge
			{[]string{"10.1.0.2/24"}, []string{"10.1.0.2:7000", "192.0.2.9:7000"}},
			{[]string{"10.2.0.2/24"}, []string{"10.2.0.2:7000", "192.0.2.9:7000"}},
			{[]string{"10.1.0.2/24", "10.2.0.2/24"}, []string{"10.1.0.2:7000", "10.2.0.2:7000", "192.0.2.9:7000"}},
		} {
			l.set("7000", step.host...)
			time.Sleep(1500 * time.Millisecond)
			if got := tn.Announced(); !slices.Equal(got, step.want) {
				t.Errorf("on a host with %v: announced %v, want %v", step.host, got, step.want)
			}
			if got := tn.Addrs(); len(got) != 3 {
				t.Errorf("listens on %v", got)
			}
		}
	})
}

// An announced address that leads nowhere costs nothing but an attempt now and then.
func TestAnAnnouncedAddressThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		l.set("7000", "10.1.0.2/24")
		tn, _, _ := l.start(t, l.config("target", "7000", "0.0.0.0:7000", "192.0.2.9:7001"), "test")
		defer tn.Close()
		sn, sr, source := l.start(t, l.config("source", "9000"), "test")
		defer sn.Close()
		p, err := sr.Open(context.Background(), dataport.PortConfig{Target: []string{"10.1.0.2:7000"}, UseAnnounced: true})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		_ = l.dialed()
		time.Sleep(5 * time.Minute)
		if got := len(l.dialed()); got < 7 || got > 18 { // 30 s, give or take
			t.Errorf("%d attempts in five minutes", got)
		}
		if st := p.State(); st != dataport.PortConnected {
			t.Errorf("state %v", st)
		}
		if got := source.kinds(); !slices.Equal(got, []string{"PathUp", "SessionUp"}) {
			t.Errorf("events %v", got)
		}
		st := p.Stats().Paths
		if len(st) != 2 || st[1].State != dataport.PathBackoff || st[1].Reason != "dial: no route to host" {
			t.Errorf("paths %+v", st)
		}
		l.set("9000", "10.1.0.1/24") // something moved on this host: worth a few attempts at once
		time.Sleep(2 * time.Second)
		if got := len(l.dialed()); got < 3 || got > 10 {
			t.Errorf("%d attempts after our own addresses changed", got)
		}
	})
}

// A path that the client removed is not brought back by the next announcement, but by the address's return.
func TestARemovedPathStaysAway(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
	register(t, tn, target)
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: tn.Addrs()[:1], UseAnnounced: true})
	second := tn.Addrs()[1]
	id := source.awaitEvent(t, dataport.PathUp, 2).Path
	if err := p.RemovePath(id); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathDown, 1)
	if _, err := tn.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 3)
	if up, down := pathsOf(p); slices.Contains(append(up, down...), second) {
		t.Errorf("the removed path is back: %v %v", up, down)
	}
	if err := tn.Unlisten(second); err != nil {
		t.Fatal(err)
	}
	s := p.Session()
	source.await(t, "the shorter list", func() bool { return poll(source, func() bool { return len(s.PeerAddrs()) == 2 }) })
	if _, err := tn.Listen("127.0.0.1:0"); err != nil { // so that we know when the port has looked
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 4)
	if _, err := tn.Listen(second); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 5)
	if up, _ := pathsOf(p); !slices.Contains(up, second) {
		t.Errorf("paths %v, want %s among them", up, second)
	}
}

// poll asks ok, with the recorder's mutex given up, and has the recorder asked again soon.
func poll(r *recorder, ok func() bool) bool {
	r.mu.Unlock()
	defer r.mu.Lock()
	if ok() {
		return true
	}
	time.AfterFunc(5*time.Millisecond, r.cond.Broadcast)
	return false
}

// An announced address that leads to another node, which the source even trusts, is no way to open a session with that
// one, nor a reason to give up the one that runs.
func TestAnAnnouncedAddressOfAnotherNode(t *testing.T) {
	keys := make([]ed25519.PrivateKey, 3)
	for i := range keys {
		keys[i], _ = dataport.GenerateKey()
	}
	for name, secure := range map[string]bool{"plain TCP": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			conf := func(i int, name string, listen ...string) dataport.Config {
				c := calm(config(name, listen...))
				if secure {
					c.Insecure, c.Key = false, keys[i]
					for _, k := range keys {
						c.Peers = append(c.Peers, pub(k))
					}
				}
				return c
			}
			source, other := newRecorder(), newRecorder()
			on := node(t, conf(2, "other", "127.0.0.1:0"))
			register(t, on, other)
			tc := conf(1, "target", "127.0.0.1:0", on.Addrs()[0])
			tc.ListenFunc = func(addr string) (net.Listener, error) {
				if addr == on.Addrs()[0] {
					return pretender(addr), nil
				}
				return net.Listen("tcp", addr)
			}
			tn := node(t, tc)
			register(t, tn, newRecorder())
			p := open(t, register(t, node(t, conf(0, "source")), source), dataport.PortConfig{Target: tn.Addrs()[:1], UseAnnounced: true})
			source.awaitEvent(t, dataport.SessionUp, 1)
			tried := func() bool {
				st := p.Stats().Paths
				return len(st) == 2 && st[1].Reason != ""
			}
			source.await(t, "an attempt", func() bool { return poll(source, tried) })
			_ = stream(t, p, 20)
			_ = tn.Close()
			source.awaitEvent(t, dataport.TargetUnreachable, 1)
			if got := source.kinds(dataport.PathSuspect); got != "PathUp SessionUp SessionDown TargetUnreachable" {
				t.Errorf("events %s", got)
			}
			if p.Session() != nil {
				t.Errorf("a session with %+v", p.Session().Peer())
			}
			if secure && other.kinds() != "" {
				t.Errorf("the other node saw %s", other.kinds())
			}
		})
	}
}

// pretender is a listener that says an address and has none.
type pretender string

func (p pretender) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (p pretender) Close() error              { return nil }
func (p pretender) Addr() net.Addr            { return pretend(p) }

type pretend string

func (pretend) Network() string  { return "tcp" }
func (p pretend) String() string { return string(p) }

// The seed is needed once: a target that restarts is found at the addresses that it had announced.
func TestTheSeedIsGone(t *testing.T) {
	source := newRecorder()
	c := config("target", "127.0.0.1:0", "127.0.0.1:0")
	tn := node(t, c)
	register(t, tn, newRecorder())
	addrs := tn.Addrs()
	seed := dataporttest.NewProxy(addrs[0])
	t.Cleanup(seed.Close)
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: []string{seed.Addr()}, UseAnnounced: true})
	source.awaitEvent(t, dataport.PathUp, 3)
	seed.Refuse(true)
	seed.Cut()
	source.awaitEvent(t, dataport.PathDown, 1)
	_ = tn.Close()
	source.awaitEvent(t, dataport.SessionDown, 1)
	target := newRecorder()
	c.Listen = addrs[1:]
	again := node(t, c)
	register(t, again, target)
	source.awaitEvent(t, dataport.SessionUp, 2)
	want := stream(t, p, 50)
	if got := target.ledgerOf(p.Session().ID()); got != want {
		t.Errorf("target got %+v, sent %+v", got, want)
	}
	if st := p.State(); st != dataport.PortDegraded { // the seed is missing, and the first address was up before
		t.Errorf("state %v", st)
	}
}
