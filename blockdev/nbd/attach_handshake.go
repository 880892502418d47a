package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

// The client's side of the negotiation, as far as the kernel needs it: the kernel's driver takes a socket that is
// already in transmission. Nothing is asked for that the kernel could not use, so replies stay simple ones.

// ErrNotServed is wrapped by the error of a server that answers and does not serve what was asked for.
var ErrNotServed = errors.New("not served")

const (
	maxClientReplies    = 64       // to one GO
	maxClientReplySize  = 16 << 10 // bytes of one of them
	replyErrTLSNeeded   = uint32(1<<31 | 5)
	replyIsError        = uint32(1 << 31)
	linkKeepAlive       = 5 * time.Second
	linkKeepAliveProbes = 4
)

// offer is what a server says of an export in its answer to GO.
type offer struct {
	name     string // the export's own name, also when it was asked for as ""; "" when the server does not say
	size     uint64 // bytes
	flags    uint16 // transmission flags
	blockMin uint32 // bytes; 0 when the server does not say
}

// Dial connects to an NBD server at "unix:PATH" or "HOST:PORT", without a handshake. A TCP connection is set up to
// notice within half a minute that the other host is gone, also after it was given to the kernel.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: linkKeepAlive, Interval: linkKeepAlive, Count: linkKeepAliveProbes,
	}}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return d.DialContext(ctx, "unix", path)
	}
	return d.DialContext(ctx, "tcp", address)
}

// setUserTimeout has TCP end the connection when nobody acknowledges its data for so long, and forget the requests that
// it had not delivered: they must not arrive after the kernel has sent them again on another link.
func setUserTimeout(c *net.TCPConn, d time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
	return errors.Join(err, set)
}

// negotiate chooses an export by GO and returns when the connection is in transmission. It reads exactly what belongs
// to the handshake, and no more than maxClientReplies of maxClientReplySize. Deadlines are the caller's.
func negotiate(rw io.ReadWriter, export string) (offer, error) {
	if len(export) > maxNameSize {
		return offer{}, fmt.Errorf("the export's name has %d bytes, at most %d are allowed", len(export), maxNameSize)
	}
	var greeting protocol.NegotiationNewstyleHeader
	if err := binary.Read(rw, binary.BigEndian, &greeting); err != nil {
		return offer{}, fmt.Errorf("read the greeting: %w", err)
	}
	if greeting.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE {
		return offer{}, errors.New("this is no NBD server")
	}
	if greeting.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION ||
		greeting.HandshakeFlags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return offer{}, errors.New("an NBD server without fixed newstyle negotiation; it is too old")
	}
	flags := clientFixedNewstyle
	if greeting.HandshakeFlags&handshakeNoZeroes != 0 {
		flags |= clientNoZeroes
	}
	if _, err := rw.Write(goRequest(flags, export)); err != nil {
		return offer{}, fmt.Errorf("ask for the export: %w", err)
	}
	var o offer
	known := false
	for range maxClientReplies {
		kind, data, err := readReply(rw)
		switch {
		case err != nil:
			return offer{}, err
		case kind == protocol.NEGOTIATION_TYPE_REPLY_ACK && known:
			return o, nil
		case kind == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return offer{}, errors.New("the server did not tell the export's size")
		case kind == protocol.NEGOTIATION_TYPE_REPLY_INFO:
			is, err := o.take(data)
			if err != nil {
				return offer{}, err
			}
			known = known || is
		default:
			return offer{}, refusedBy(kind, data, export)
		}
	}
	return offer{}, fmt.Errorf("more than %d replies to one option", maxClientReplies)
}

// goRequest is the client's flags and GO: length of the name u32, name, count of infos u16, infos u16.
func goRequest(flags uint32, export string) []byte {
	infos := []uint16{protocol.NEGOTIATION_TYPE_INFO_NAME, protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE}
	p := binary.BigEndian.AppendUint32(nil, flags)
	p = binary.BigEndian.AppendUint64(p, protocol.NEGOTIATION_MAGIC_OPTION)
	p = binary.BigEndian.AppendUint32(p, protocol.NEGOTIATION_ID_OPTION_GO)
	p = binary.BigEndian.AppendUint32(p, uint32(4+len(export)+2+2*len(infos)))
	p = binary.BigEndian.AppendUint32(p, uint32(len(export)))
	p = append(p, export...)
	p = binary.BigEndian.AppendUint16(p, uint16(len(infos)))
	for _, i := range infos {
		p = binary.BigEndian.AppendUint16(p, i)
	}
	return p
}

func readReply(r io.Reader) (kind uint32, data []byte, err error) {
	var h protocol.NegotiationReplyHeader
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return 0, nil, fmt.Errorf("read a reply: %w", err)
	}
	switch {
	case h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY:
		return 0, nil, fmt.Errorf("reply: %w", errBadMagic)
	case h.ID != protocol.NEGOTIATION_ID_OPTION_GO:
		return 0, nil, fmt.Errorf("a reply to option %d, which nobody asked for", h.ID)
	case h.Length > maxClientReplySize:
		return 0, nil, fmt.Errorf("a reply of %d bytes, at most %d are expected", h.Length, maxClientReplySize)
	}
	data = make([]byte, h.Length)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("read a reply: %w", err)
	}
	return h.Type, data, nil
}

// take enters one info; export says that it was the one with size and flags.
func (o *offer) take(p []byte) (export bool, err error) {
	if len(p) < 2 {
		return false, errors.New("an info of less than two bytes")
	}
	switch binary.BigEndian.Uint16(p) {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		var i protocol.NegotiationReplyInfo
		if err := decodeInfo(p, &i); err != nil {
			return false, err
		}
		o.size, o.flags = i.Size, i.TransmissionFlags
		return true, nil
	case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
		var i protocol.NegotiationReplyBlockSize
		if err := decodeInfo(p, &i); err != nil {
			return false, err
		}
		o.blockMin = i.MinimumBlockSize
	case protocol.NEGOTIATION_TYPE_INFO_NAME:
		if len(p)-2 > maxNameSize {
			return false, fmt.Errorf("an export's name of %d bytes", len(p)-2)
		}
		o.name = string(p[2:])
	}
	return false, nil
}

func decodeInfo(p []byte, into any) error {
	if len(p) != binary.Size(into) {
		return fmt.Errorf("an info of %d bytes where %d are right", len(p), binary.Size(into))
	}
	return binary.Read(bytes.NewReader(p), binary.BigEndian, into)
}

// refusedBy says in words why a server did not accept GO.
func refusedBy(kind uint32, data []byte, export string) error {
	said := ""
	if s := strings.TrimSpace(strings.ToValidUTF8(string(data), "?")); s != "" {
		said = fmt.Sprintf(" (%.200q)", s)
	}
	switch kind {
	case replyErrTLSNeeded:
		return fmt.Errorf("%w: the server wants TLS, and the kernel's NBD client has no TLS: "+
			"have it serve at a unix socket and attach that on the same host, or use nbdfuse with an nbds:// URI", ErrNotServed)
	case protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN:
		return fmt.Errorf("%w: there is no export %q%s; nbdinfo --list shows those that there are", ErrNotServed, export, said)
	case replyErrShutdown:
		return fmt.Errorf("%w: the server is shutting down", ErrNotServed)
	case protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED:
		return fmt.Errorf("%w: the server does not know GO; it is too old", ErrNotServed)
	}
	if kind&replyIsError == 0 {
		return fmt.Errorf("an unknown reply %d to GO", kind)
	}
	return fmt.Errorf("%w: export %q is refused with error %d%s", ErrNotServed, export, kind&^replyIsError, said)
}
