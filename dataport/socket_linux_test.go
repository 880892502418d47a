package dataport

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Both ends of a path have what tuneSocket sets, also after they were taken out of the runtime's poller; and the one that sends has more of it
// unsent once it is fast.
func TestPathSockets(t *testing.T) {
	conf := DefaultConfig()
	conf.Insecure, conf.Listen = true, []string{"127.0.0.1:0"}
	target, err := NewNode(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	conf.Listen = nil
	source, err := NewNode(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	accepted := make(chan net.Conn, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	dialled, err := source.conf.Dial(t.Context(), "", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for end, c := range map[string]net.Conn{"source": source.fit(dialled), "target": target.fit(<-accepted)} {
		defer c.Close()
		w := &wire{raw: c}
		if err := w.establish(); err != nil {
			t.Fatal(err)
		}
		option := func(level, name int) (v int) {
			raw, err := c.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if e := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }); e != nil || err != nil {
				t.Fatal(e, err)
			}
			return v
		}
		for _, o := range []struct {
			name            string
			level, of, want int
		}{
			{"TCP_NOTSENT_LOWAT", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowBytes},
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((conf.Timing.UnreachableAfter + 2*time.Second).Milliseconds())},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
		} {
			if got := option(o.level, o.of); got != o.want {
				t.Errorf("%s: %s is %d, not %d", end, o.name, got, o.want)
			}
		}
		setNotSentLow(c, 2*notSentLowBytes)
		if got := option(unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); got != 2*notSentLowBytes {
			t.Errorf("%s: TCP_NOTSENT_LOWAT is %d after it was set", end, got)
		}
	}
}
