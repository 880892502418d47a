package dataport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func publicOf(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// lines is a log that can be asked.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually asks until ok; a busy machine may take its time.
func eventually(t *testing.T, what func() string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what())
		}
	}
}

// keyedNode listens with TLS; its handshake deadline is short.
func keyedNode(t *testing.T, own ed25519.PrivateKey, peers ...ed25519.PrivateKey) (*Node, *lines) {
	t.Helper()
	log := &lines{}
	n := plainNode(t, func(c *Config) {
		c.Insecure, c.Key, c.Log = false, own, zerolog.New(log)
		for _, p := range peers {
			c.Peers = append(c.Peers, publicOf(p))
		}
		// Hours: sessions made by hand send no heartbeats and shall live.
		c.Timing.Heartbeat, c.Timing.SuspectAfter, c.Timing.PathDownAfter, c.Timing.UnreachableAfter = time.Hour, 2*time.Hour, 3*time.Hour, 4*time.Hour
	})
	return n, log
}

func certOf(t *testing.T, k ed25519.PrivateKey) tls.Certificate {
	t.Helper()
	c, err := certificateOf(k)
	if err != nil {
		t.Fatal(err)
	}
	return *c
}

func ecdsaCert(t *testing.T) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// clientWith is TLS as a peer talks it, with whatever certificates.
func clientWith(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, Certificates: certs, NextProtos: []string{"mirror-agent-dataport/1"}}
}

func dialRaw(t *testing.T, n *Node) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// recordedJoin is a join as it goes over plain TCP: a proof over a nonce, good for a session without keys.
func recordedJoin(n *Node) []byte {
	h := n.helloFor(helloJoin, nil, 77, 2)
	h.client, h.nonce = "test", random32()
	h.proof = joinProof([32]byte{5}, roleDials, h.nonce[:], 77, 2)
	body := h.encode()
	head := header{typ: frameHello, session: 77, client: clientID("test"), payload: uint32(len(body)), payloadHash: sumOf(body)}
	b := make([]byte, headerBytes)
	head.encode(b)
	return append(b, body...)
}

