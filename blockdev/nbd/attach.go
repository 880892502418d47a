package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/rs/zerolog"
)

// Attaching a served export to a device of the kernel, /dev/nbdN:
//
//	attach_handshake   the client's handshake, bounded
//	attach_kernel      the kernel's driver by generic netlink
//	attach (here)      Attachment: sockets with a handshake behind them go to the kernel, and again when they die
//
//	   Attach: CONNECT            link died: wait until the server answers,
//	──────────────────▶ attached ◀──────────────────────────────────────────▶ waiting
//	   or, when it is ours            then RECONFIGURE with new sockets
//	   already, RECONFIGURE     someone detached it: the end
//
// While all links are dead the kernel keeps every request back, for DeadConnTimeout at most; whoever waits for it sees a
// pause. The requests that had no answer go out again on the new links. That one of them is never applied twice with
// something else in between is the work of three: the server drops what a dead connection had not yet given to the
// device and gives the rest to the device in the order in which it came; the device orders what it is given when it is
// given; and here a link's TCP forgets what it could not deliver before the kernel sends it again (undelivered).

// AttachOptions say what is attached where. Dial is needed, the rest has defaults.
type AttachOptions struct {
	// Index is the N of /dev/nbdN.
	Index int
	// Export is the name that the server is asked for; "" is its default.
	Export string
	// Dial connects to the server, without a handshake; it is called again whenever links have died. What it returns must
	// be a TCP or unix connection. See the function Dial.
	Dial func(ctx context.Context) (net.Conn, error)
	// Connections that are opened at once, 1 to 64; 1 is used when the server does not promise CAN_MULTI_CONN. Default 1.
	Connections int
	// BlockSize in bytes is the sector of the kernel's device, a power of two from 512 to 4096. Default 512, so that a
	// filesystem is found whatever device it was made on; the server's minimum block when that is larger.
	BlockSize uint32
	// Timeout after which the kernel sends a request without an answer again: on a new link when its own has died, else, with
	// several connections, on another one, and the silent one is given up. So it is how long requests that were under way
	// when the server died stay away at least. 0 is the kernel's own 30 s. The kernel counts whole seconds.
	Timeout time.Duration
	// DeadConnTimeout is how long requests wait for a new link when all are dead, before they fail; from then on all fail at
	// once, until there are new links. 0 fails them at once. The kernel counts whole seconds.
	DeadConnTimeout time.Duration
	// Identifier names what is behind the device, for the kernel and for a later Attach: only who names the same takes the
	// device over. Required.
	Identifier string
	// HandshakeTimeout bounds connecting and the handshake of one connection. Default 10 s.
	HandshakeTimeout time.Duration
	// Log tells of links at info and of tries that failed at warn.
	Log zerolog.Logger
}

// MaxAttachConnections bounds AttachOptions.Connections.
const MaxAttachConnections = 64

const (
	largestSector = 4096
	kernelTimeout = 30 * time.Second       // of a device without one
	gatherDeaths  = 100 * time.Millisecond // links die together
	lookEvery     = 2 * time.Second        // whether the device is attached still, and the export has grown: NBD tells nobody
	redialFirst   = 100 * time.Millisecond
	redialMost    = 2 * time.Second
)

