package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd/kerneltest"
)

// fakeKernel is a Kernel on a fake driver.
func fakeKernel(t *testing.T) (*kerneltest.Kernel, *Kernel) {
	t.Helper()
	fake := kerneltest.New(t.TempDir())
	k, err := NewKernel(func() (Transport, error) { return fake.Dial(), nil }, fake.Root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close(); fake.Close() })
	return fake, k
}

// restartable serves a device at one address, again and again.
type restartable struct {
	t        *testing.T
	path     string
	export   Export
	server   *Server
	listener *mortal
	running  chan error
}

// mortal is a listener whose connections all end as they do when the process is killed: without another word.
type mortal struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (m *mortal) Accept() (net.Conn, error) {
	c, err := m.Listener.Accept()
	if err == nil {
		m.mu.Lock()
		m.conns = append(m.conns, c)
		m.mu.Unlock()
	}
	return c, err
}

func (m *mortal) kill() {
	m.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		c.Close()
	}
}

func (r *restartable) start() {
	r.t.Helper()
	l, err := Listen("unix:" + r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	m := &mortal{Listener: l}
	s, done := NewServer(Options{}, r.export), make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), m) }()
	r.server, r.listener, r.running = s, m, done
}

func (r *restartable) kill() {
	if r.server == nil {
		return
	}
	r.listener.kill()
	r.server.Close()
	r.server.Wait()
	<-r.running
	r.server = nil
}

// shutdown ends the server as a clean end of its process does.
func (r *restartable) shutdown() {
	r.t.Helper()
	if err := r.server.Shutdown(context.Background()); err != nil {
		r.t.Error("shutdown:", err)
	}
	r.kill()
}

func newRestartable(t *testing.T, e Export) *restartable {
	r := &restartable{t: t, path: filepath.Join(t.TempDir(), "s"), export: e}
	r.start()
	t.Cleanup(func() { r.kill() })
	return r
}