// What is not a peer comes nowhere: the connection is closed, the log says why, no session begins.
func TestStrangersAtATLSPort(t *testing.T) {
	own, peer, other := newKey(t), newKey(t), newKey(t)
	tlsThen := func(conf func(*testing.T) *tls.Config, then func(*testing.T, *tls.Conn, *Node)) func(*testing.T, net.Conn, *Node) {
		return func(t *testing.T, c net.Conn, n *Node) {
			s := tls.Client(c, conf(t))
			if err := s.Handshake(); err == nil && then != nil {
				then(t, s, n)
			}
		}
	}
	right := func(t *testing.T) *tls.Config { return clientWith(certOf(t, peer)) }
	for _, row := range []struct {
		name, want string
		do         func(*testing.T, net.Conn, *Node)
	}{
		{"a key that is not pinned", "presented key " + FormatPublicKey(publicOf(other)) + ", expected one of " + FormatPublicKey(publicOf(peer)), tlsThen(func(t *testing.T) *tls.Config { return clientWith(certOf(t, other)) }, nil)},
		{"the right key's certificate without its private key", "invalid signature", tlsThen(func(t *testing.T) *tls.Config {
			c := certOf(t, peer)
			c.PrivateKey = other
			return clientWith(c)
		}, nil)},
		{"a key of another type", "presented a *ecdsa.PublicKey", tlsThen(func(t *testing.T) *tls.Config { return clientWith(ecdsaCert(t)) }, nil)},
		{"no certificate", "didn't provide a certificate", tlsThen(func(*testing.T) *tls.Config { return clientWith() }, nil)},
		{"TLS 1.2", "unsupported versions", tlsThen(func(t *testing.T) *tls.Config {
			c := right(t)
			c.MaxVersion = tls.VersionTLS12
			return c
		}, nil)},
		{"another protocol inside TLS", "unsupported application protocols", tlsThen(func(t *testing.T) *tls.Config {
			c := right(t)
			c.NextProtos = []string{"h2"}
			return c
		}, nil)},
		{"plain TCP", "does not seem to talk TLS", func(_ *testing.T, c net.Conn, n *Node) {
			h := n.helloFor(helloOpen, nil, 9, 1)
			h.client = "test"
			_ = (&wire{raw: c}).sendHello(h)
		}},
		{"a join recorded on a port without TLS", "does not seem to talk TLS", func(_ *testing.T, c net.Conn, n *Node) { _, _ = c.Write(recordedJoin(n)) }},
		{"that, within TLS and with the right key", "session 000000000000004d is not known", tlsThen(right, func(_ *testing.T, s *tls.Conn, n *Node) { _, _ = s.Write(recordedJoin(n)) })},
		{"a record beyond what TLS allows", "oversized record", func(_ *testing.T, c net.Conn, _ *Node) {
			_, _ = c.Write(append([]byte{22, 3, 1, 0xff, 0xff}, make([]byte, 70_000)...))
		}},
		{"a first message of TLS that claims 16 MiB", "handshake message of length 16777215 bytes exceeds maximum", func(_ *testing.T, c net.Conn, _ *Node) {
			_, _ = c.Write([]byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff})
		}},
		{"the right key and a hello beyond the limit", "payload of 1048576 bytes", tlsThen(right, func(_ *testing.T, s *tls.Conn, _ *Node) {
			h := header{typ: frameHello, payload: 1 << 20}
			b := make([]byte, headerBytes)
			h.encode(b)
			_, _ = s.Write(append(b, make([]byte, 100_000)...))
		})},
		{"the right key and data before the hello", "frame of type 2 before the hello", tlsThen(right, func(_ *testing.T, s *tls.Conn, _ *Node) {
			h := header{typ: frameData, flags: flagFirst | flagLast, session: 1, seq: 1}
			b := make([]byte, headerBytes)
			h.encode(b)
			_, _ = s.Write(b)
		})},
		{"silence", "i/o timeout", func(*testing.T, net.Conn, *Node) {}},
		{"a byte now and then", "i/o timeout", func(t *testing.T, c net.Conn, _ *Node) { trickle(t, c, []byte{22, 3, 1, 0xf, 0xff}) }},
		{"the right key and a byte of hello now and then", "i/o timeout", tlsThen(right, func(t *testing.T, s *tls.Conn, n *Node) { trickle(t, s, recordedJoin(n)) })},
	} {
		t.Run(row.name, func(t *testing.T) {
			n, log := keyedNode(t, own, peer)
			c := dialRaw(t, n)
			row.do(t, c, n)
			closedBy(t, c, 20*time.Second)
			eventually(t, log.String, func() bool { return strings.Contains(log.String(), row.want) })
			if len(n.sessionsOf(nil)) != 0 {
				t.Error("a session came of it")
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.door.friends) != 0 {
				t.Error("it counts as a friend from now on")
			}
		})
	}
}

// trickle sends slowly, within the deadline of every byte and beyond that of the handshake, until the other side has enough.
func trickle(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		one := []byte{0}
		if len(b) > 0 {
			one[0], b = b[0], b[1:]
		}
		if _, err := c.Write(one); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Error("it may go on for ever")
			return
		}
	}
}