// Validate fills in the defaults and says what cannot be.
func (o *AttachOptions) Validate() error {
	o.Connections = max(o.Connections, 1)
	if o.BlockSize == 0 {
		o.BlockSize = 512
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	const longest = 30 * 24 * time.Hour // the kernel counts in ticks, of 32 bits
	switch {
	case o.Dial == nil || o.Identifier == "":
		return errors.New("attach: Dial and Identifier are needed")
	case o.Index < 0 || o.Index > 1<<15:
		return fmt.Errorf("device nbd%d: the number is out of range", o.Index)
	case o.Connections > MaxAttachConnections:
		return fmt.Errorf("%d connections: at most %d are possible", o.Connections, MaxAttachConnections)
	case bits.OnesCount32(o.BlockSize) != 1 || o.BlockSize < 512 || o.BlockSize > largestSector:
		return fmt.Errorf("block size %d: choose 512, 1024, 2048 or 4096", o.BlockSize)
	case o.Timeout < 0 || o.Timeout > longest || o.DeadConnTimeout < 0 || o.DeadConnTimeout > longest:
		return errors.New("a timeout is out of range: from 0 to 30 days")
	}
	return nil
}

// Attachment is a device of the kernel that is connected to an export. Watch or Close ends it; the device stays attached.
type Attachment struct {
	kernel  *Kernel
	options AttachOptions
	deaths  Transport // hears of dead links; from before the first link lives

	offer   offer // of the first handshake; name and size are what later ones have to show
	block   uint64
	links   int // of the first handshake
	adopted bool
	waiting error // why an adopted device has no new links yet

	close sync.Once
}

// Attached is what an Attachment has connected.
type Attached struct {
	Device      string // /dev/nbdN
	Export      string // its own name, "" when the server does not tell
	SizeBytes   uint64
	Connections int   // that were opened
	Adopted     bool  // it was attached before, by the same Identifier
	Waiting     error // why an adopted device has to wait for its server
}

// Attach connects the device. One that is connected with the same Identifier is taken over: it gets new links in
// place of dead ones. Errors: ErrDeviceInUse, ErrNoPermission, ErrNotServed, and what Dial says.
func Attach(ctx context.Context, k *Kernel, o AttachOptions) (*Attachment, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	deaths, err := k.deaths()
	if err != nil {
		return nil, err
	}
	a := &Attachment{kernel: k, options: o, deaths: deaths}
	up, err := k.Attached(o.Index)
	switch {
	case err != nil:
	case up:
		err = a.adopt(ctx)
	default:
		err = a.connect(ctx)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Attachment) connect(ctx context.Context) error {
	links, err := a.dialAll(ctx)
	if err != nil {
		return err
	}
	defer links.close()
	o, first := &a.options, links.offer
	a.offer, a.links = first, len(links.files)
	block := uint64(max(o.BlockSize, first.blockMin))
	a.block = block
	if block > largestSector || first.size < block {
		return fmt.Errorf("export %q of %d bytes in blocks of %d: no device of the kernel can be made of it", first.name, first.size, block)
	}
	d := kernelDevice{
		index: o.Index, size: first.size / block * block, blockSize: block, flags: first.flags, sockets: links.fds(),
		timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout, identifier: o.Identifier,
	}
	return a.kernel.connect(&d)
}

// undelivered is how long a link's TCP keeps what nobody acknowledges: less than the kernel waits until it sends it
// again on another link.
func (o *AttachOptions) undelivered() time.Duration {
	if o.Timeout == 0 {
		return kernelTimeout * 4 / 5
	}
	return min(o.Timeout, kernelTimeout) * 4 / 5
}

// adopt takes over a device that is attached already. Its server may be away.
func (a *Attachment) adopt(ctx context.Context) error {
	if by := a.kernel.identifier(a.options.Index); by != a.options.Identifier {
		if by == "" {
			return ErrDeviceInUse
		}
		return fmt.Errorf("%w: it is attached to %s", ErrDeviceInUse, by)
	}
	a.adopted = true
	a.offer.size, a.block = a.kernel.size(a.options.Index), a.kernel.blockSize(a.options.Index)
	a.waiting = a.renew(ctx)
	if errors.Is(a.waiting, ErrNoPermission) {
		return a.waiting
	}
	return ctx.Err()
}

// Attached tells what was connected. It must not be called beside Watch.
func (a *Attachment) Attached() Attached {
	return Attached{
		Device: fmt.Sprintf("/dev/nbd%d", a.options.Index), Export: a.offer.name, SizeBytes: a.offer.size,
		Connections: a.links, Adopted: a.adopted, Waiting: a.waiting,
	}
}

// Close stops hearing of dead links; the device stays attached. It may be called twice.
func (a *Attachment) Close() error {
	var err error
	a.close.Do(func() { err = a.deaths.Close() })
	return err
}

// Watch gives the device new links whenever some have died, until ctx is done (nil) or someone has detached it
// (ErrDetached). It closes the Attachment.
func (a *Attachment) Watch(ctx context.Context) error {
	died := make(chan struct{}, 1)
	var hearing sync.WaitGroup
	hearing.Go(func() { a.hear(died) })
	defer hearing.Wait()
	defer a.Close()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	if a.waiting != nil {
		if err := a.repair(ctx, died); err != nil {
			return ended(ctx, err)
		}
	}
	p := &prober{a: a, found: make(chan offer, 1)}
	defer p.stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-died:
			p.stop()
			if err := a.repair(ctx, died); err != nil {
				return ended(ctx, err)
			}
		case now := <-p.found:
			a.grow(now)
		case <-look.C:
			if up, err := a.kernel.Attached(a.options.Index); err != nil {
				return err
			} else if !up {
				return ErrDetached
			}
			p.start(ctx)
		}
	}
}

