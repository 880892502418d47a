package integration

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/goleak"

	"mirror-agent/dataport"
)

// The test's own binary, started again inside a host's network, is a process
// with a data port: it takes orders as lines of JSON and answers each with one.

// portProcessVar makes a process of the test's binary a portProcess.
const portProcessVar = "MIRROR_AGENT_TEST_PORT"

// portOrder is one line to a portProcess. Do says what; the rest is for some of the orders.
type portOrder struct {
	ID     int
	Do     string
	Client string // registered name
	Node   *nodeSettings
	Port   *portSettings
	Load   *loadSettings
	Rule   *eventRule
	To     int    // of switch, events (since), stall (after so many messages)
	Path   uint32 // of path orders
	Local  string
	Addr   string
	On     bool
	Within time.Duration
}

type portAnswer struct {
	ID    int
	Error string          `json:",omitempty"`
	Data  json.RawMessage `json:",omitempty"`
}

// nodeSettings are those of dataport.Config that tests change.
type nodeSettings struct {
	Name        string
	Listen      []string
	Seed        []byte   // of the private key; none: plain TCP
	Peers       [][]byte // public keys
	Window      int      // both windows, in bytes
	Local       []string
	Unreachable time.Duration
	Diary       string // file for what must outlive a SIGKILL of the process: NAME.CLIENT
}

// portSettings are those of dataport.PortConfig.
type portSettings struct {
	Target    []string
	Backups   [][]string
	Auto      bool
	Announced bool
	Paths     int
	Scheduler string // "", round-robin
	// ActivePaths carry data, the others stand by.
	ActivePaths int
}

type portProcess struct {
	mu      sync.Mutex // guards the fields below
	node    *dataport.Node
	diary   string
	clients map[string]*portUser
}

func portProcessMain() int {
	p := &portProcess{clients: map[string]*portUser{}}
	in := bufio.NewReader(os.Stdin)
	var outMu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return 0 // the test has ended
		}
		var o portOrder
		if err := json.Unmarshal(line, &o); err != nil {
			fmt.Fprintln(os.Stderr, "order:", err)
			return 2
		}
		go func() {
			a := portAnswer{ID: o.ID}
			data, err := p.obey(&o)
			if err == nil && data != nil {
				a.Data, err = json.Marshal(data)
			}
			if err != nil {
				a.Error = err.Error()
			}
			outMu.Lock()
			defer outMu.Unlock()
			if out.Encode(a) != nil {
				os.Exit(0)
			}
		}()
	}
}

func (p *portProcess) obey(o *portOrder) (any, error) {
	switch o.Do {
	case "node":
		return p.startNode(o.Node)
	case "listen":
		return p.node.Listen(o.Addr)
	case "unlisten":
		return nil, p.node.Unlisten(o.Addr)
	case "register":
		return nil, p.register(o.Client)
	case "end":
		return nil, p.end()
	case "capture":
		return capturePackets(o.Addr, o.Within)
	}
	p.mu.Lock()
	u := p.clients[o.Client]
	p.mu.Unlock()
	if u == nil {
		return nil, fmt.Errorf("order %s: no client %q", o.Do, o.Client)
	}
	return u.obey(o)
}

func (p *portProcess) startNode(s *nodeSettings) (any, error) {
	c := dataport.DefaultConfig()
	c.Name, c.Listen, c.LocalAddrs = s.Name, s.Listen, s.Local
	if s.Window > 0 {
		c.SendWindowBytes, c.ReceiveWindowBytes = s.Window, s.Window
	}
	if s.Unreachable > 0 {
		c.Timing.UnreachableAfter = s.Unreachable
	}
	if s.Seed == nil {
		c.Insecure = true
	} else {
		c.Key = ed25519.NewKeyFromSeed(s.Seed)
		for _, k := range s.Peers {
			c.Peers = append(c.Peers, k)
		}
	}
	n, err := dataport.NewNode(c)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node, p.diary = n, s.Diary
	return n.Addrs(), nil
}

// end closes the node; a goroutine that is left then is an error.
func (p *portProcess) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.node.Close(); err != nil {
		return err
	}
	return goleak.Find(goleak.IgnoreAnyFunction("mirror-agent/integration.portProcessMain"))
}

