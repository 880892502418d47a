package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
)

const clientTestSize = 16 << 20

// served opens a front on a memory device and returns its address.
func served(t *testing.T, dev blockdev.Device) (*front, string) {
	t.Helper()
	f := newFront(zerolog.Nop(), frontSecurity{})
	address, err := f.Open(dev, "vol0", "unix:"+filepath.Join(t.TempDir(), "nbd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Abort)
	return f, address
}

func dial(t *testing.T, address string) *nbdClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	c, err := dialNBD(ctx, address, "vol0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestNBDClientReadsWhatItWrote(t *testing.T) {
	f, address := served(t, blockdev.NewMemory(clientTestSize, nil))
	c := dial(t, address)
	if c.size != clientTestSize {
		t.Fatalf("size %d", c.size)
	}
	var all sync.WaitGroup
	for i := range 32 { // all in flight at once
		all.Go(func() {
			p := bytes.Repeat([]byte{byte(i + 1)}, 8192)
			if _, err := c.WriteAt(p, int64(i)*8192); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(p))
			if _, err := c.ReadAt(got, int64(i)*8192); err != nil || !bytes.Equal(got, p) {
				t.Errorf("block %d: %v, or other bytes", i, err)
			}
		})
	}
	all.Wait()
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
	s := f.Stats()
	if s.Connections != 1 || s.Writes != 32 || s.Reads != 32 || s.Flushes != 1 || s.WrittenBytes != 32*8192 || s.Address != address {
		t.Errorf("stats %+v", s)
	}
	_, err := c.ReadAt(make([]byte, 4096), clientTestSize)
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read past the end: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("after an error: %v", err)
	}
}

func TestNBDClientUnknownExport(t *testing.T) {
	_, address := served(t, blockdev.NewMemory(clientTestSize, nil))
	if c, err := dialNBD(context.Background(), address, "other"); err == nil {
		c.Close()
		t.Error("an export that does not exist was opened")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
}

// stuck lets no write through until it is told to.
type stuck struct {
	blockdev.Device
	entered, leave chan struct{}
}

func (s *stuck) WriteAt(p []byte, off int64) (int, error) {
	s.entered <- struct{}{}
	<-s.leave
	return s.Device.WriteAt(p, off)
}

func TestNBDClientLosesTheServer(t *testing.T) {
	dev := &stuck{blockdev.NewMemory(clientTestSize, nil), make(chan struct{}), make(chan struct{})}
	f, address := served(t, dev)
	c := dial(t, address)
	failed := make(chan error, 1)
	go func() {
		_, err := c.WriteAt(make([]byte, 4096), 0)
		failed <- err
	}()
	<-dev.entered
	aborted := make(chan struct{})
	go func() { defer close(aborted); f.Abort() }()
	if err := <-failed; err == nil {
		t.Error("a write was acknowledged that never ended")
	}
	close(dev.leave)
	<-aborted
	if err := c.Flush(); err == nil {
		t.Error("a flush on a dead connection was acknowledged")
	}
	if err := c.Close(); err != nil {
		t.Errorf("the end of a client whose server hung up first: %v", err)
	}
}

func TestNBDClientEndsWithItsContext(t *testing.T) {
	dev := &stuck{blockdev.NewMemory(clientTestSize, nil), make(chan struct{}), make(chan struct{})}
	_, address := served(t, dev)
	ctx, cancel := context.WithCancel(context.Background())
	c, err := dialNBD(ctx, address, "vol0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer close(dev.leave)
	failed := make(chan error, 1)
	go func() {
		_, err := c.WriteAt(make([]byte, 4096), 0)
		failed <- err
	}()
	<-dev.entered
	cancel()
	if err := <-failed; err == nil {
		t.Error("the write outlived its context")
	}
}

// A server that answers nonsense must not be believed.
func TestNBDClientRefusesNonsense(t *testing.T) {
	for name, hello := range map[string]string{
		"not NBD":   "HTTP/1.1 400 Bad Request\r\n\r\n",
		"cut short": "NBDMAGIC",
		"old style": "NBDMAGICIHAVEOPT\x00\x00",
		"huge reply": "NBDMAGICIHAVEOPT\x00\x03" + "\x00\x03\xe8\x89\x04\x55\x65\xa9" + "\x00\x00\x00\x07" + "\x00\x00\x00\x03" +
			"\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprint(c, hello)
				c.(*net.TCPConn).CloseWrite()
				buf := make([]byte, 256)
				for err == nil {
					_, err = c.Read(buf)
				}
			}()
			if c, err := dialNBD(context.Background(), l.Addr().String(), "vol0"); err == nil {
				c.Close()
				t.Error("believed")
			}
		})
	}
}

func TestFrontOpensAgain(t *testing.T) {
	f := newFront(zerolog.Nop(), frontSecurity{})
	if err := f.Close(context.Background()); err != nil {
		t.Errorf("closing what is not open: %v", err)
	}
	for range 2 {
		address, err := f.Open(blockdev.NewMemory(clientTestSize, nil), "vol0", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(address, ":0") {
			t.Errorf("address %s is not the real one", address)
		}
		c := dial(t, address)
		if _, err := c.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
		c.Close()
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if s := f.Stats(); s.Writes != 2 || s.Connections != 0 || s.Address != "" {
		t.Errorf("stats %+v: want those of both, and no address", s)
	}
}