// prober asks the server for its offer beside the watch: a server that does not answer must not keep it from hearing that a link has died.
// start and stop are for the watch alone.
type prober struct {
	a      *Attachment
	found  chan offer // of the last probe, when the server answered; holds one
	cancel context.CancelFunc
	done   chan struct{} // closed when the last probe has ended
}

// start begins a probe, unless one is under way.
func (p *prober) start(ctx context.Context) {
	if p.cancel != nil {
		select {
		case <-p.done:
			p.cancel()
		default:
			return
		}
	}
	ctx, p.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	p.done = done
	go func() {
		defer close(done)
		f, now, err := p.a.dialOne(ctx)
		if err != nil {
			return // a server that is away is somebody else's business
		}
		f.Close()
		select {
		case p.found <- now:
		default: // the watch has not come to the one before yet; it asks again soon
		}
	}()
}

// stop ends a probe, and forgets what it has found.
func (p *prober) stop() {
	if p.cancel == nil {
		return
	}
	p.cancel()
	<-p.done
	p.cancel = nil
	select {
	case <-p.found:
	default:
	}
}

// grow tells the kernel when the export has become larger.
func (a *Attachment) grow(now offer) {
	if a.same(now) != nil || now.size/a.block <= a.offer.size/a.block {
		return
	}
	o := &a.options
	d := kernelDevice{index: o.Index, size: now.size / a.block * a.block, identifier: o.Identifier}
	if err := a.kernel.reconfigure(&d); err != nil {
		o.Log.Warn().Int("device", o.Index).Err(err).Uint64("bytes", now.size).Msg("the export has grown, the kernel cannot be told; detach and attach it")
	} else {
		o.Log.Info().Int("device", o.Index).Uint64("bytes", d.size).Msg("the export has grown, and the device with it")
	}
	a.offer.size = now.size
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// hear puts a token into died when a link of the device died, or may have. It ends when the Attachment is closed.
func (a *Attachment) hear(died chan<- struct{}) {
	failed := 0
	for {
		messages, _, err := a.deaths.Receive()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EBADF) { // the latter is what a real one says
			return
		}
		hit := err != nil // messages were lost: look what is dead
		if failed++; err == nil {
			failed = 0
		} else if failed > 10 {
			a.options.Log.Error().Err(err).Msg("the kernel cannot be heard any more; attach again to go on watching")
			return
		}
		for _, m := range messages {
			hit = hit || linkDied(m, a.options.Index)
		}
		if hit {
			select {
			case died <- struct{}{}:
			default:
			}
		}
	}
}

