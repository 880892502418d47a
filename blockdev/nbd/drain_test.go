package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// drain runs Shutdown and returns once requests that are taken from now on come too late.
func drain(s *Server) (done chan error) {
	done = make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	for !s.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	return done
}

func stillRuns(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatal("Shutdown did not wait for a request in flight:", err)
	default:
	}
}

// told checks that a structured reply says said.
func (c *raw) told(said string) {
	c.t.Helper()
	if got, _ := c.structured(); got != said {
		c.t.Fatalf("told %q, not %q", got, said)
	}
}

func TestShutdownIsToldToStructuredClients(t *testing.T) {
	d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpWrite, blockdev.Rule{Times: 1})
	defer close(leave)
	s, path := start(t, Options{}, Export{Device: d})
	c, idle := connectStructured(t, path), connectStructured(t, path)
	idle.put(request(cmdFlush, 0, 1, 0, 0))
	idle.told("simple 0")
	c.put(request(cmdWrite, 0, 1, 0, 512, make([]byte, 512)))
	<-entered
	done := drain(s)
	idle.ended()
	c.put(request(cmdRead, 0, 2, 0, 512), request(cmdWrite, 0, 3, 0, 4, []byte("late")), request(cmdFlush, 0, 4, 0, 0))
	for range 3 {
		c.told("error 108")
	}
	stillRuns(t, done)
	// And it goes on so for as long as the request takes.
	for began := time.Now(); time.Since(began) < 3*shutdownGrace; {
		c.put(request(cmdRead, 0, 5, 0, 512))
		c.told("error 108")
	}
	leave <- nil
	c.told("simple 0")
	c.put(request(cmdDisc, 0, 0, 0, 0))
	c.ended()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Fatal("it still listens")
	}
}

// Linux takes every error for an I/O error, and asks again on its next connection whatever had no answer. So the end of a server is
// silent for it: what the device has is finished and answered, a write with FUA and a flush after their Sync; the rest is not.
func TestShutdownIsSilentToSimpleClients(t *testing.T) {
	memory := blockdev.NewMemory(mib, nil)
	slow, written, write := gate(memory, blockdev.OpWrite, blockdev.Rule{Times: 1})
	d, syncing, sync := gate(slow, blockdev.OpSync, blockdev.Rule{})
	defer close(write)
	defer close(sync)
	s, path := start(t, Options{}, Export{Device: d, MultiConn: true})
	idle, c, other := connect(t, path), connect(t, path), connect(t, path)
	idle.alive()
	other.put(request(cmdFlush, 0, 1, 0, 0))
	<-syncing
	c.put(request(cmdWrite, cmdFlagFUA, 1, 0, 5, []byte("early")))
	<-written
	c.alive() // there is a new leader, which has everything that was sent until now
	done := drain(s)
	idle.ended()
	idle.Close()
	for _, late := range []*raw{c, other} { // no checks: it may be closed already
		go late.Write(bytes.Join([][]byte{
			request(cmdRead, 0, 2, 0, 512), request(cmdWrite, 0, 3, 4096, 4, []byte("late")), request(cmdFlush, 0, 4, 0, 0),
			request(77, 0, 5, 0, 0), request(cmdDisc, 0, 0, 0, 0),
		}, nil))
	}
	stillRuns(t, done)
	sync <- nil
	other.expect(0, 1)
	other.ended()
	other.Close()
	stillRuns(t, done)
	write <- nil
	<-syncing // FUA was accepted before
	stillRuns(t, done)
	sync <- nil
	c.expect(0, 1)
	c.ended()
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("it still listens")
	}
	got := make([]byte, 4100)
	if _, err := memory.ReadAt(got, 0); err != nil || string(got[:5]) != "early" || !bytes.Equal(got[4096:], make([]byte, 4)) {
		t.Errorf("the device holds %q and %q, %v", got[:5], got[4096:], err)
	}
	if st := s.Stats(); st.Errors != 0 || st.FUAs != 1 || st.Flushes != 1 || st.Writes != 1 || st.Reads != 2 {
		t.Errorf("%+v", st)
	}
}

