package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Why a handshake ended without a device. None of them is the server's fault; they are logged and nothing more.
var (
	errBadMagic  = errors.New("wrong magic number")
	errBadFlags  = errors.New("unknown client flags")
	errTooBig    = errors.New("option is too large")
	errNoExport  = errors.New("no such export")
	errAborted   = errors.New("the client aborted the handshake")
	errTooMany   = errors.New("too many options")
	errBadOption = errors.New("malformed option")
	errGoingAway = errors.New("the server is shutting down")
)

// handshake is the fixed newstyle negotiation:
//
//	S: greeting   C: flags   { C: option   S: replies }…   until GO or EXPORT_NAME leads to transmission, or ABORT ends it
//
// It reads exactly what belongs to it. Deadlines are the caller's.
type handshake struct {
	rw      io.ReadWriter
	exports []Export
	flags   uint32 // of the client
	maximum uint32 // payload, bytes
	going   func() bool

	security   security
	structured bool    // the client takes structured replies
	allocation *Export // for which base:allocation is set; it counts when the client chooses the same
}

// run returns the export that the client chose.
func (h *handshake) run() (*export, error) {
	err := h.write(protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  protocol.NEGOTIATION_MAGIC_OLDSTYLE,
		OptionMagic:    protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE | handshakeNoZeroes,
	})
	if err != nil {
		return nil, err
	}
	if err := binary.Read(h.rw, binary.BigEndian, &h.flags); err != nil {
		return nil, err
	}
	if h.flags&^(clientFixedNewstyle|clientNoZeroes) != 0 {
		return nil, errBadFlags
	}
	if h.security.required && h.flags&clientFixedNewstyle == 0 {
		return nil, errPlain // such a client cannot be told
	}
	for range maxOptions {
		e, err := h.option()
		if e != nil || err != nil {
			return e, err
		}
	}
	return nil, errTooMany
}

// option handles one option; the export is set when it leads to transmission.
func (h *handshake) option() (*export, error) {
	var o protocol.NegotiationOptionHeader
	if err := binary.Read(h.rw, binary.BigEndian, &o); err != nil {
		return nil, err
	}
	if o.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return nil, errBadMagic
	}
	if o.ID == optionSetMetaContext {
		h.allocation = nil // it replaces what was set before, also when it fails
	}
	if o.Length > maxOptionSize {
		if o.Length > maxSkippedSize || o.ID == optionExportName {
			return nil, errTooBig
		}
		if _, err := io.CopyN(io.Discard, h.rw, int64(o.Length)); err != nil {
			return nil, err
		}
		if h.security.refuses(o.ID) {
			return nil, h.reply(o.ID, replyErrTLS, []byte("TLS is required"))
		}
		return nil, h.reply(o.ID, replyErrTooBig, []byte("option is too large"))
	}
	data := make([]byte, o.Length)
	if _, err := io.ReadFull(h.rw, data); err != nil {
		return nil, err
	}
	if o.ID == protocol.NEGOTIATION_ID_OPTION_ABORT {
		_ = h.reply(o.ID, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil) // the client may be gone already
		return nil, errAborted
	}
	if h.security.refuses(o.ID) {
		if o.ID == optionExportName {
			return nil, errPlain
		}
		return nil, h.reply(o.ID, replyErrTLS, []byte("TLS is required"))
	}
	if h.going() {
		if o.ID == optionExportName { // it has no error reply
			return nil, errGoingAway
		}
		return nil, h.reply(o.ID, replyErrShutdown, []byte("the server is shutting down"))
	}
	switch o.ID {
	case optionExportName:
		return h.exportName(string(data))
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return nil, h.list(data)
	case protocol.NEGOTIATION_ID_OPTION_INFO, protocol.NEGOTIATION_ID_OPTION_GO:
		return h.info(o.ID, data)
	case optionStartTLS:
		return nil, h.startTLS(data)
	case optionStructuredReply:
		return nil, h.structuredReply(data)
	case optionListMetaContext, optionSetMetaContext:
		return nil, h.metaContext(o.ID, data)
	default:
		return nil, h.reply(o.ID, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, nil)
	}
}

func (h *handshake) find(name string) *Export {
	for i := range h.exports {
		if e := &h.exports[i]; e.Name == name || name == "" && i == 0 {
			return e
		}
	}
	return nil
}