// repair tries until the device has new links. Its errors are final.
func (a *Attachment) repair(ctx context.Context, died <-chan struct{}) error {
	o, began, told := &a.options, time.Now(), ""
	for wait := redialFirst; ; wait = min(2*wait, redialMost) {
		if err := pause(ctx, gatherDeaths); err != nil {
			return err
		}
		select {
		case <-died: // what died meanwhile is repaired with the rest
		default:
		}
		up, err := a.kernel.Attached(o.Index)
		if err != nil {
			return err
		}
		if !up {
			return ErrDetached
		}
		err = a.renew(ctx)
		away := time.Since(began)
		if err == nil {
			a.waiting = nil
			o.Log.Info().Int("device", o.Index).Str("after", away.Round(time.Millisecond).String()).Msg("links renewed")
			if away > o.DeadConnTimeout {
				o.Log.Warn().Int("device", o.Index).Str("dead_conn_timeout", o.DeadConnTimeout.String()).
					Msg("requests that waited longer than that have failed; a filesystem that saw it wants to be unmounted, checked and mounted again")
			}
			return nil
		}
		if text := err.Error(); text != told && ctx.Err() == nil {
			o.Log.Warn().Int("device", o.Index).Err(err).Msg("links lost, requests wait")
			told = text
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// renew makes new links once and gives them to the kernel, which takes as many as it has dead ones.
func (a *Attachment) renew(ctx context.Context) error {
	links, err := a.dialAll(ctx)
	if err != nil {
		return err
	}
	defer links.close()
	if err := a.same(links.offer); err != nil {
		return err
	}
	o := &a.options
	d := kernelDevice{
		index: o.Index, timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout, identifier: o.Identifier, sockets: links.fds(),
	}
	if err := a.kernel.reconfigure(&d); err != nil {
		return fmt.Errorf("give nbd%d new links: %w", o.Index, err)
	}
	a.links = max(a.links, len(links.files))
	return nil
}

// kernelFlags are the promises that the kernel goes by once it was told of them: the server must go on keeping them. What else a server
// offers may come and go, as it does when an agent is upgraded.
const kernelFlags = flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN

// same refuses what cannot be the export that the device was attached to.
func (a *Attachment) same(now offer) error {
	was := &a.offer
	switch {
	case was.name != "" && now.name != was.name:
		return fmt.Errorf("the server has export %q now, attached is %q", now.name, was.name)
	case now.size < was.size:
		return fmt.Errorf("the export has %d bytes now, attached are %d", now.size, was.size)
	case was.flags != 0 && ((now.flags^was.flags)&flagReadOnly != 0 || was.flags&kernelFlags&^now.flags != 0):
		return fmt.Errorf("the export has other properties now (flags %#x, attached are %#x); unmount, detach and attach it", now.flags, was.flags)
	}
	if was.name == "" {
		was.name = now.name
	}
	return nil
}

// links are connections after their handshake.
type links struct {
	offer offer
	files []*os.File
}

func (l *links) fds() []uintptr {
	fds := make([]uintptr, len(l.files))
	for i, f := range l.files {
		fds[i] = f.Fd()
	}
	return fds
}

// close closes this process's ends; the kernel keeps those that it has taken.
func (l *links) close() {
	for _, f := range l.files {
		f.Close()
	}
}

// dialAll opens as many connections as are wanted and the server allows.
func (a *Attachment) dialAll(ctx context.Context) (*links, error) {
	l := &links{}
	want := a.options.Connections
	for i := 0; i < want; i++ {
		f, o, err := a.dialOne(ctx)
		if err != nil {
			l.close()
			return nil, err
		}
		l.files = append(l.files, f)
		if i == 0 {
			l.offer = o
			if o.flags&protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN == 0 {
				want = 1
			}
		} else if o != l.offer {
			l.close()
			return nil, errors.New("two connections were offered different exports")
		}
	}
	return l, nil
}

func (a *Attachment) dialOne(ctx context.Context) (*os.File, offer, error) {
	ctx, cancel := context.WithTimeout(ctx, a.options.HandshakeTimeout)
	defer cancel()
	c, err := a.options.Dial(ctx)
	if err != nil {
		return nil, offer{}, err
	}
	defer c.Close() // the file is a descriptor of its own
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := setUserTimeout(tcp, a.options.undelivered()); err != nil {
			return nil, offer{}, err
		}
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	o, err := negotiate(c, a.options.Export)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, offer{}, fmt.Errorf("NBD handshake with %s: %w", c.RemoteAddr(), err)
	}
	fc, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, offer{}, fmt.Errorf("a %T is no socket that the kernel could take", c)
	}
	f, err := fc.File()
	return f, o, err
}
