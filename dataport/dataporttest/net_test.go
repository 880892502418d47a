package dataporttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const addr = "host:1"

// link2 is a network with one connection: a dialled, b accepted.
type link2 struct {
	*Net
	t    *testing.T
	l    net.Listener
	a, b net.Conn
	t0   time.Time
}

// bubble runs f on a fresh connection, on the bubble's clock.
func bubble(t *testing.T, f func(t *testing.T, w *link2)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &link2{Net: NewNet(), t: t}
		var err error
		if w.l, err = w.Listen(addr); err != nil {
			t.Fatal(err)
		}
		if w.a, err = w.Dial(context.Background(), "", addr); err != nil {
			t.Fatal(err)
		}
		if w.b, err = w.l.Accept(); err != nil {
			t.Fatal(err)
		}
		w.t0 = time.Now()
		f(t, w)
		_, _, _ = w.a.Close(), w.b.Close(), w.l.Close()
	})
}

func (w *link2) at(d time.Duration) {
	w.t.Helper()
	if got := time.Since(w.t0); got != d {
		w.t.Errorf("after %v, want %v", got, d)
	}
}

func (w *link2) write(c net.Conn, s string) {
	w.t.Helper()
	if n, err := c.Write([]byte(s)); err != nil || n != len(s) {
		w.t.Fatalf("write %q: %d %v", s, n, err)
	}
}

func (w *link2) reads(c net.Conn, want string) {
	w.t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); string(b) != want {
		w.t.Fatalf("read %q %v, want %q", b[:n], err, want)
	}
}

// silent expects nothing for d.
func (w *link2) silent(c net.Conn, d time.Duration) {
	w.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("read %d bytes, %v; want silence", n, err)
	}
	_ = c.SetReadDeadline(time.Time{})
}

func (w *link2) fails(c net.Conn, want error) {
	w.t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
		w.t.Fatalf("read %d bytes, %v; want %v", n, err, want)
	}
}

func TestDelay(t *testing.T) {
	bubble(t, func(_ *testing.T, w *link2) {
		w.Delay(addr, 30*time.Millisecond)
		w.write(w.a, "ab")
		w.at(0)
		w.reads(w.b, "ab")
		w.at(30 * time.Millisecond)
		w.write(w.b, "c")
		w.reads(w.a, "c")
		w.at(60 * time.Millisecond)
		c, err := w.Dial(context.Background(), "10.0.0.7", addr) // there and back
		if err != nil || c.LocalAddr().String() != "10.0.0.7" {
			w.t.Fatalf("dial: %v", err)
		}
		w.at(120 * time.Millisecond)
		_ = c.Close()
	})
}

func TestJitterKeepsTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		w.Jitter(addr, 10*time.Millisecond, 20*time.Millisecond)
		gaps := map[time.Duration]bool{}
		for i := range 50 {
			w.write(w.a, string(rune('A'+i)))
		}
		for i := range 50 {
			w.reads(w.b, string(rune('A'+i)))
			gaps[time.Since(w.t0)] = true
		}
		if d := time.Since(w.t0); d < 10*time.Millisecond || d >= 30*time.Millisecond || len(gaps) < 3 {
			t.Errorf("last after %v, %d different times", d, len(gaps))
		}
	})
}

func TestRate(t *testing.T) {
	bubble(t, func(_ *testing.T, w *link2) {
		w.Rate(addr, Forward, 100_000)
		data := string(bytes.Repeat([]byte("x"), 50_000))
		w.write(w.a, data)
		w.reads(w.b, data[:pieceBytes]) // bytes come as they pass, not in one go
		w.at(pieceBytes * time.Second / 100_000)
		w.reads(w.b, data[pieceBytes:])
		w.at(500 * time.Millisecond)
		w.write(w.b, data) // the way back has no limit
		w.reads(w.a, data)
		w.at(500 * time.Millisecond)
		w.write(w.a, data)
		w.Rate(addr, Both, 0) // also for what waits, but the piece that is on the wire
		w.reads(w.b, data)
		w.at(500*time.Millisecond + pieceBytes*time.Second/100_000)
	})
}

// A hole: for good, or until TCP repeats at 200, 600, 1400… ms after the first loss.
func TestBlackhole(t *testing.T) {
	for _, row := range []struct {
		name       string
		retransmit bool
		holds      time.Duration
		comes      time.Duration
	}{
		{"forgotten", false, 100 * time.Millisecond, 0},
		{"short", true, 100 * time.Millisecond, 200 * time.Millisecond},
		{"longer", true, 300 * time.Millisecond, 600 * time.Millisecond},
		{"longest", true, 1500 * time.Millisecond, 3 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(_ *testing.T, w *link2) {
				w.Retransmit(addr, row.retransmit)
				w.Blackhole(addr, Forward)
				w.write(w.a, "one")
				w.write(w.b, "back") // the other way is whole
				w.reads(w.a, "back")
				time.Sleep(row.holds)
				w.Blackhole(addr, 0)
				w.write(w.a, "two")
				if row.comes == 0 {
					w.silent(w.b, time.Hour)
					return
				}
				w.reads(w.b, "onetwo")
				w.at(row.comes)
			})
		})
	}
}