// The other way round: a port that dials whatever is not its peer says so, and gets no session.
func TestPortMeetsStrangers(t *testing.T) {
	own, peer, other := newKey(t), newKey(t), newKey(t)
	server := func(conf *tls.Config, then func(net.Conn)) func(*testing.T) string {
		return func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						defer c.Close()
						if conf == nil {
							then(c)
						} else if s := tls.Server(c, conf); s.Handshake() == nil && then != nil {
							then(s)
						}
					})
				}
			})
			t.Cleanup(func() { _ = l.Close(); wg.Wait() })
			return l.Addr().String()
		}
	}
	with := func(cert tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"mirror-agent-dataport/1"}}
	}
	old := with(certOf(t, peer))
	old.MaxVersion = tls.VersionTLS12
	for _, row := range []struct {
		name, want string
		serve      func(*testing.T) string
		plain      bool // the port has no TLS
	}{
		{name: "a key that is not pinned", want: "presented key " + FormatPublicKey(publicOf(other)), serve: server(with(certOf(t, other)), nil)},
		{name: "a key of another type", want: "presented a *ecdsa.PublicKey", serve: server(with(ecdsaCert(t)), nil)},
		{name: "TLS 1.2", want: "protocol version", serve: server(old, nil)},
		{name: "it does not accept our key", want: "does not accept our key", serve: func(t *testing.T) string {
			n, _ := keyedNode(t, peer, other)
			return n.Addrs()[0]
		}},
		{name: "a port without TLS", want: "does not seem to talk TLS", serve: func(t *testing.T) string { return plainNode(t, nil).Addrs()[0] }},
		{name: "a server of another kind", want: "does not seem to talk TLS", serve: server(nil, func(c net.Conn) { _, _ = c.Write([]byte("220 mail.example ESMTP\r\n")) })},
		{name: "we have no TLS and it has", want: "it talks TLS", plain: true, serve: func(t *testing.T) string {
			n, _ := keyedNode(t, peer, own)
			return n.Addrs()[0]
		}},
		{name: "a byte now and then", want: "timeout", serve: server(nil, func(c net.Conn) { trickle(t, c, []byte{22, 3, 3, 0xf, 0xff}) })},
		{name: "the right key, then a byte now and then", want: "timeout", serve: server(with(certOf(t, peer)), func(c net.Conn) { trickle(t, c, nil) })},
	} {
		t.Run(row.name, func(t *testing.T) {
			addr := row.serve(t)
			c := DefaultConfig()
			c.Key, c.Peers, c.Insecure = own, []ed25519.PublicKey{publicOf(peer)}, row.plain
			c.Timing.HandshakeTimeout = 300 * time.Millisecond
			n, err := NewNode(c)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			r, err := n.Register("test", deafClient{})
			if err != nil {
				t.Fatal(err)
			}
			p, err := r.Open(context.Background(), PortConfig{Target: []string{addr}})
			if err != nil {
				t.Fatal(err)
			}
			reason := func() string { return p.Stats().Paths[0].Reason }
			eventually(t, reason, func() bool { return strings.Contains(reason(), row.want) })
			if p.Session() != nil || len(n.sessionsOf(nil)) != 0 {
				t.Error("a session came of it")
			}
		})
	}
}

// byHand is a peer that has opened a session and knows its secret.
type byHand struct {
	n      *Node // dials; same keys as the peer that it plays
	id     SessionID
	secret [32]byte
}

