package dataport_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-agent/dataport"
)

func secureConfig(name string, own ed25519.PrivateKey, peers []ed25519.PublicKey, listen ...string) dataport.Config {
	c := config(name, listen...)
	c.Insecure, c.Key, c.Peers = false, own, peers
	return c
}

func key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	k, err := dataport.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A host's key is changed while messages flow: both keys are let in, the host takes the new one, the old one goes.
func TestKeysChangeWhileItRuns(t *testing.T) {
	a, old, young := key(t), key(t), key(t)
	source, target := newRecorder(), newRecorder()
	tn := node(t, secureConfig("target", old, []ed25519.PublicKey{pub(a)}, "127.0.0.1:0", "127.0.0.1:0"))
	register(t, tn, target)
	sn := node(t, secureConfig("source", a, []ed25519.PublicKey{pub(old)}))
	p := open(t, register(t, sn, source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.PathUp, 2)
	first := p.Session()

	if err := sn.SetPeers([]ed25519.PublicKey{pub(old), pub(young)}); err != nil {
		t.Fatal(err)
	}
	if err := tn.SetKey(young); err != nil {
		t.Fatal(err)
	}
	sent := stream(t, p, 30)
	if got := target.ledgerOf(first.ID()); got != sent || p.Session() != first {
		t.Errorf("the session does not outlive its peer's key: %+v, want %+v", got, sent)
	}
	if first.Peer().Key != dataport.FormatPublicKey(pub(old)) {
		t.Errorf("peer's key %s", first.Peer().Key)
	}

	if err := sn.SetPeers([]ed25519.PublicKey{pub(young)}); err != nil {
		t.Fatal(err)
	}
	<-first.Done() // it belongs to the key that is gone
	if want := "the peer's key " + dataport.FormatPublicKey(pub(old)) + " is not allowed any more"; !strings.Contains(first.Err().Error(), want) {
		t.Errorf("it ended for another reason: %v", first.Err())
	}
	source.awaitEvent(t, dataport.SessionUp, 2)
	if got := p.Session().Peer().Key; got != dataport.FormatPublicKey(pub(young)) {
		t.Errorf("peer's key %s", got)
	}
	stream(t, p, 30)

	// And the accepting side: without the source's key nothing comes in any more.
	second := p.Session()
	if err := tn.SetPeers([]ed25519.PublicKey{pub(old)}); err != nil {
		t.Fatal(err)
	}
	<-second.Done()
	if e := source.awaitEvent(t, dataport.PeerRefused, 1); !strings.Contains(e.Reason, "does not accept our key") {
		t.Errorf("refused: %s", e.Reason)
	}
	if err := tn.SetPeers([]ed25519.PublicKey{pub(old), pub(a)}); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.SessionUp, 3)
}

func TestKeysThatCannotChange(t *testing.T) {
	plain := node(t, config("plain"))
	if err := errors.Join(plain.SetPeers([]ed25519.PublicKey{pub(key(t))}), plain.SetKey(key(t))); err == nil || strings.Count(err.Error(), "plain TCP") != 2 {
		t.Errorf("without TLS: %v", err)
	}
	a, b := key(t), key(t)
	n := node(t, secureConfig("node", a, []ed25519.PublicKey{pub(b)}))
	for _, bad := range [][]ed25519.PublicKey{nil, {}, {pub(b), pub(a)[:31]}} {
		if err := n.SetPeers(bad); err == nil || !strings.Contains(err.Error(), "peer key") {
			t.Errorf("%d keys: %v", len(bad), err)
		}
	}
	if err := n.SetKey(a[:10]); err == nil {
		t.Error("half a key")
	}
}

// Keys change all the time while sessions begin and end: whoever has a session in the end has a key that is let in.
func TestKeysChangeDuringHandshakes(t *testing.T) {
	a, b, c := key(t), key(t), key(t)
	tn := node(t, secureConfig("target", a, []ed25519.PublicKey{pub(c)}, "127.0.0.1:0"))
	target := newRecorder()
	register(t, tn, target)
	source := newRecorder()
	p := open(t, register(t, node(t, secureConfig("source", b, []ed25519.PublicKey{pub(a)})), source), dataport.PortConfig{Target: tn.Addrs(), Paths: 4})
	for i := range 40 {
		in := []ed25519.PublicKey{pub(c)}
		if i%2 == 0 {
			in = append(in, pub(b))
		}
		if err := tn.SetPeers(in); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
	}
	// The last word was no: whatever began meanwhile ends.
	target.await(t, "the end of every session", func() bool {
		up, down := 0, 0
		for _, e := range target.events {
			switch e.Kind {
			case dataport.SessionUp:
				up++
			case dataport.SessionDown:
				down++
			}
		}
		return up == down && up > 0
	})
	_ = p.Close()
}

