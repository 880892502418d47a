package kerneltest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

const (
	cmdRead  = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc  = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush = uint16(3)
)

// device is one nbdN.
type device struct {
	kernel *Kernel
	index  int

	mu       sync.Mutex // guards what follows; may be taken inside Kernel.mu, never the other way round
	settings Settings
	links    []*link
	ended    bool          // disconnected
	late     bool          // requests have waited for too long: nothing waits any more until there are new links
	changed  chan struct{} // closed when one of links, ended and late changes
	turn     int
}

// link is one socket with at most one request at a time.
type link struct {
	conn net.Conn
	busy sync.Mutex // held over a request and its answer
	dead bool       // guarded by device.mu
	feed chan []byte
	gone chan struct{} // closed when dead
}

func newDevice(k *Kernel, a *attributes) *device {
	d := &device{kernel: k, index: a.index, settings: a.settings, changed: make(chan struct{})}
	for _, fd := range a.sockets {
		d.links = append(d.links, d.newLink(fd))
	}
	return d
}

// newLink takes a reference to the socket as the kernel does: the caller's descriptor stays the caller's.
func (d *device) newLink(fd int) *link {
	own, err := unix.Dup(fd)
	if err != nil {
		panic(err)
	}
	f := os.NewFile(uintptr(own), "link")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		panic(err)
	}
	l := &link{conn: c, feed: make(chan []byte), gone: make(chan struct{})}
	d.kernel.running.Go(func() { d.receive(l) })
	return l
}

// receive reads the socket, so that a link without work is seen to die, too.
func (d *device) receive(l *link) {
	defer close(l.feed)
	for {
		p := make([]byte, 64<<10)
		n, err := l.conn.Read(p)
		if n > 0 {
			select {
			case l.feed <- p[:n]:
			case <-l.gone:
			}
		}
		if err != nil {
			d.died(l)
			return
		}
	}
}

func (d *device) died(l *link) {
	d.mu.Lock()
	tell := !l.dead && !d.ended
	l.die()
	d.broadcast()
	d.mu.Unlock()
	if tell {
		d.kernel.linkDead(d.index)
	}
}

// die wants device.mu.
func (l *link) die() {
	if !l.dead {
		l.dead = true
		close(l.gone)
		l.conn.Close()
	}
}

// broadcast wants mu.
func (d *device) broadcast() {
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *device) reconfigure(a *attributes) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.settings.Timeout != 0 {
		d.settings.Timeout = a.settings.Timeout
	}
	if a.settings.DeadConnTimeout != 0 {
		d.settings.DeadConnTimeout = a.settings.DeadConnTimeout
	}
	if a.settings.Size != 0 {
		d.settings.Size = a.settings.Size
	}
	for i, l := range d.links {
		if l.dead && len(a.sockets) > 0 {
			d.links[i], d.late = d.newLink(a.sockets[0]), false
			a.sockets = a.sockets[1:]
		}
	}
	d.broadcast()
}

func (d *device) disconnect() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	for _, l := range d.links {
		if !l.dead {
			_, _ = l.conn.Write(header(cmdDisc, 0, 0)) // a link that has just died needs no goodbye
			l.die()
		}
	}
	d.broadcast()
}

func (d *device) snapshot() Settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

func (d *device) live() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.links {
		if !l.dead {
			n++
		}
	}
	return n
}

// pick returns a live link, waiting for one for as long as the device waits.
func (d *device) pick() (*link, error) {
	var late <-chan time.Time
	for {
		d.mu.Lock()
		for range d.links {
			d.turn++
			if l := d.links[d.turn%len(d.links)]; !l.dead && !d.ended {
				d.mu.Unlock()
				return l, nil
			}
		}
		ended, changed, wait := d.ended || d.late, d.changed, d.settings.DeadConnTimeout
		d.mu.Unlock()
		if ended {
			return nil, syscall.EIO
		}
		if late == nil {
			t := time.NewTimer(wait)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
		case <-late:
			d.mu.Lock()
			d.late = true
			d.broadcast()
			d.mu.Unlock()
			return nil, syscall.EIO
		}
	}
}

// do sends one request, again and again until a link lives long enough to answer it.
func (d *device) do(command uint16, off uint64, out, in []byte) error {
	for {
		l, err := d.pick()
		if err != nil {
			return err
		}
		err = l.exchange(command, off, out, in)
		if err == nil || errors.As(err, new(syscall.Errno)) {
			return err
		}
		d.died(l)
	}
}

var errLink = errors.New("link died")

// exchange returns a syscall.Errno that the server answered; any other error is the link's.
func (l *link) exchange(command uint16, off uint64, out, in []byte) error {
	l.busy.Lock()
	defer l.busy.Unlock()
	if _, err := l.conn.Write(append(header(command, off, len(out)+len(in)), out...)); err != nil {
		return errLink
	}
	r := &feedReader{feed: l.feed}
	var h protocol.TransmissionReplyHeader
	if err := binary.Read(r, binary.BigEndian, &h); err != nil || h.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY {
		return errLink
	}
	if h.Error != 0 {
		return syscall.Errno(h.Error)
	}
	if _, err := io.ReadFull(r, in); err != nil {
		return errLink
	}
	return nil
}

func header(command uint16, off uint64, length int) []byte {
	p := binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST)
	p = binary.BigEndian.AppendUint16(p, 0)
	p = binary.BigEndian.AppendUint16(p, command)
	p = binary.BigEndian.AppendUint64(p, off)
	p = binary.BigEndian.AppendUint64(p, off)
	return binary.BigEndian.AppendUint32(p, uint32(length))
}

type feedReader struct {
	feed <-chan []byte
	rest []byte
}

func (r *feedReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		var ok bool
		if r.rest, ok = <-r.feed; !ok {
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