func TestHoleTakesWhatIsOnItsWay(t *testing.T) {
	bubble(t, func(_ *testing.T, w *link2) {
		w.Retransmit(addr, true)
		w.write(w.a, "here")
		w.Delay(addr, 50*time.Millisecond)
		w.write(w.a, "under way")
		time.Sleep(10 * time.Millisecond)
		w.Blackhole(addr, Forward)
		w.reads(w.b, "here")
		time.Sleep(100 * time.Millisecond)
		w.Blackhole(addr, 0)
		w.reads(w.b, "under way")
		w.at(260 * time.Millisecond) // lost at 10, repeated 200 later, 50 on its way
	})
}

// Bytes that are read but whose acknowledgements are lost fill the sender's socket.
func TestHoleOnTheWayBackFillsTheSocket(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		w.Blackhole(addr, Backward)
		go func() { _, _ = io.Copy(io.Discard, w.b) }()
		_ = w.a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := w.a.Write(make([]byte, 1<<20))
		if n != socketBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v", n, err)
		}
		w.at(time.Second)
		_ = w.a.SetWriteDeadline(time.Time{})
		w.Blackhole(addr, 0)
		w.write(w.a, "on")
		w.at(time.Second)
	})
}

func TestSocketIsBounded(t *testing.T) {
	for name, fault := range map[string]func(w *link2){
		"nobody reads": func(*link2) {},
		"stalled":      func(w *link2) { w.Stall(addr, Both) },
		"hole":         func(w *link2) { w.Retransmit(addr, true); w.Blackhole(addr, Forward) },
		"hole for good": func(w *link2) {
			w.Blackhole(addr, Forward)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *link2) {
				fault(w)
				_ = w.a.SetDeadline(time.Now().Add(time.Second))
				if n, err := w.a.Write(make([]byte, 1<<20)); n != socketBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("wrote %d, %v", n, err)
				}
				w.at(time.Second)
			})
		})
	}
}

func TestStall(t *testing.T) {
	bubble(t, func(_ *testing.T, w *link2) {
		w.Stall(addr, Both)
		w.write(w.a, "x")
		w.write(w.b, "y")
		w.silent(w.b, time.Second)
		w.write(w.a, "z")
		w.Stall(addr, 0)
		w.reads(w.b, "xz")
		w.reads(w.a, "y")
		w.at(time.Second)
	})
}

func TestCut(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		w.write(w.a, "lost")
		w.Cut(addr)
		w.fails(w.a, errReset)
		w.fails(w.b, errReset)
		if _, err := w.a.Write([]byte("x")); !errors.Is(err, errReset) {
			t.Errorf("write: %v", err)
		}
		if now, ever := w.Connections(addr); now != 0 || ever != 1 {
			t.Errorf("%d connections, %d ever", now, ever)
		}
	})
}

func TestClose(t *testing.T) {
	for name, f := range map[string]func(w *link2){
		"end after the last byte": func(w *link2) {
			w.write(w.a, "last")
			_ = w.a.Close()
			w.reads(w.b, "last")
			w.fails(w.b, io.EOF)
			w.at(10 * time.Millisecond)
			w.write(w.b, "nobody there") // answered with a reset
			w.fails(w.b, io.EOF)
			time.Sleep(20 * time.Millisecond)
			w.fails(w.b, errReset)
		},
		"bytes unread: a reset that takes the last word": func(w *link2) {
			w.write(w.b, "unread")
			time.Sleep(10 * time.Millisecond)
			w.write(w.a, "last")
			_ = w.a.Close()
			time.Sleep(10 * time.Millisecond)
			w.fails(w.b, errReset)
		},
		"bytes under way: the last word may be read before the reset": func(w *link2) {
			w.write(w.b, "under way")
			w.write(w.a, "last")
			_ = w.a.Close()
			w.reads(w.b, "last")
			w.at(10 * time.Millisecond)
			time.Sleep(10 * time.Millisecond)
			w.fails(w.b, errReset)
		},
		"half": func(w *link2) {
			w.write(w.a, "last")
			_ = w.a.(*conn).CloseWrite()
			w.reads(w.b, "last")
			w.fails(w.b, io.EOF)
			w.write(w.b, "answer")
			w.reads(w.a, "answer")
			if _, err := w.a.Write([]byte("x")); !errors.Is(err, errPipe) {
				w.t.Errorf("write: %v", err)
			}
		},
		"linger 0": func(w *link2) {
			_ = w.a.(*conn).SetLinger(0)
			_ = w.a.Close()
			w.fails(w.b, errReset)
			w.at(10 * time.Millisecond)
		},
		"no end through a hole": func(w *link2) {
			w.Blackhole(addr, Forward)
			_ = w.a.Close()
			w.silent(w.b, time.Hour)
		},
		"the end is repeated": func(w *link2) {
			w.Retransmit(addr, true)
			w.Blackhole(addr, Forward)
			_ = w.a.Close()
			time.Sleep(time.Second)
			w.Blackhole(addr, 0)
			w.fails(w.b, io.EOF)
			w.at(1410 * time.Millisecond)
		},
		"no reset through a hole": func(w *link2) {
			w.Blackhole(addr, Backward)
			_ = w.b.Close()
			w.write(w.a, "x")
			w.silent(w.a, time.Hour)
		},
		"own end": func(w *link2) {
			_ = w.a.Close()
			w.fails(w.a, net.ErrClosed)
			if err := errors.Join(w.a.Close(), w.a.SetDeadline(time.Time{})); !errors.Is(err, net.ErrClosed) {
				w.t.Errorf("closed twice: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(_ *testing.T, w *link2) {
				w.Delay(addr, 10*time.Millisecond)
				f(w)
			})
		})
	}
}