func (h *handshake) structuredReply(data []byte) error {
	if len(data) != 0 {
		return h.reply(optionStructuredReply, replyErrInvalid, []byte("STRUCTURED_REPLY takes no data"))
	}
	h.structured = true
	return h.reply(optionStructuredReply, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// negotiate returns the export as this client is served it.
func (h *handshake) negotiate(found *Export) (*export, error) {
	return found.negotiated(h.structured, h.allocation == found)
}

// exportName is the old way in; it can only succeed or end the connection.
func (h *handshake) exportName(name string) (*export, error) {
	found := h.find(name)
	if found == nil {
		return nil, errNoExport
	}
	e, err := h.negotiate(found)
	if err != nil {
		return nil, err
	}
	answer := binary.BigEndian.AppendUint64(nil, e.size.Load())
	answer = binary.BigEndian.AppendUint16(answer, e.flags)
	if h.flags&clientNoZeroes == 0 {
		answer = append(answer, make([]byte, reservedZeroes)...)
	}
	if _, err := h.rw.Write(answer); err != nil {
		return nil, err
	}
	return e, nil
}

// list answers with one SERVER reply per export: length of the name, name, description.
func (h *handshake) list(data []byte) error {
	id := protocol.NEGOTIATION_ID_OPTION_LIST
	if len(data) != 0 {
		return h.reply(id, replyErrInvalid, []byte("LIST takes no data"))
	}
	for i := range h.exports {
		e := &h.exports[i]
		entry := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		entry = append(append(entry, e.Name...), e.Description...)
		if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_SERVER, entry); err != nil {
			return err
		}
	}
	return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// info handles INFO and GO. The export is set only for a GO that was acknowledged.
func (h *handshake) info(id uint32, data []byte) (*export, error) {
	name, wanted, err := parseInfo(data)
	if err != nil {
		return nil, h.reply(id, replyErrInvalid, []byte(err.Error()))
	}
	found := h.find(name)
	if found == nil {
		return nil, h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, []byte(errNoExport.Error()))
	}
	e, err := h.negotiate(found)
	if err != nil {
		return nil, h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, []byte("the export is not available"))
	}
	infos := []any{
		protocol.NegotiationReplyInfo{
			Type: protocol.NEGOTIATION_TYPE_INFO_EXPORT, Size: e.size.Load(), TransmissionFlags: e.flags,
		},
		protocol.NegotiationReplyBlockSize{
			Type: protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE, MinimumBlockSize: e.blockMin,
			PreferredBlockSize: e.blockPreferred, MaximumBlockSize: max(h.maximum, e.blockPreferred),
		},
	}
	if wanted.name {
		infos = append(infos, append(binary.BigEndian.AppendUint16(nil, protocol.NEGOTIATION_TYPE_INFO_NAME), found.Name...))
	}
	if wanted.description {
		infos = append(infos,
			append(binary.BigEndian.AppendUint16(nil, protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION), found.Description...))
	}
	for _, info := range infos {
		var p bytes.Buffer
		if err := binary.Write(&p, binary.BigEndian, info); err != nil {
			return nil, err
		}
		if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_INFO, p.Bytes()); err != nil {
			return nil, err
		}
	}
	if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil); err != nil {
		return nil, err
	}
	if id != protocol.NEGOTIATION_ID_OPTION_GO {
		return nil, nil
	}
	return e, nil
}

type wantedInfo struct{ name, description bool }

// parseInfo decodes the data of INFO and GO: length of the name u32, name, count u16, count × u16.
func parseInfo(p []byte) (name string, wanted wantedInfo, err error) {
	if name, p, err = cutString(p); err != nil || len(p) < 2 {
		return "", wanted, errBadOption
	}
	count := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if len(p) != 2*count {
		return "", wanted, errBadOption
	}
	for ; len(p) > 0; p = p[2:] {
		switch binary.BigEndian.Uint16(p) {
		case protocol.NEGOTIATION_TYPE_INFO_NAME:
			wanted.name = true
		case protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
			wanted.description = true
		}
	}
	return name, wanted, nil
}

func (h *handshake) reply(option, kind uint32, data []byte) error {
	var p bytes.Buffer
	err := binary.Write(&p, binary.BigEndian, protocol.NegotiationReplyHeader{
		ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY, ID: option, Type: kind, Length: uint32(len(data)),
	})
	if err != nil {
		return err
	}
	p.Write(data)
	if _, err := h.rw.Write(p.Bytes()); err != nil {
		return fmt.Errorf("answer option %d: %w", option, err)
	}
	return nil
}

func (h *handshake) write(v any) error {
	var p bytes.Buffer
	if err := binary.Write(&p, binary.BigEndian, v); err != nil {
		return err
	}
	_, err := h.rw.Write(p.Bytes())
	return err
}