// swapper forwards connections to addr; once it is told to, it sends what comes in on one connection out on another.
type swapper struct {
	l     net.Listener
	addr  string
	mu    sync.Mutex
	outs  []net.Conn
	cross atomic.Bool
	wg    sync.WaitGroup
}

func newSwapper(t *testing.T, addr string) *swapper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &swapper{l: l, addr: addr}
	s.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			s.mu.Lock()
			s.outs = append(s.outs, out)
			s.mu.Unlock()
			s.wg.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
			s.wg.Go(func() { s.forward(in, out); _ = in.Close(); _ = out.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, c := range s.outs {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func (s *swapper) forward(in, out net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := in.Read(b)
		if err != nil {
			return
		}
		to := out
		if s.cross.Load() {
			s.mu.Lock()
			to = s.outs[0]
			if out == s.outs[0] {
				to = s.outs[1]
			}
			s.mu.Unlock()
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// A man in the middle forwards the bytes of one TLS connection into another one of the same session: both break, nothing
// of it is taken for a message, and the stream goes on over new connections.
func TestSplicedConnections(t *testing.T) {
	a, b := key(t), key(t)
	source, target := newRecorder(), newRecorder()
	tn := node(t, secureConfig("target", a, []ed25519.PublicKey{pub(b)}, "127.0.0.1:0"))
	register(t, tn, target)
	middle := newSwapper(t, tn.Addrs()[0])
	p := open(t, register(t, node(t, secureConfig("source", b, []ed25519.PublicKey{pub(a)})), source), dataport.PortConfig{Target: []string{middle.l.Addr().String()}, Paths: 2})
	source.awaitEvent(t, dataport.PathUp, 2)
	s := p.Session()
	var sent ledger
	var wg sync.WaitGroup
	wg.Go(func() { sent = stream(t, p, 100) })
	target.await(t, "some messages", func() bool { return target.got[s.ID()] != nil && target.got[s.ID()].count > 10 })
	middle.cross.Store(true)
	down := target.awaitEvent(t, dataport.PathDown, 1)
	middle.cross.Store(false)
	wg.Wait()
	if !strings.Contains(down.Reason, "tls:") && !strings.Contains(down.Reason, "reset") && !strings.Contains(down.Reason, "EOF") {
		t.Errorf("the path broke for another reason: %s", down.Reason)
	}
	if got := target.ledgerOf(s.ID()); got != sent {
		t.Errorf("target got %+v, source sent %+v", got, sent)
	}
}

// Connections that say nothing come without end, from the peer's own address or another one. The peer gets in.
func TestFloodKeepsNoPeerOut(t *testing.T) {
	for _, row := range []struct {
		name, flood string
		known       bool // the peer was there before
		floods      int  // some 200 connections a second each
	}{
		{"from another host", "127.0.0.3", false, 6},
		{"from the peer's own host", "127.0.0.2", false, 1},
		{"from a thousand hosts, to a peer that is known", "", true, 6},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, b := key(t), key(t)
			tc := secureConfig("target", a, []ed25519.PublicKey{pub(b)}, "127.0.0.1:0")
			tc.Timing.HandshakeTimeout = 20 * time.Second // who gets a place could keep it for the whole test
			tn := node(t, tc)
			register(t, tn, newRecorder())
			sc := secureConfig("source", b, []ed25519.PublicKey{pub(a)})
			sc.LocalAddrs = []string{"127.0.0.2"}
			source := newRecorder()
			reg := register(t, node(t, sc), source)
			if row.known {
				p := open(t, reg, dataport.PortConfig{Target: tn.Addrs()})
				source.awaitEvent(t, dataport.SessionUp, 1)
				_ = p.Close()
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			var made atomic.Int64
			for range row.floods {
				wg.Go(func() { flood(ctx, &made, row.flood, tn.Addrs()[0]) })
			}
			defer wg.Wait()
			defer cancel()
			for made.Load() < 300 {
				time.Sleep(time.Millisecond)
			}
			n := 0
			if row.known {
				n = 1
			}
			open(t, reg, dataport.PortConfig{Target: tn.Addrs(), Paths: 3})
			source.awaitEvent(t, dataport.SessionUp, n+1)
			t.Logf("%d connections until the peer was in", made.Load())
		})
	}
}

// flood connects and says nothing; it holds on to the newest 300 connections.
func flood(ctx context.Context, made *atomic.Int64, local, addr string) {
	held := make([]net.Conn, 300)
	defer func() {
		for _, c := range held {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(5 * time.Millisecond)
		from := local
		if from == "" {
			from = fmt.Sprintf("127.1.%d.%d", i/250%4, 1+i%250)
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		_ = c.(*net.TCPConn).SetLinger(0) // no port stays in TIME_WAIT
		if old := held[i%len(held)]; old != nil {
			_ = old.Close()
		}
		held[i%len(held)] = c
		made.Add(1)
	}
}
