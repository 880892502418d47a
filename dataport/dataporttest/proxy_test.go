package dataporttest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// proxied is a connection through a proxy to an echo that also counts what it got.
func proxied(t *testing.T) (*Proxy, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	p := NewProxy(l.Addr().String())
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		p.Close()
		_ = l.Close()
		<-served
	})
	echo(t, c, "hello")
	return p, c
}

func echo(t *testing.T, c net.Conn, s string) {
	t.Helper()
	b := make([]byte, len(s))
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("read %q %v", b, err)
	}
}

func noEcho(t *testing.T, c net.Conn) {
	t.Helper()
	_, _ = c.Write([]byte("x"))
	_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want nothing", n, err)
	}
}

func TestProxy(t *testing.T) {
	p, c := proxied(t)
	if now, ever := p.Connections(); now != 1 || ever != 1 || p.Carried(Both) != 10 || p.Carried(Forward) != 5 {
		t.Errorf("%d connections, %d ever, carried %d", now, ever, p.Carried(Both))
	}
	p.Freeze(true)
	noEcho(t, c)
	p.Freeze(false)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.Delay(20 * time.Millisecond)
	p.Rate(1 << 20)
	start := time.Now()
	echo(t, c, "late")
	if d := time.Since(start); d < 40*time.Millisecond {
		t.Errorf("back after %v", d)
	}
	p.Cut()
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a connection that was cut", n)
	}
	p.Refuse(true)
	if c, err := net.Dial("tcp", p.Addr()); err == nil { // the proxy's own kernel takes it, the proxy resets it
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("refused, and it reads")
		}
		_ = c.Close()
	}
}

// A hole is for good, in the direction that lost bytes.
func TestProxyHole(t *testing.T) {
	for name, d := range map[string]Direction{"there": Forward, "back": Backward} {
		t.Run(name, func(t *testing.T) {
			p, c := proxied(t)
			before := p.Carried(Backward)
			p.BlackholeOneWay(d, true)
			noEcho(t, c)
			p.BlackholeOneWay(d, false)
			noEcho(t, c)
			if got := p.Carried(Backward) - before; got != 0 {
				t.Errorf("%d bytes came back", got)
			}
		})
	}
}