func (b *byHand) connect(t *testing.T, to *Node) *wire {
	t.Helper()
	w, err := b.n.secure(context.Background(), dialRaw(t, to), true)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func openByHand(t *testing.T, n, to *Node) *byHand {
	t.Helper()
	b := &byHand{n: n}
	w := b.connect(t, to)
	h := n.helloFor(helloOpen, nil, SessionID(randomID()), 1)
	h.client, h.port = "test", randomID()
	a, err := w.ask(h)
	if err != nil {
		t.Fatal(err)
	}
	b.id, b.secret = h.session, sessionSecret(w.binding, h.session, n.incarnation, a.incarnation)
	return b
}

func (b *byHand) joinHello(path PathID, id SessionID, secret [32]byte, binding []byte) *hello {
	h := b.n.helloFor(helloJoin, nil, id, path)
	h.client = "test"
	h.proof = joinProof(secret, roleDials, binding, id, path)
	return h
}

// A connection becomes a path of the session whose secret it proves on that very connection, and of no other.
func TestPathsAreBoundToTheirSession(t *testing.T) {
	own, peer, third := newKey(t), newKey(t), newKey(t)
	n, _ := keyedNode(t, own, peer, third)
	asPeer, _ := keyedNode(t, peer, own)
	asThird, _ := keyedNode(t, third, own)
	a, b := openByHand(t, asPeer, n), openByHand(t, asPeer, n)
	c := openByHand(t, asThird, n)
	recorded := func() *hello { // a join that is as good as can be, and was accepted
		w := a.connect(t, n)
		h := a.joinHello(2, a.id, a.secret, w.binding)
		if _, err := w.ask(h); err != nil {
			t.Fatal(err)
		}
		return h
	}()
	for _, row := range []struct {
		name string
		from *byHand
		ask  func(w *wire) *hello
		want RefuseCode
	}{
		{"the right key, another session's secret", a, func(w *wire) *hello { return a.joinHello(3, b.id, a.secret, w.binding) }, RefusedProof},
		{"the right key and a session that is no more", a, func(w *wire) *hello { return a.joinHello(3, 12345, a.secret, w.binding) }, RefusedNoSession},
		{"the right proof for another path", a, func(w *wire) *hello {
			h := a.joinHello(3, a.id, a.secret, w.binding)
			h.path = 4
			return h
		}, RefusedProof},
		{"a recorded join again", a, func(*wire) *hello { return recorded }, RefusedProof},
		{"a proof over the nonce, as without TLS", a, func(w *wire) *hello {
			h := a.joinHello(3, a.id, a.secret, nil)
			h.nonce = random32()
			h.proof = joinProof(a.secret, roleDials, h.nonce[:], a.id, 3)
			return h
		}, RefusedProof},
		{"the proof that the accepting side gives", a, func(w *wire) *hello {
			h := a.joinHello(3, a.id, a.secret, w.binding)
			h.proof = joinProof(a.secret, roleAccepts, w.binding, a.id, 3)
			return h
		}, RefusedProof},
		{"a man in the middle with a key of his own passes a join on", c, func(*wire) *hello {
			// The victim talked TLS to him: its proof is over that connection's binding.
			middle, _ := keyedNode(t, third, peer)
			w, err := asPeer.secureTo(middle, third)
			if err != nil {
				t.Fatal(err)
			}
			return a.joinHello(3, a.id, a.secret, w.binding)
		}, RefusedNoSession},
		{"the secret was stolen, the key was not", c, func(w *wire) *hello { return a.joinHello(3, a.id, a.secret, w.binding) }, RefusedNoSession},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := row.from.connect(t, n)
			_, err := w.ask(row.ask(w))
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Code != row.want {
				t.Errorf("answer %v, want refusal %d", err, row.want)
			}
		})
	}
	for _, s := range n.sessionsOf(nil) {
		want := 1
		if s.id == a.id {
			want = 2
		}
		if got := len(s.Stats().Paths); got != want {
			t.Errorf("session %s has %d paths, want %d", s.id, got, want)
		}
	}
}

// secureTo talks TLS to another node and takes any of the keys for its peer's.
func (n *Node) secureTo(to *Node, keys ...ed25519.PrivateKey) (*wire, error) {
	c, err := net.Dial("tcp", to.Addrs()[0])
	if err != nil {
		return nil, err
	}
	var peers []ed25519.PublicKey
	for _, k := range keys {
		peers = append(peers, publicOf(k))
	}
	if err := n.SetPeers(peers); err != nil {
		return nil, err
	}
	defer c.Close()
	return n.secure(context.Background(), c, true)
}

// A key goes between the handshake of TLS and the hello: what comes of it does not stay.
func TestKeyGoesDuringAHandshake(t *testing.T) {
	own, peer, other := newKey(t), newKey(t), newKey(t)
	n, _ := keyedNode(t, own, peer)
	asPeer, _ := keyedNode(t, peer, own)

	set := func(k ed25519.PrivateKey) {
		if err := n.SetPeers([]ed25519.PublicKey{publicOf(k)}); err != nil {
			t.Fatal(err)
		}
	}
	for pause := time.Millisecond; ; pause *= 2 {
		set(peer)
		w := (&byHand{n: asPeer}).connect(t, n)
		time.Sleep(pause) // the server's half of the handshake ends after ours (RFC 8446, 2)
		set(other)
		h := asPeer.helloFor(helloOpen, nil, SessionID(randomID()), 1)
		h.client, h.port = "test", randomID()
		_, err := w.ask(h)
		closedBy(t, w.raw, 20*time.Second)
		eventually(t, func() string { return "a session goes on" }, func() bool { return len(n.sessionsOf(nil)) == 0 })
		if err == nil {
			return // it was in time, and got its answer
		}
		if pause > 10*time.Second {
			t.Fatal(err)
		}
	}
}