func TestDamage(t *testing.T) {
	for _, row := range []struct {
		name string
		do   func(w *link2)
		want string
		end  bool
	}{
		{"flip", func(w *link2) { w.FlipBit(addr, Forward, 4, 1) }, "abcddfgh", false},
		{"insert", func(w *link2) { w.Insert(addr, Forward, 3, []byte("XY")) }, "abcXYdefgh", false},
		{"truncate", func(w *link2) { w.Truncate(addr, Forward, 5) }, "abcde", true},
		{"all", func(w *link2) {
			w.Insert(addr, Forward, 2, []byte("X"))
			w.FlipBit(addr, Forward, 1, 1)
			w.Truncate(addr, Forward, 6)
		}, "acXcdef", true},
		{"the other way", func(w *link2) { w.FlipBit(addr, Backward, 0, 1) }, "abcdefgh", false},
		{"spared", func(w *link2) {
			w.Insert(addr, Both, 2, []byte("X"))
			w.Truncate(addr, Forward, 6)
			w.Spare(addr)
		}, "abcdefgh", false},
		{"half-close", func(w *link2) { w.HalfClose(addr, Forward) }, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(_ *testing.T, w *link2) {
				row.do(w)
				w.write(w.a, "abc")
				w.write(w.a, "defgh")
				w.reads(w.b, row.want)
				if row.end {
					w.fails(w.b, io.EOF)
				} else {
					w.silent(w.b, time.Minute)
				}
				_ = w.b.SetReadDeadline(time.Time{})
				w.write(w.a, "tail") // damage is done once
				if !row.end {
					w.reads(w.b, "tail")
				}
			})
		})
	}
}

func TestDial(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		dial := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			c, err := w.Dial(ctx, "", addr)
			if err == nil {
				_ = c.Close()
			}
			return err
		}
		w.Refuse(addr, true)
		if err := dial(time.Hour); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("refused: %v", err)
		}
		w.at(0)
		w.Refuse(addr, false)
		w.Blackhole(addr, Backward)
		if err := dial(2 * time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("into a hole: %v", err)
		}
		w.at(2 * time.Second)
		time.AfterFunc(500*time.Millisecond, func() { w.Blackhole(addr, 0) })
		if err := dial(time.Hour); err != nil { // the second SYN
			t.Error(err)
		}
		w.at(3 * time.Second)
		if _, err := w.Listen(addr); err == nil {
			t.Error("listens twice")
		}
		_ = w.l.Close()
		if err := dial(time.Hour); err == nil {
			t.Error("nobody listens")
		}
		again, err := w.Listen(addr)
		if err != nil || dial(time.Hour) != nil {
			t.Errorf("listen again: %v", err)
		}
		_ = again.Close()
	})
}

func TestSlowAccept(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		w.SlowAccept(addr, time.Second)
		for range backlogMax {
			c, err := w.Dial(context.Background(), "", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		w.at(0)
		ctx, cancel := context.WithTimeout(context.Background(), 900*time.Millisecond)
		defer cancel()
		if _, err := w.Dial(ctx, "", addr); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the backlog is full: %v", err)
		}
		c, err := w.l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		w.at(time.Second)
		_ = c.Close()
	})
}

// Two links with different delays: what is sent later may arrive earlier.
func TestPathsReorder(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		l, _ := w.Listen("host:2")
		c, _ := w.Dial(context.Background(), "", "host:2")
		d, _ := l.Accept()
		w.Delay(addr, 40*time.Millisecond)
		w.write(w.a, "1")
		w.write(c, "2")
		w.reads(d, "2")
		w.at(0)
		w.reads(w.b, "1")
		w.at(40 * time.Millisecond)
		if a, b := w.Carried(addr, Forward), w.Carried("host:2", Both); a != 1 || b != 1 {
			t.Errorf("carried %d and %d", a, b)
		}
		_, _, _ = c.Close(), d.Close(), l.Close()
	})
}

func TestTap(t *testing.T) {
	bubble(t, func(t *testing.T, w *link2) {
		var seen []byte
		w.Tap(addr, Backward, func(id int, b []byte) { seen = append(append(seen, byte('0'+id)), b...) })
		w.FlipBit(addr, Backward, 0, 1)
		w.write(w.a, "there")
		w.write(w.b, "back")
		if string(seen) != "1back" {
			t.Errorf("seen %q", seen)
		}
	})
}
