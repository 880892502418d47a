package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

var errPlain = errors.New("the client did not ask for TLS, which is required")

// security is what a handshake knows of TLS (proto.md, "TLS support": NOTLS without a config, FORCEDTLS when it is required,
// else SELECTIVETLS with no export that insists).
type security struct {
	start    func() (io.ReadWriter, error) // makes the connection a secure one; nil where there is no TLS
	required bool
	on       bool
}

// refuses says whether an option has to wait for TLS.
func (s *security) refuses(option uint32) bool {
	return s.required && !s.on && option != optionStartTLS && option != protocol.NEGOTIATION_ID_OPTION_ABORT
}

// startTLS handles STARTTLS. After the acknowledgement there is TLS or the end; nothing that was said in the clear counts.
func (h *handshake) startTLS(data []byte) error {
	refuse := func(kind uint32, why string) error { return h.reply(optionStartTLS, kind, []byte(why)) }
	switch {
	case h.security.start == nil:
		return refuse(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "the server has no TLS")
	case len(data) != 0:
		return refuse(replyErrInvalid, "STARTTLS takes no data")
	case h.security.on:
		return refuse(replyErrInvalid, "TLS is on already")
	case h.flags&clientFixedNewstyle == 0:
		return refuse(replyErrPolicy, "TLS needs a client of the fixed newstyle")
	}
	if err := h.reply(optionStartTLS, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil); err != nil {
		return err
	}
	rw, err := h.security.start()
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.rw, h.security.on = rw, true
	h.structured, h.allocation = false, nil
	return nil
}

// startTLS makes the connection a secure one. Only the handshake's goroutine uses c.nc before the connection has a leader.
func (c *conn) startTLS() (io.ReadWriter, error) {
	secure := tls.Server(c.socket, c.s.options.TLS)
	if err := secure.Handshake(); err != nil {
		return nil, err
	}
	c.nc = secure
	return secure, nil
}

// goodbye ends TLS in good order, so that the client knows that nothing was cut off.
func (c *conn) goodbye() {
	if secure, ok := c.nc.(*tls.Conn); ok {
		c.socket.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
		_ = secure.CloseWrite() // the client may be gone
	}
}

// goodbyeTimeout is how long a client that does not read keeps its connection from being closed.
const goodbyeTimeout = time.Second

// withTLS prepares the TLS configuration. Large records are worth more here than the first byte early.
func (o Options) withTLS() Options {
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.DynamicRecordSizingDisabled = true
	} else if o.TLSRequired {
		panic("nbd: TLS is required and there is no configuration of it")
	}
	return o
}
