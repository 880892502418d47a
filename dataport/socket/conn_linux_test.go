package socket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience  = 30 * time.Second
	mib       = 1 << 20
	testSeats = 4
)

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i>>9) + byte(i)
	}
	return p
}

func errOf(_ int, err error) error { return err }

// conns returns both ends of a connection, the server's one detached.
func conns(t *testing.T, network string, all *Crowd) (*Conn, net.Conn) {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	k := New(nc, all).(*Conn)
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		k.Close()
	})
	return k, client
}

// eachConn runs f over every kind of connection, alone and as one of many that are busy.
func eachConn(t *testing.T, f func(t *testing.T, k *Conn, client net.Conn)) {
	for _, network := range []string{"unix", "tcp"} {
		for name, full := range map[string]bool{"warm": false, "cold": true} {
			t.Run(network+" "+name, func(t *testing.T) {
				all := NewCrowd(testSeats, 1)
				k, client := conns(t, network, all)
				if full { // others are counted all the time
					end := make(chan struct{})
					var others sync.WaitGroup
					others.Go(func() {
						spans := make([]int64, testSeats)
						for {
							for i := range spans {
								all.count(&spans[i])
							}
							select {
							case <-end:
								return
							case <-time.After(crowdSpan / 10):
							}
						}
					})
					defer others.Wait()
					defer close(end)
					for began := time.Now(); all.last.Load() < testSeats; time.Sleep(time.Millisecond) {
						if time.Since(began) > patience {
							t.Fatal("the crowd is not counted")
						}
					}
				}
				f(t, k, client)
			})
		}
	}
}

// What is sent in pieces, slowly, to and by a client that is slow in its turn, arrives; also when there are more pieces than one call takes.
func TestConnCarriesAll(t *testing.T) {
	eachConn(t, func(t *testing.T, k *Conn, client net.Conn) {
		data := pattern(5*mib+77, 3)
		var pieces [][]byte
		for rest := data; len(rest) > 0; {
			n := min(rand.IntN(2000), len(rest))
			if len(pieces) == 7 {
				n = min(3*mib, len(rest)) // one that no socket takes at once
			}
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if len(pieces) <= maxIovecs {
			t.Fatalf("%d pieces", len(pieces))
		}
		sent := make(chan error, 1)
		go func() { sent <- errOf(k.Writev(pieces)) }()
		time.Sleep(2 * warmFor) // nobody reads: the sender waits, then parks
		got, err := io.ReadAll(io.LimitReader(client, int64(len(data))))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d of %d bytes arrived as they were: %v", len(got), len(data), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		go func() {
			client.Write(data[:1000])
			time.Sleep(3 * warmFor) // it parks
			client.Write(data[1000:])
		}()
		got = make([]byte, len(data))
		if _, err := io.ReadFull(k, got); err != nil || !bytes.Equal(got, data) {
			t.Fatal("what the client sent is not what was read:", err)
		}
		client.Close()
		if n, err := k.Read(got); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read of what is closed: %d, %v", n, err)
		}
	})
}

// A deadline that is set while a Read waits ends it, whether it is warm or has parked; and when it is taken away again, reads go on.
func TestConnDeadline(t *testing.T) {
	eachConn(t, func(t *testing.T, k *Conn, client net.Conn) {
		for _, after := range []time.Duration{0, warmFor / 4, 3 * warmFor} {
			done := make(chan error, 1)
			go func() {
				_, err := k.Read(make([]byte, 10))
				done <- err
			}()
			time.Sleep(after)
			k.SetReadDeadline(time.Unix(1, 0))
			select {
			case err := <-done:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("deadline after %v: %v", after, err)
				}
			case <-time.After(patience):
				t.Fatalf("a deadline after %v ends nothing", after)
			}
			k.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			if _, err := k.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("deadline ahead:", err)
			}
			client.Write([]byte("x"))
			if _, err := k.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a deadline that has passed holds, data or not:", err)
			}
			k.SetReadDeadline(time.Time{})
			if n, err := k.Read(make([]byte, 10)); n != 1 || err != nil {
				t.Fatal("without a deadline:", n, err)
			}
		}
	})
}

