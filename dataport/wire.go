package dataport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"github.com/zeebo/xxh3"
)

// wire is a connection after TLS (if any) and before, during and after the hellos.
type wire struct {
	raw     net.Conn
	tls     *tls.Conn     // nil: plain TCP
	buf     *bufferedConn // beneath tls
	r       *frameReader
	key     ed25519.PublicKey // of the peer, verified; nil over plain TCP
	binding []byte            // see secret.go; nil over plain TCP
	rtt     time.Duration     // of the hellos, on the side that dials
	asked   bool              // the peer's hello said flagStandby
	told    uint64            // version of the addresses that our hello carried
}

// secure does the TLS handshake, within ctx and the deadline set on raw.
func (n *Node) secure(ctx context.Context, raw net.Conn, dials bool) (*wire, error) {
	w := &wire{raw: raw}
	if n.tls == nil {
		w.r = newFrameReader(raw, raw)
		return w, nil
	}
	w.buf = &bufferedConn{Conn: raw}
	if dials {
		w.tls = tls.Client(w.buf, n.tls)
	} else {
		w.tls = tls.Server(w.buf, n.tls)
	}
	if err := w.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", notTLS(err))
	}
	var err error
	if w.key, err = presentedKey(w.tls.ConnectionState()); err != nil {
		return nil, err
	}
	if w.binding, err = bindingOf(w.tls, [32]byte{}); err != nil {
		return nil, err
	}
	w.r = newFrameReader(w.tls, raw)
	return w, nil
}

// notTLS says what it mostly means when the other side's first bytes are no TLS, or it hangs up on ours.
func notTLS(err error) error {
	var record tls.RecordHeaderError
	if errors.As(err, &record) || errors.Is(err, io.EOF) {
		return fmt.Errorf("the other side does not seem to talk TLS (insecure there and not here?): %w", err)
	}
	return err
}

// bound returns the value that proofs on this connection are bound to.
func (w *wire) bound(nonce [32]byte) []byte {
	if w.tls == nil {
		return nonce[:]
	}
	return w.binding
}

func (w *wire) keyText() string {
	if w.key == nil {
		return ""
	}
	return FormatPublicKey(w.key)
}

// establish ends the handshake: no deadline any more, and writes are gathered.
func (w *wire) establish() error {
	if w.buf != nil {
		w.buf.startBuffering()
	}
	if err := w.raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if d, ok := w.raw.(interface{ Detach() error }); ok {
		return d.Detach()
	}
	return nil
}

func (w *wire) close(abort bool) {
	if t, ok := w.raw.(interface{ Abort() error }); ok && abort {
		_ = t.Abort()
		return
	}
	if t, ok := w.raw.(interface{ SetLinger(sec int) error }); ok && abort {
		_ = t.SetLinger(0)
	}
	_ = w.raw.Close()
}

// writeAll writes the pieces: with writev over TCP, as records into one buffer over TLS. When a write deadline passes
// what is not written yet is copied, and resume says whether to go on with the copy; the pieces are not read any more.
func (w *wire) writeAll(pieces net.Buffers, resume func() bool) error {
	if w.tls == nil {
		n, err := w.writev(pieces)
		for errors.Is(err, os.ErrDeadlineExceeded) {
			rest := bytes.Join(pieces, nil)[n:]
			if !resume() {
				break
			}
			pieces = net.Buffers{rest}
			n, err = w.writev(pieces)
		}
		return err
	}
	for _, b := range pieces {
		if _, err := w.tls.Write(b); err != nil {
			return err
		}
	}
	err := w.buf.flush()
	for errors.Is(err, os.ErrDeadlineExceeded) && resume() {
		err = w.buf.flush()
	}
	return err
}

// writev writes all pieces, and leaves them as they are; it returns how many bytes of them went out.
func (w *wire) writev(pieces net.Buffers) (int, error) {
	if v, ok := w.raw.(interface{ Writev([][]byte) (int, error) }); ok {
		return v.Writev(pieces)
	}
	v := slices.Clone(pieces) // which WriteTo consumes
	n, err := v.WriteTo(w.raw)
	return int(n), err
}

func (w *wire) sendHello(h *hello) error {
	body := h.encode()
	b := make([]byte, headerBytes, headerBytes+len(body))
	head := header{typ: frameHello, flags: h.flags, session: h.session, client: clientID(h.client), payload: uint32(len(body)), payloadHash: xxh3.Hash(body)}
	head.encode(b)
	b = append(b, body...)
	w.told = h.addrs.version
	if w.tls != nil {
		_, err := w.tls.Write(b)
		return err
	}
	_, err := w.raw.Write(b)
	return err
}

// readHello reads the one frame that is allowed before a path is established.
func (w *wire) readHello(h *hello) error {
	b, err := w.r.header()
	if err != nil {
		return err
	}
	var head header
	if err := head.decode(b, 0); err != nil {
		return err
	}
	if head.typ != frameHello {
		return fmt.Errorf("%w: frame of type %d before the hello", ErrProtocol, head.typ)
	}
	body := make([]byte, head.payload) // at most maxControlPayload
	if _, err := io.ReadFull(w.r, body); err != nil {
		return err
	}
	if xxh3.Hash(body) != head.payloadHash {
		return fmt.Errorf("%w: hello checksum", ErrFrame)
	}
	w.asked = head.flags&flagStandby != 0
	return h.decode(body)
}

// helloFor fills in what every hello of this node says.
func (n *Node) helloFor(kind helloKind, r *Registration, id SessionID, path PathID) *hello {
	h := &hello{
		kind: kind, session: id, path: path, incarnation: n.incarnation, maxMessage: uint32(n.conf.MaxMessageBytes),
		credit: uint64(n.conf.ReceiveWindowBytes), unpacks: n.unpacks, name: n.conf.Name, addrs: n.listens.announced(),
	}
	if r != nil {
		h.client = r.name
		h.history, h.generation = r.tells(kind)
	}
	return h
}

// ask sends our hello and reads the answer. An answer that refuses is a *RefusedError.
func (w *wire) ask(h *hello) (*hello, error) {
	start := time.Now()
	if err := w.sendHello(h); err != nil {
		return nil, fmt.Errorf("send hello: %w", err)
	}
	var a hello
	if err := w.readHello(&a); err != nil {
		// In TLS 1.3 the side that dials learns only now whether its key was accepted (RFC 8446, 4.4.2.4).
		var op *net.OpError
		if w.tls != nil && errors.As(err, &op) && op.Op == "remote error" {
			return nil, &RefusedError{Code: RefusedProof, Reason: fmt.Sprintf("it does not accept our key (%v)", op.Err)}
		}
		if w.tls == nil && errors.Is(err, io.EOF) {
			err = fmt.Errorf("the other side hung up (it talks TLS, and is insecure here alone?): %w", err)
		}
		return nil, fmt.Errorf("read the answer to hello: %w", err)
	}
	w.rtt = max(time.Since(start), 1)
	switch {
	case a.kind == helloRefused:
		return &a, &RefusedError{Code: a.code, Reason: a.reason}
	case a.kind != helloAccepted || a.session != h.session || a.path != h.path:
		return nil, fmt.Errorf("%w: answer of kind %d to session %s", ErrBadHello, a.kind, h.session)
	}
	return &a, nil
}
