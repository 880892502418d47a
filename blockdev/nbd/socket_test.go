package nbd

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

	"golang.org/x/sys/unix"
)

// sockets returns both ends of a connection, the server's one detached.
func sockets(t *testing.T, network string, all *crowd) (*socket, net.Conn) {
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
	k := newSocket(nc, all).(*socket)
	if err := k.detach(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		k.Close()
	})
	return k, client
}

// eachSocket runs f over every kind of connection, alone and as one of many that are busy.
func eachSocket(t *testing.T, f func(t *testing.T, k *socket, client net.Conn)) {
	for _, network := range []string{"unix", "tcp"} {
		for name, full := range map[string]bool{"warm": false, "cold": true} {
			t.Run(network+" "+name, func(t *testing.T) {
				all := new(crowd)
				k, client := sockets(t, network, all)
				if full { // others are counted all the time
					end := make(chan struct{})
					var others sync.WaitGroup
					others.Go(func() {
						spans := make([]int64, warmSeats)
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
					for began := time.Now(); all.last.Load() < warmSeats; time.Sleep(time.Millisecond) {
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
func TestSocketCarriesAll(t *testing.T) {
	eachSocket(t, func(t *testing.T, k *socket, client net.Conn) {
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
		go func() { sent <- k.writev(pieces) }()
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
func TestSocketDeadline(t *testing.T) {
	eachSocket(t, func(t *testing.T, k *socket, client net.Conn) {
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

// Close ends whoever reads or writes, warm or parked, and the client sees it.
func TestSocketClose(t *testing.T) {
	for _, after := range []time.Duration{0, warmFor / 4, 3 * warmFor} {
		eachSocket(t, func(t *testing.T, k *socket, client net.Conn) {
			done := make(chan error, 2)
			go func() {
				_, err := k.Read(make([]byte, 10))
				done <- err
			}()
			go func() { done <- k.writev([][]byte{make([]byte, 32*mib)}) }()
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
func TestSocketDescriptors(t *testing.T) {
	k, client := sockets(t, "unix", new(crowd))
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
func TestSocketHot(t *testing.T) {
	k, client := sockets(t, "unix", new(crowd))
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
func TestSocketNext(t *testing.T) {
	sizes := []int{16, 20, sentAlone, sentAlone - 1, 2 * sentAlone, sentAlone, 7}
	for network, want := range map[string][]int{"unix": {7}, "tcp": {2, 1, 1, 1, 1, 1}} {
		k, client := sockets(t, network, new(crowd))
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
		go func() { sent <- k.writev(pieces) }()
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