func (r *restartable) options(connections int) AttachOptions {
	return AttachOptions{
		Index: 3, Connections: connections, DeadConnTimeout: time.Minute, Identifier: "mirror-agent:test",
		Dial: func(ctx context.Context) (net.Conn, error) { return Dial(ctx, "unix:"+r.path) },
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not in time:", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// watch runs Watch until the test ends.
func watch(t *testing.T, a *Attachment) (ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, out := make(chan struct{}), make(chan error, 1)
	go func() { out <- a.Watch(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return out
}

func TestAttachSaysWhatWasNegotiated(t *testing.T) {
	for _, tt := range []struct {
		name            string
		multi, readOnly bool
		ask, links      int
		timeout, told   time.Duration
		blockMin, block uint32
	}{
		{name: "several", multi: true, ask: 4, links: 4, block: 512},
		{name: "several, no promise", ask: 4, links: 1, block: 512},
		{name: "one", multi: true, ask: 1, links: 1, block: 512},
		{name: "timeout", multi: true, ask: 2, links: 2, timeout: 1500 * time.Millisecond, told: 2 * time.Second, block: 512},
		{name: "read-only, large blocks", readOnly: true, ask: 1, links: 1, blockMin: 4096, block: 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRestartable(t, Export{
				Name: "vol0", Device: blockdev.NewMemory(mib+700, nil), MultiConn: tt.multi, ReadOnly: tt.readOnly, BlockMin: tt.blockMin,
			})
			fake, k := fakeKernel(t)
			o := r.options(tt.ask)
			o.Timeout = tt.timeout
			a, err := Attach(t.Context(), k, o)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			got := a.Attached()
			if got.Device != "/dev/nbd3" || got.Export != "vol0" || got.SizeBytes != mib+700 || got.Connections != tt.links || got.Adopted {
				t.Errorf("attached %+v", got)
			}
			s := fake.Settings(3)
			flags := protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | flagSendFlush | flagSendFUA | flagSendTrim
			if tt.multi {
				flags |= protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
			}
			if tt.readOnly {
				flags |= flagReadOnly
			}
			known := flags | flagReadOnly | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN // others are the server's to add
			wantSize := uint64(mib+700) / uint64(tt.block) * uint64(tt.block)
			if uint16(s.Flags)&known != flags || s.Size != wantSize || s.BlockSize != uint64(tt.block) ||
				s.Timeout != tt.told || s.DeadConnTimeout != time.Minute || s.Identifier != "mirror-agent:test" {
				t.Errorf("the kernel was told %+v", s)
			}
			if n := fake.LiveLinks(3); n != tt.links {
				t.Errorf("%d links, want %d", n, tt.links)
			}
			until(t, "only the kernel's ends of the connections are open", func() bool { return r.server.Stats().Connections == tt.links })
			if !tt.readOnly {
				data := pattern(8192, 7)
				back := make([]byte, len(data))
				if err := errors.Join(fake.Write(3, data, 4096), fake.Flush(3), fake.Read(3, back, 4096)); err != nil || !bytes.Equal(data, back) {
					t.Errorf("through the device: %v", err)
				}
			}
			if err := k.Detach(3); err != nil || fake.Connected(3) {
				t.Errorf("detach: %v", err)
			}
			until(t, "the server is left", func() bool { return r.server.Stats().Connections == 0 })
			if err := k.Detach(3); !errors.Is(err, ErrDetached) {
				t.Errorf("detach again: %v", err)
			}
		})
	}
}

// A filesystem's view of a server that ends and comes back: every request waits and succeeds.
func TestWritesWaitForTheServer(t *testing.T) {
	for name, end := range map[string]func(*restartable){"killed": (*restartable).kill, "shut down": (*restartable).shutdown} {
		t.Run(name, func(t *testing.T) { writesWait(t, end) })
	}
}

// writing writes without end in several goroutines; what stops it flushes and returns what went wrong.
func writing(fake *kerneltest.Kernel) (wrote chan error, stop func()) {
	const writers = 8
	done, stopped, wrote := make(chan error, writers), make(chan struct{}), make(chan error, 1)
	write := func(w int) error {
		for i := 0; ; i++ {
			select {
			case <-stopped:
				return fake.Flush(3)
			default:
			}
			if err := fake.Write(3, pattern(4096, byte(i)), int64(w*16+i%16)*4096); err != nil {
				return fmt.Errorf("write %d: %w", i, err)
			}
		}
	}
	for w := range writers {
		go func() { done <- write(w) }()
	}
	go func() {
		var err error
		for range writers {
			if e := <-done; err == nil {
				err = e
			}
		}
		wrote <- err
	}()
	return wrote, sync.OnceFunc(func() { close(stopped) })
}

func writesWait(t *testing.T, end func(*restartable)) {
	mem := blockdev.NewMemory(mib, nil)
	r := newRestartable(t, Export{Name: "vol0", Device: mem, MultiConn: true})
	fake, k := fakeKernel(t)
	var log bytes.Buffer // written by the watch until it has ended
	o := r.options(4)
	o.Log = zerolog.New(&log).Level(zerolog.ErrorLevel)
	a, err := Attach(t.Context(), k, o)
	if err != nil {
		t.Fatal(err)
	}
	ended := watch(t, a)
	for round := range 3 {
		wrote, stop := writing(fake)
		defer stop()
		before := r.server.Stats().Writes
		until(t, "writes arrive", func() bool { return r.server.Stats().Writes > before+20 })
		end(r)
		until(t, "all links are dead", func() bool { return fake.LiveLinks(3) == 0 })
		select {
		case err := <-wrote:
			t.Fatalf("round %d: the writers did not wait: %v", round, err)
		case err := <-ended:
			t.Fatalf("round %d: the watch ended: %v", round, err)
		case <-time.After(3 * redialFirst): // some dials are refused
		}
		r.start()
		until(t, "the links are back", func() bool { return fake.LiveLinks(3) == 4 })
		until(t, "writes go on", func() bool { return r.server.Stats().Writes > 20 })
		stop()
		if err := <-wrote; err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		until(t, "sockets that were too many are closed", func() bool { return r.server.Stats().Connections == 4 })
	}
	if err := k.Detach(3); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrDetached) {
			t.Errorf("the watch ended with %v", err)
		}
		if log.Len() > 0 {
			t.Errorf("the watch complained: %s", log.String())
		}
	case <-time.After(2 * patience):
		t.Error("the watch did not see that the device was detached")
	}
}

// What answers at the address after a while must be what was there before.
func TestAnotherExportGetsNoLink(t *testing.T) {
	for _, tt := range []struct {
		name  string
		other Export
		want  string
	}{
		{"smaller", Export{Name: "vol0", Device: blockdev.NewMemory(mib/2, nil), MultiConn: true}, "524288 bytes now"},
		{"other name", Export{Name: "vol1", Device: blockdev.NewMemory(mib, nil), MultiConn: true}, `export "vol1" now`},
		{"read-only", Export{Name: "vol0", Device: blockdev.NewMemory(mib, nil), MultiConn: true, ReadOnly: true}, "other properties"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRestartable(t, Export{Name: "vol0", Device: blockdev.NewMemory(mib, nil), MultiConn: true})
			fake, k := fakeKernel(t)
			a, err := Attach(t.Context(), k, r.options(2))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			right := r.export
			r.kill()
			r.export = tt.other
			r.start()
			until(t, "the links are dead", func() bool { return fake.LiveLinks(3) == 0 })
			if err := a.renew(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || fake.LiveLinks(3) != 0 {
				t.Errorf("%d links, %v", fake.LiveLinks(3), err)
			}
			r.kill()
			r.export = right
			r.start()
			if err := a.renew(t.Context()); err != nil || fake.LiveLinks(3) != 2 {
				t.Errorf("the right one: %d links, %v", fake.LiveLinks(3), err)
			}
		})
	}
}

// serverOf answers every handshake as a server does whose export has these transmission flags, and nothing after it.
func serverOf(t *testing.T, flags func() uint16) func(ctx context.Context) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p := goodReplies("vol0", mib)
			binary.BigEndian.PutUint16(p[bytes.Index(p, encode(uint64(mib)))+8:], flags())
			serving.Go(func() {
				defer c.Close()
				_, _ = c.Write(p)
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return func(ctx context.Context) (net.Conn, error) { return Dial(ctx, "unix:"+l.Addr().String()) }
}

// An upgrade of the agent that adds something which the kernel does not use (CACHE, FAST_ZERO) made a running watch refuse the new
// server, and a mounted filesystem got I/O errors. Only what the kernel goes by must stay.
func TestAServerMayOfferMoreOrLess(t *testing.T) {
	multi := protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	all := protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes | multi
	for _, tt := range []struct {
		name     string
		was, now uint16
		refused  bool
	}{
		{"cache comes", all, all | flagSendCache, false},
		{"fast zero and DF come", all, all | flagSendFastZero | flagSendDF, false},
		{"cache goes", all | flagSendCache, all, false},
		{"trim comes", all &^ flagSendTrim, all, false},
		{"several connections come", all &^ multi, all, false},
		{"read-only comes", all, all | flagReadOnly, true},
		{"read-only goes", all | flagReadOnly, all, true},
		{"flush goes", all, all &^ flagSendFlush, true},
		{"FUA goes", all, all &^ flagSendFUA, true},
		{"trim goes", all, all &^ flagSendTrim, true},
		{"zeroes go", all, all &^ flagSendWriteZeroes, true},
		{"several connections go", all, all &^ multi, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var flags atomic.Uint32
			flags.Store(uint32(tt.was))
			dial := serverOf(t, func() uint16 { return uint16(flags.Load()) })
			_, k := fakeKernel(t) // its links end before the server does
			a, err := Attach(t.Context(), k, AttachOptions{Index: 3, Connections: 2, Identifier: "mirror-agent:test", Dial: dial})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			flags.Store(uint32(tt.now))
			if err := a.renew(t.Context()); (err != nil) != tt.refused || err != nil && !strings.Contains(err.Error(), "other properties") {
				t.Errorf("new links from a server with flags %#x, before %#x: %v", tt.now, tt.was, err)
			}
		})
	}
}

// The process that watches may be restarted, too.
func TestTakingOver(t *testing.T) {
	r := newRestartable(t, Export{Name: "vol0", Device: blockdev.NewMemory(mib, nil), MultiConn: true})
	fake, k := fakeKernel(t)
	a, err := Attach(t.Context(), k, r.options(2))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()

	other := r.options(2)
	other.Identifier = "mirror-agent:other"
	if _, err := Attach(t.Context(), k, other); !errors.Is(err, ErrDeviceInUse) || !strings.Contains(err.Error(), "mirror-agent:test") {
		t.Errorf("another one's device: %v", err)
	}
	if a, err = Attach(t.Context(), k, r.options(2)); err != nil || !a.Attached().Adopted || a.Attached().Waiting != nil || fake.LiveLinks(3) != 2 {
		t.Fatalf("taken over alive: %v", err)
	}
	a.Close()

	r.kill()
	until(t, "the links are dead", func() bool { return fake.LiveLinks(3) == 0 })
	if a, err = Attach(t.Context(), k, r.options(2)); err != nil || a.Attached().Waiting == nil {
		t.Fatalf("taken over without a server: %v", err)
	}
	watch(t, a)
	r.start()
	until(t, "the links are back", func() bool { return fake.LiveLinks(3) == 2 })
	if err := fake.Write(3, []byte("x"), 0); err != nil {
		t.Error(err)
	}
}

// A device that grows is larger for the kernel soon after, its old links reach what is new, and one that was taken over
// grows as well.
func TestAttachedDeviceGrows(t *testing.T) {
	d := blockdev.NewMemory(mib, nil)
	r := newRestartable(t, Export{Name: "vol0", Device: d, MultiConn: true})
	fake, k := fakeKernel(t)
	a, err := Attach(t.Context(), k, r.options(2))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if a, err = Attach(t.Context(), k, r.options(2)); err != nil { // takes it over
		t.Fatal(err)
	}
	watch(t, a)
	if err := fake.Write(3, []byte("x"), mib); err == nil {
		t.Fatal("a write behind the end succeeded")
	}
	if _, err := d.Grow(3*mib + 512); err != nil {
		t.Fatal(err)
	}
	until(t, "the kernel knows", func() bool { return fake.Settings(3).Size > mib })
	if s := fake.Settings(3); s.Size != 3*mib && s.Size != 3*mib+512 { // by whole blocks
		t.Fatalf("%d bytes", s.Size)
	}
	if err := fake.Write(3, []byte("x"), 3*mib-1); err != nil {
		t.Error(err)
	}
}

// The watch asks the server now and then whether the export has grown. While it waited for one that took the connection and said nothing it did
// not hear that its links had died.
func TestAProbeDoesNotKeepTheWatchFromItsLinks(t *testing.T) {
	r := newRestartable(t, Export{Name: "vol0", Device: blockdev.NewMemory(mib, nil), MultiConn: true})
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "silent"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var hush atomic.Bool
	var probes atomic.Int32
	fake, k := fakeKernel(t)
	o := r.options(2)
	o.HandshakeTimeout = 10 * patience
	o.Dial = func(ctx context.Context) (net.Conn, error) {
		if hush.Load() {
			probes.Add(1)
			return Dial(ctx, "unix:"+silent.Addr().String())
		}
		return Dial(ctx, "unix:"+r.path)
	}
	a, err := Attach(t.Context(), k, o)
	if err != nil {
		t.Fatal(err)
	}
	hush.Store(true)
	watch(t, a)
	until(t, "a probe gets no answer", func() bool { return probes.Load() > 0 })
	hush.Store(false)
	r.kill()
	r.start()
	until(t, "the links are back", func() bool { return fake.LiveLinks(3) == 2 && r.server.Stats().Connections == 2 })
}

// A server that stays away for too long: requests fail, until it is back.
func TestAwayForTooLong(t *testing.T) {
	r := newRestartable(t, Export{Device: blockdev.NewMemory(mib, nil)})
	fake, k := fakeKernel(t)
	o := r.options(1)
	o.DeadConnTimeout = 0
	a, err := Attach(t.Context(), k, o)
	if err != nil {
		t.Fatal(err)
	}
	watch(t, a)
	r.kill()
	if err := fake.Write(3, []byte("x"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write without a timeout: %v", err)
	}
	r.start()
	until(t, "the link is back", func() bool { return fake.LiveLinks(3) == 1 })
	if err := fake.Write(3, []byte("x"), 0); err != nil {
		t.Errorf("a write after it is back: %v", err)
	}
}

func TestAttachRefused(t *testing.T) {
	r := newRestartable(t, Export{Name: "vol0", Device: blockdev.NewMemory(mib, nil)})
	bare := &kerneltest.Kernel{NoDriver: true}
	if _, err := NewKernel(func() (Transport, error) { return bare.Dial(), nil }, "/"); !errors.Is(err, ErrNoDriver) {
		t.Errorf("no driver: %v", err)
	}
	fake, k := fakeKernel(t)
	fake.Unprivileged = true
	if _, err := Attach(t.Context(), k, r.options(1)); !errors.Is(err, ErrNoPermission) {
		t.Errorf("no privilege: %v", err)
	}
	fake.Unprivileged = false
	for name, change := range map[string]func(o *AttachOptions){
		"0 bytes long":   func(o *AttachOptions) { o.BlockSize = 100 },
		"connections":    func(o *AttachOptions) { o.Connections = 65 },
		"no identifier":  func(o *AttachOptions) { o.Identifier = "" },
		"no such export": func(o *AttachOptions) { o.Export = "nosuch" },
		"long export":    func(o *AttachOptions) { o.Export = strings.Repeat("x", maxNameSize+1) },
		"timeout":        func(o *AttachOptions) { o.Timeout = 100 * 24 * time.Hour },
		"nobody there": func(o *AttachOptions) {
			o.Dial = func(ctx context.Context) (net.Conn, error) { return Dial(ctx, "unix:/nonexistent") }
		},
		"no socket": func(o *AttachOptions) {
			o.Dial = func(context.Context) (net.Conn, error) {
				a, b := net.Pipe()
				go serveOnce(b, goodReplies("vol0", mib))
				return a, nil
			}
		},
	} {
		o := r.options(1)
		change(&o)
		if a, err := Attach(t.Context(), k, o); err == nil || fake.Connected(3) {
			t.Errorf("%s: attached", name)
			a.Close()
		}
	}
	o := r.options(1)
	o.Export = "nosuch"
	if _, err := Attach(t.Context(), k, o); !errors.Is(err, ErrNotServed) || !strings.Contains(err.Error(), `"nosuch"`) {
		t.Errorf("no such export: %v", err)
	}
}

func TestUsers(t *testing.T) {
	_, k := fakeKernel(t)
	write := func(name, text string) {
		path := filepath.Join(k.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if u := k.Users(1); u != nil {
		t.Errorf("nothing there: %q", u)
	}
	write("proc/self/mountinfo", "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 36 43:32 / /mnt/a rw,noatime shared:5 - ext4 /dev/nbd1 rw\n"+
		"41 36 43:33 / /mnt/b rw - xfs /dev/nbd1p2 rw\n42 36 43:320 / /mnt/c rw - xfs /dev/nbd10 rw\n")
	write("proc/swaps", "Filename Type Size Used Priority\n/dev/nbd2 partition 1 0 -2\n")
	write("sys/block/nbd10/holders/dm-0/x", "")
	for index, want := range map[int]string{1: "mounted at /mnt/a, mounted at /mnt/b", 2: "used as swap", 10: "mounted at /mnt/c, used by dm-0", 0: ""} {
		if got := strings.Join(k.Users(index), ", "); got != want {
			t.Errorf("nbd%d: %q, want %q", index, got, want)
		}
	}
}
