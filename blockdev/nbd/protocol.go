package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol package does not name. Numbers are those of the NBD protocol, doc/proto.md.
const (
	handshakeNoZeroes = uint16(1 << 1) // NBD_FLAG_NO_ZEROES

	clientFixedNewstyle = uint32(1 << 0) // NBD_FLAG_C_FIXED_NEWSTYLE
	clientNoZeroes      = uint32(1 << 1) // NBD_FLAG_C_NO_ZEROES

	optionExportName = uint32(1) // NBD_OPT_EXPORT_NAME

	replyErrInvalid  = uint32(1<<31 | 3) // NBD_REP_ERR_INVALID
	replyErrShutdown = uint32(1<<31 | 7) // NBD_REP_ERR_SHUTDOWN
	replyErrTooBig   = uint32(1<<31 | 9) // NBD_REP_ERR_TOO_BIG

	// Transmission flags.
	flagReadOnly        = uint16(1 << 1)
	flagSendFlush       = uint16(1 << 2)
	flagSendFUA         = uint16(1 << 3)
	flagSendTrim        = uint16(1 << 5)
	flagSendWriteZeroes = uint16(1 << 6)

	// Commands.
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdWriteZeroes = uint16(6)

	// Command flags.
	cmdFlagFUA    = uint16(1 << 0)
	cmdFlagNoHole = uint16(1 << 1)

	// Error values.
	errnoOK       = uint32(0)
	errnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	errnoIO       = uint32(5)
	errnoInval    = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoShutdown = uint32(108)
)

// Sizes in bytes.
const (
	requestSize     = 28
	replySize       = 16
	maxNameSize     = 4096    // "MUST be no longer than 4096 bytes"
	maxOptionSize   = 8 << 10 // of an option that is read
	maxSkippedSize  = 1 << 20 // of an option that is skipped; beyond it the connection ends
	maxOptions      = 256     // of one handshake
	reservedZeroes  = 124     // after the answer to EXPORT_NAME
	defaultPayload  = 32 << 20
	preferredBlock  = 4096
	maxMinimumBlock = 64 << 10
)

// parseRequest decodes the 28 bytes of a request header:
//
//	0 magic u32    4 flags u16    6 type u16
//	8 cookie u64  16 offset u64  24 length u32
func parseRequest(p []byte) protocol.TransmissionRequestHeader {
	_ = p[requestSize-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(p),
		CommandFlags: binary.BigEndian.Uint16(p[4:]),
		Type:         binary.BigEndian.Uint16(p[6:]),
		Handle:       binary.BigEndian.Uint64(p[8:]),
		Offset:       binary.BigEndian.Uint64(p[16:]),
		Length:       binary.BigEndian.Uint32(p[24:]),
	}
}

// appendReply appends a simple reply header: magic u32, error u32, cookie u64.
func appendReply(p []byte, errno uint32, cookie uint64) []byte {
	p = binary.BigEndian.AppendUint32(p, protocol.TRANSMISSION_MAGIC_REPLY)
	p = binary.BigEndian.AppendUint32(p, errno)
	return binary.BigEndian.AppendUint64(p, cookie)
}
