package main

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// echo answers every byte with itself.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func say(c net.Conn, word string, patience time.Duration) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(word)))
	return err
}

func TestCutter(t *testing.T) {
	p, err := newCutter("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const long, short = 10 * time.Second, 50 * time.Millisecond
	c := dial()
	if err := say(c, "hello", long); err != nil {
		t.Fatal(err)
	}
	// They are counted when they have passed, which the client may see first.
	for deadline := time.Now().Add(long); p.bytes.Load() != 10; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes counted, want 10", p.bytes.Load())
		}
	}
	p.sever()
	// Silent: no answer, and no error either.
	if err := say(c, "anybody?", short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("cut: %v", err)
	}
	if err := say(dial(), "new", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection while cut: %v", err)
	}
	p.mend()
	// What was held back never arrives.
	c.SetDeadline(time.Now().Add(long))
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q arrived after all (%v)", b, err)
	}
	if err := say(dial(), "again", long); err != nil {
		t.Errorf("mended: %v", err)
	}
}