func (p *portProcess) register(name string) error {
	u := newPortUser(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if u.diary, err = openDiary(p.diary, name); err != nil {
		return err
	}
	r, err := p.node.Register(name, u)
	if err != nil {
		return err
	}
	u.reg = r
	p.clients[name] = u
	return nil
}

func (u *portUser) obey(o *portOrder) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch o.Do {
	case "open":
		return nil, u.open(ctx, o.Port)
	case "unregister":
		u.reg.Close()
		return nil, nil
	case "load":
		return nil, u.startLoad(o.Load)
	case "unload":
		return nil, u.stopLoad(o.Load.Stream)
	case "settled":
		return nil, u.settled(o.Within)
	case "stall":
		u.stall(o.On, o.To)
		return nil, nil
	case "rule":
		u.setRule(o.Rule)
		return nil, nil
	case "events":
		return u.eventsSince(o.To), nil
	case "ledger":
		return u.takeLedger(), nil
	case "stats":
		return u.view(), nil
	}
	port := u.thePort()
	if port == nil {
		return nil, fmt.Errorf("order %s: %s has no port", o.Do, u.name)
	}
	switch o.Do {
	case "send":
		_, err := port.Send(ctx, []byte("a message outside of the ledger"))
		return nil, err
	case "switch":
		return nil, port.Switch(ctx, o.To)
	case "suspend":
		return nil, port.Suspend()
	case "resume":
		return nil, port.Resume()
	case "reset":
		return nil, port.ResetPath(dataport.PathID(o.Path))
	case "add":
		return port.AddPath(o.Local, o.Addr)
	case "remove":
		return nil, port.RemovePath(dataport.PathID(o.Path))
	case "close":
		return nil, port.Close()
	}
	return nil, fmt.Errorf("no such order: %s", o.Do)
}

var errHasPort = errors.New("the client has a port already")

func (u *portUser) open(ctx context.Context, s *portSettings) error {
	c := dataport.PortConfig{Target: s.Target, Backups: s.Backups, UseAnnounced: s.Announced, Paths: s.Paths, ActivePaths: s.ActivePaths}
	if s.Auto {
		c.Switch = dataport.Auto
	}
	switch s.Scheduler {
	case "":
	case "round-robin":
		c.Scheduler = dataport.RoundRobin()
	default:
		return fmt.Errorf("no scheduler %q", s.Scheduler)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.port != nil {
		return errHasPort
	}
	p, err := u.reg.Open(ctx, c)
	if err != nil {
		return err
	}
	u.port = p
	return nil
}

func (u *portUser) thePort() *dataport.Port {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.port
}

// portView is what a client sees of its port, or of the newest session that came in.
type portView struct {
	State            string
	Index            int // of the target
	Target           string
	Sessions         uint64
	Session          string
	Paths            []pathView
	Queued, Buffered int
	Sent, Received   uint64 // messages of the session
	Duplicates       uint64 // frames
	Handed           uint64 // messages that OnMessage got, over all sessions
	HandedBytes      uint64
	Faults           []string
}

type pathView struct {
	ID             uint32
	Local, Remote  string
	State, Reason  string
	Sent, Received uint64
	Resent         uint64
	Rate           float64
	RTT            time.Duration
}

func (u *portUser) view() portView {
	var v portView
	var st dataport.Stats
	var paths []dataport.PathStats
	if p := u.thePort(); p != nil {
		ps := p.Stats()
		v.State, v.Index, v.Target, v.Sessions = ps.State.String(), ps.Index, ps.Target, ps.Sessions
		st, paths = ps.Session, ps.Paths
		if s := p.Session(); s != nil {
			v.Session = s.ID().String()
		}
	} else if s := u.session(true); s != nil {
		st = s.Stats()
		paths, v.Session = st.Paths, s.ID().String()
	}
	v.Queued, v.Buffered, v.Sent, v.Received, v.Duplicates = st.QueuedBytes, st.BufferedBytes, st.MessagesSent, st.MessagesReceived, st.DuplicateFrames
	for _, q := range paths {
		v.Paths = append(v.Paths, pathView{
			ID: uint32(q.ID), Local: q.Local, Remote: q.Remote, State: q.State.String(), Reason: q.Reason,
			Sent: q.BytesSent, Received: q.BytesReceived, Resent: q.ResentFrames, Rate: q.Rate, RTT: q.RTT,
		})
	}
	v.Handed, v.HandedBytes = u.handed.Load(), u.handedBytes.Load()
	u.mu.Lock()
	defer u.mu.Unlock()
	v.Faults = append(v.Faults, u.faults...)
	return v
}