// A request that is here in part only when the server begins to drain is not waited for, and never given to the device.
func TestShutdownDropsHalfARequest(t *testing.T) {
	large := request(cmdWrite, 0, 1, 0, mib, pattern(mib, 1))
	for name, half := range map[string][]byte{
		"a part of the header":           request(cmdWrite, 0, 1, 0, 4, []byte("late"))[:10],
		"no payload":                     request(cmdWrite, 0, 1, 0, 4),
		"a part of the payload":          request(cmdWrite, 0, 1, 0, 4, []byte("la")),
		"a part of a large payload":      large[:len(large)/2],
		"a large one after its header":   large[:requestSize],
		"a refused one's payload":        request(cmdWrite, 0, 1, 1<<40, 4096, []byte("late")),
		"a large one, all but the end":   large[:len(large)-1],
		"a complete one and half of one": append(request(cmdWrite, 0, 2, 4096, 4, []byte("full")), request(cmdWrite, 0, 1, 0, 4)...),
	} {
		t.Run(name, func(t *testing.T) {
			d := blockdev.NewMemory(mib, nil)
			s, path := start(t, Options{HandshakeTimeout: 10 * patience}, Export{Device: d})
			c := connect(t, path)
			c.alive()
			c.put(half)
			if bytes.Contains(half, []byte("full")) {
				c.expect(0, 2)
			}
			done := drain(s)
			c.ended()
			c.Close()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			var got [4]byte
			if d.ReadAt(got[:], 0); got != [4]byte{} {
				t.Fatalf("%x was written", got)
			}
			if st := s.Stats(); st.Errors != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Close says that the server drains before it closes the connections. Who asks in between is not told so either.
func TestCloseIsSilentToSimpleClients(t *testing.T) {
	s, path := start(t, Options{}, Export{Device: blockdev.NewMemory(mib, nil)})
	simple, structured := connect(t, path), connectStructured(t, path)
	simple.alive()
	s.draining.Store(true) // as far as Close has come when it waits for a lock
	structured.put(request(cmdFlush, 0, 1, 0, 0))
	structured.told("error 108")
	simple.put(request(cmdWrite, 0, 1, 0, 4, []byte("late")), request(cmdFlush, 0, 2, 0, 0))
	simple.ended()
	s.Close()
	structured.ended()
}

// The last replies arrive, although there are requests in the socket that nobody will read: a reset would throw them away.
func TestShutdownDeliversTheLastReplies(t *testing.T) {
	const size = 4 * mib
	d, entered, leave := gate(blockdev.NewMemory(size, nil), blockdev.OpRead, blockdev.Rule{})
	defer close(leave)
	s, address := startTCP(t, Options{}, Export{Device: d})
	c := connectTCP(t, address)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil { // so that they lie on the server's side
		t.Fatal(err)
	}
	c.put(request(cmdRead, 0, 1, 0, size))
	<-entered
	done := drain(s)
	for i := range uint64(100) {
		if _, err := c.Write(request(cmdRead, 0, 2+i, 0, 512)); err != nil {
			t.Fatal("a connection with a request under way was closed:", err)
		}
	}
	leave <- nil
	c.expect(0, 1)
	if n, err := io.Copy(io.Discard, io.LimitReader(c, size)); n != size {
		t.Fatalf("%d of %d bytes of the last reply, %v", n, size, err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Error("after the last reply:", n, err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestShutdownGivesUp(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, string) *raw{"simple": connect, "structured": connectStructured} {
		t.Run(name, func(t *testing.T) {
			d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpWrite, blockdev.Rule{Times: 1})
			s, path := start(t, Options{}, Export{Device: d})
			c := connect(t, path)
			c.put(request(cmdWrite, 0, 1, 0, 512, make([]byte, 512)))
			<-entered
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			c.ended()
			leave <- nil
		})
	}
}

// polite is a server's end of a connection that tells how it was ended.
type polite struct {
	net.Conn
	half  chan struct{} // closed by CloseWrite
	early chan struct{} // closed when it was closed and the client had not hung up
	ended bool
}

func (p *polite) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.ended = p.ended || err == io.EOF
	return n, err
}

func (p *polite) CloseWrite() error {
	close(p.half)
	return p.Conn.(*net.TCPConn).CloseWrite()
}

func (p *polite) Close() error {
	select {
	case <-p.early:
	default:
		if !p.ended {
			close(p.early)
		}
	}
	return p.Conn.Close()
}

type politeListener struct {
	net.Listener
	p *polite
}

func (l politeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.p.Conn = c
	return l.p, nil
}

// So do those to a structured client that never stops asking: it had been closed at once when its time was over, with its requests in the socket.
func TestShutdownDeliversTheLastStructuredReplies(t *testing.T) {
	const size = mib
	memory := blockdev.NewMemory(size, nil)
	data := pattern(size, 1)
	if _, err := memory.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	d, entered, leave := gate(memory, blockdev.OpRead, blockdev.Rule{Times: 1})
	defer close(leave)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, p, served := NewServer(Options{}, Export{Device: d}), &polite{half: make(chan struct{}), early: make(chan struct{})}, make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), politeListener{tcp, p}) }()
	nc, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	c := &raw{t, nc}
	defer func() { c.Close(); s.Close(); s.Wait(); <-served }()
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.structure()
	c.option(optGo, goData("")...)
	for kind, _ := c.answer(optGo); kind != repAck; kind, _ = c.answer(optGo) {
	}
	c.put(request(cmdRead, 0, 1, 0, size))
	<-entered
	done := drain(s)
	asked := make(chan error, 1)
	go func() {
		for {
			select {
			case <-p.half:
				asked <- nil
				return
			case <-p.early:
				asked <- errors.New("closed with requests in the socket")
				return
			default:
			}
			if _, err := nc.Write(request(cmdRead, 0, 2, 0, 512)); err != nil {
				asked <- err
				return
			}
		}
	}()
	leave <- nil
	for {
		cookie, said, got := c.answered()
		if cookie == 1 {
			if !bytes.Equal(got, data) {
				t.Errorf("the last reply was %.40q with %d bytes", said, len(got))
			}
			break
		}
	}
	rest := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, nc)
		rest <- err
	}()
	if err := <-asked; err != nil {
		t.Error("a client that asks on:", err)
	}
	if err := <-rest; err != nil {
		t.Error("after the last reply:", err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// lateDeadline is a connection whose first deadline is set late.
type lateDeadline struct {
	net.Conn
	first  bool
	before func()
	kicked chan struct{}
}

func (l *lateDeadline) SetDeadline(at time.Time) error {
	if !l.first {
		l.first = true
		l.before()
	}
	return l.Conn.SetDeadline(at)
}

func (l *lateDeadline) SetReadDeadline(at time.Time) error {
	err := l.Conn.SetReadDeadline(at)
	select {
	case l.kicked <- struct{}{}:
	default:
	}
	return err
}

// A connection that was accepted just before Shutdown set the deadline of its handshake just after: a client that says nothing then delayed the
// end of the server by all of it.
func TestShutdownEndsAHandshakeThatBegins(t *testing.T) {
	s := NewServer(Options{HandshakeTimeout: 10 * patience}, Export{Device: blockdev.NewMemory(mib, nil)})
	client, server := net.Pipe()
	defer client.Close()
	go io.Copy(io.Discard, client)
	var done chan error
	draining := make(chan struct{})
	late := &lateDeadline{Conn: server, kicked: make(chan struct{}, 1)}
	late.before = func() {
		done = drain(s)
		<-late.kicked
		close(draining)
	}
	s.accept(late)
	<-draining
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Shutdown waits for a client that says nothing")
		s.Close()
		<-done
	}
}
