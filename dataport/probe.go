package dataport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Probed is what a host said that was only asked who it is.
type Probed struct {
	Name          string // of the node there
	Key           string // FormatPublicKey of its key, proved; "" over plain TCP
	Local, Remote string
	RTT           time.Duration // of the hellos
	MTU           int           // of the route, as the kernel knows it; 0: unknown
}

// probeClient is a name that nobody registers: what is refused for it was let in as a peer.
const probeClient = "?"

// Probe connects to remote from local ("" lets the kernel choose) as a node of c would, proves who it is and sees who is there,
// and leaves. No session begins, and nothing changes there; it logs a refused connection. The error tells what a path would meet:
// it wraps ErrWrongKey when the host's key is not among c.Peers, ErrRefused when it does not accept ours.
func Probe(ctx context.Context, c Config, local, remote string) (p Probed, err error) {
	c.Listen = nil
	n, err := NewNode(c)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, c.Timing.HandshakeTimeout)
	defer cancel()
	raw, err := n.conf.Dial(ctx, local, remote)
	if err != nil {
		return p, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(c.Timing.HandshakeTimeout))
	p.Local, p.Remote, p.MTU = raw.LocalAddr().String(), raw.RemoteAddr().String(), routeMTU(raw)
	w, err := n.secure(ctx, raw, true)
	if err != nil {
		return p, err
	}
	p.Key = w.keyText()
	h := n.helloFor(helloOpen, nil, 1, 1)
	h.client = probeClient
	a, err := w.ask(h)
	p.RTT = w.rtt
	var refusal *RefusedError
	if errors.As(err, &refusal) && refusal.Code == RefusedNoClient && a != nil {
		p.Name = a.name
		return p, nil
	}
	if err == nil {
		err = fmt.Errorf("%w: it knows a client named %q", ErrProtocol, probeClient)
	}
	return p, err
}

// routeMTU is 0 for a connection that is not TCP's.
func routeMTU(c net.Conn) int {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return 0
	}
	remote, ok := t.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	return socketMTU(t, remote.IP.To4() == nil)
}