// A deadline for writes ends a Writev that waits, parked where the reader is parked or by itself, and says how much went out; when it is taken
// away again writes go on, with the next byte.
func TestConnWriteDeadline(t *testing.T) {
	eachConn(t, func(t *testing.T, k *Conn, client net.Conn) {
		data := pattern(24*mib, 5)
		rest := data
		for i, after := range []time.Duration{0, warmFor / 4, 3 * warmFor} {
			if i == 1 { // the other kind of waiting
				reads := make(chan error, 1)
				go func() {
					_, err := k.Read(make([]byte, 1))
					reads <- err
				}()
				time.Sleep(2 * warmFor) // it has parked
				defer func() {
					client.Write([]byte("x"))
					if err := <-reads; err != nil {
						t.Error(err)
					}
				}()
			}
			type outcome struct {
				n   int
				err error
			}
			done := make(chan outcome, 1)
			go func() {
				n, err := k.Writev([][]byte{rest[:100], rest[100:]})
				done <- outcome{n, err}
			}()
			time.Sleep(after)
			k.SetWriteDeadline(time.Unix(1, 0))
			select {
			case o := <-done:
				if !errors.Is(o.err, os.ErrDeadlineExceeded) || o.n >= len(rest) {
					t.Fatalf("deadline after %v: %d bytes, %v", after, o.n, o.err)
				}
				rest = rest[o.n:]
			case <-time.After(patience):
				t.Fatalf("a deadline after %v ends nothing", after)
			}
			k.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			n, err := k.Write(rest)
			if rest = rest[n:]; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("deadline ahead:", err)
			}
			k.SetWriteDeadline(time.Time{})
		}
		sent := make(chan error, 1)
		go func() { sent <- errOf(k.Write(rest)) }()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, data) {
			t.Fatal("what arrived is not what was written:", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

// ReadVec fills the first and then the second with what there is.
func TestConnReadVec(t *testing.T) {
	eachConn(t, func(t *testing.T, k *Conn, client net.Conn) {
		data := pattern(1000, 9)
		for _, sizes := range [][3]int{{700, 600, 400}, {1000, 1000, 100}, {300, 200, 100}, {300, 300, 0}} { // sent, first, second
			want := data[:sizes[0]]
			if _, err := client.Write(want); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for len(got) < len(want) {
				first, second := make([]byte, sizes[1]), make([]byte, sizes[2])
				n, err := k.ReadVec(first, second)
				if err != nil || n == 0 {
					t.Fatal(n, err)
				}
				got = append(append(got, first[:min(n, len(first))]...), second[:max(n-len(first), 0)]...)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes into %d and %d: not what was sent", sizes[0], sizes[1], sizes[2])
			}
		}
		client.Close()
		if n, err := k.ReadVec(make([]byte, 10), make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %d, %v", n, err)
		}
	})
}

// Abort ends whoever waits, throws away what was written, and the peer gets an error; also of a connection that was never detached.
func TestConnAbort(t *testing.T) {
	for _, after := range []time.Duration{0, warmFor / 4, 3 * warmFor} {
		k, client := conns(t, "tcp", NewCrowd(testSeats, 1))
		done := make(chan error, 2)
		go func() {
			_, err := k.Read(make([]byte, 10))
			done <- err
		}()
		go func() { done <- errOf(k.Writev([][]byte{make([]byte, 32*mib)})) }()
		time.Sleep(after)
		if err := k.Abort(); err != nil {
			t.Error(err)
		}
		k.Abort()
		for range 2 {
			select {
			case err := <-done:
				if err == nil {
					t.Error("no error")
				}
			case <-time.After(patience):
				t.Fatal("somebody still waits")
			}
		}
		client.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, client); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer of what was aborted: %v", err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	k := New(nc, NewCrowd(testSeats, 1)).(*Conn)
	if err := errors.Join(k.Abort(), k.Abort()); err != nil {
		t.Error(err)
	}
	client.SetDeadline(time.Now().Add(patience))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer of what was aborted before it was detached: %v", err)
	}
}

// A reader that expects nothing is parked at once, where a busy one waits warm.
func TestConnExpect(t *testing.T) {
	for _, busy := range []bool{true, false} {
		k, client := conns(t, "tcp", NewCrowd(testSeats, 0))
		k.Expect(busy)
		for i := range 5 {
			go func() {
				time.Sleep(warmFor / 10)
				client.Write([]byte{byte(i)})
			}()
			if n, err := k.Read(make([]byte, 10)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		if parked := k.parked != nil; parked == busy {
			t.Errorf("busy %v: parked %v", busy, parked)
		}
	}
}

// Close ends whoever reads or writes, warm or parked, and the client sees it.
func TestConnClose(t *testing.T) {
	for _, after := range []time.Duration{0, warmFor / 4, 3 * warmFor} {
		eachConn(t, func(t *testing.T, k *Conn, client net.Conn) {
			done := make(chan error, 2)
			go func() {
				_, err := k.Read(make([]byte, 10))
				done <- err
			}()
			go func() { done <- errOf(k.Writev([][]byte{make([]byte, 32*mib)})) }()
			time.Sleep(after)
			k.Close()
			k.Close()
			for range 2 {
				select {
				case err := <-done:
					if err == nil {
						t.Error("no error")
					}
				case <-time.After(patience):
					t.Fatal("somebody still waits")
				}
			}
			client.SetDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, client); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the client does not see the end")
			}
			if _, err := k.Read(make([]byte, 10)); err == nil {
				t.Error("a closed socket is read")
			}
			if _, err := k.Write([]byte("x")); err == nil {
				t.Error("a closed socket is written")
			}
		})
	}
}

// A client costs one descriptor while it is busy, and one more while it is idle or one of many; none is left when it is gone.
func TestConnDescriptors(t *testing.T) {
	k, client := conns(t, "unix", NewCrowd(testSeats, 1))
	var st unix.Stat_t
	if err := k.raw.Control(func(fd uintptr) { _ = unix.Fstat(int(fd), &st) }); err != nil || st.Ino == 0 {
		t.Fatal(err)
	}
	link := fmt.Sprintf("socket:[%d]", st.Ino)
	descriptors := func() (n int) {
		all, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range all {
			if to, err := os.Readlink(fd); err == nil && to == link {
				n++
			}
		}
		return n
	}
	until := func(want int, when string) {
		t.Helper()
		for began := time.Now(); descriptors() != want; time.Sleep(time.Millisecond) {
			if time.Since(began) > patience {
				t.Fatalf("%s: %d descriptors, want %d", when, descriptors(), want)
			}
		}
	}
	until(1, "at first")
	for range 3 {
		got := make(chan error, 1)
		read := func() {
			_, err := k.Read(make([]byte, 10))
			got <- err
		}
		go read()
		until(2, "idle")
		for busy := false; !busy; busy = descriptors() == 1 { // its first words in a while may come late
			client.Write([]byte("x"))
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			go read()
		}
		client.Write([]byte("x"))
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	client.Close()
	k.Close()
	until(0, "closed")
}

// A client that asks at once is waited for hot, one that does not is slept for; a wait that was hot in vain loses nothing.
func TestConnHot(t *testing.T) {
	k, client := conns(t, "unix", NewCrowd(testSeats, 1))
	if !k.prompt() {
		t.Fatal("a new client is not given the chance")
	}
	if k.waited(warmFor); k.prompt() {
		t.Fatal("one that let us wait is waited for hot")
	}
	for range 20 {
		k.waited(warmFor)
	}
	short := 0
	for ; !k.prompt(); short++ {
		k.waited(hotFor / 50)
	}
	if short != 8 {
		t.Fatalf("%d short waits, not 8, make up for a client that was always slow", short)
	}

	buf := make([]byte, 10)
	k.in = buf
	if err := k.raw.Read(k.hot); err != nil || !errors.Is(k.inErr, unix.EAGAIN) {
		t.Fatalf("of what is not there: %v, %v", err, k.inErr)
	}
	sent := make(chan error, 1)
	go func() {
		for i := range byte(100) {
			time.Sleep(time.Duration(i%3) * hotFor)
			if _, err := client.Write([]byte{i}); err != nil {
				sent <- err
				return
			}
		}
		sent <- client.Close()
	}()
	for want := byte(0); want < 100; {
		k.usual = 0 // hot first, whatever the machine does
		n, err := k.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range buf[:n] {
			if got != want {
				t.Fatalf("byte %d arrived where %d was sent", got, want)
			}
			want++
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	k.usual = 0
	if n, err := k.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %d, %v", n, err)
	}
}

// Over TCP a large piece goes out by a system call of its own, and all but the last call say that more follows; elsewhere all go at once.
func TestConnNext(t *testing.T) {
	sizes := []int{16, 20, sentAlone, sentAlone - 1, 2 * sentAlone, sentAlone, 7}
	for network, want := range map[string][]int{"unix": {7}, "tcp": {2, 1, 1, 1, 1, 1}} {
		k, client := conns(t, network, NewCrowd(testSeats, 1))
		k.SendLargeAlone()
		var pieces [][]byte
		for i, n := range sizes {
			pieces = append(pieces, pattern(n, byte(i)))
			k.out = append(k.out, unix.Iovec{Base: &pieces[i][0], Len: uint64(n)})
		}
		var got []int
		for len(k.out) > 0 {
			some, flags := k.next()
			k.out = k.out[len(some):]
			if got = append(got, len(some)); (flags == unix.MSG_MORE) != (len(k.out) > 0) {
				t.Errorf("%s: flags %#x where %d pieces follow", network, flags, len(k.out))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: calls of %v pieces, not %v", network, got, want)
		}
		sent := make(chan error, 1)
		go func() { sent <- errOf(k.Writev(pieces)) }()
		all := bytes.Join(pieces, nil)
		arrived := make([]byte, len(all))
		if _, err := io.ReadFull(client, arrived); err != nil || !bytes.Equal(arrived, all) {
			t.Errorf("%s: what arrived is not what was sent: %v", network, err)
		}
		if err := <-sent; err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
}
