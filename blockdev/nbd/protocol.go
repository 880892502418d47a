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

	optionExportName      = uint32(1)  // NBD_OPT_EXPORT_NAME
	optionStartTLS        = uint32(5)  // NBD_OPT_STARTTLS
	optionStructuredReply = uint32(8)  // NBD_OPT_STRUCTURED_REPLY
	optionListMetaContext = uint32(9)  // NBD_OPT_LIST_META_CONTEXT
	optionSetMetaContext  = uint32(10) // NBD_OPT_SET_META_CONTEXT

	replyMetaContext = uint32(4)         // NBD_REP_META_CONTEXT
	replyErrPolicy   = uint32(1<<31 | 2) // NBD_REP_ERR_POLICY
	replyErrInvalid  = uint32(1<<31 | 3) // NBD_REP_ERR_INVALID
	replyErrTLS      = uint32(1<<31 | 5) // NBD_REP_ERR_TLS_REQD
	replyErrShutdown = uint32(1<<31 | 7) // NBD_REP_ERR_SHUTDOWN
	replyErrTooBig   = uint32(1<<31 | 9) // NBD_REP_ERR_TOO_BIG

	// Transmission flags.
	flagReadOnly        = uint16(1 << 1)
	flagSendFlush       = uint16(1 << 2)
	flagSendFUA         = uint16(1 << 3)
	flagSendTrim        = uint16(1 << 5)
	flagSendWriteZeroes = uint16(1 << 6)
	flagSendDF          = uint16(1 << 7)
	flagSendCache       = uint16(1 << 10)
	flagSendFastZero    = uint16(1 << 11)

	// Commands.
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)

	// Command flags.
	cmdFlagFUA      = uint16(1 << 0)
	cmdFlagNoHole   = uint16(1 << 1)
	cmdFlagDF       = uint16(1 << 2)
	cmdFlagReqOne   = uint16(1 << 3)
	cmdFlagFastZero = uint16(1 << 4)

	// Structured replies.
	structuredMagic  = uint32(0x668e33ef)
	chunkDone        = uint16(1 << 0) // NBD_REPLY_FLAG_DONE
	chunkNone        = uint16(0)
	chunkData        = uint16(1) // NBD_REPLY_TYPE_OFFSET_DATA
	chunkHole        = uint16(2) // NBD_REPLY_TYPE_OFFSET_HOLE
	chunkBlockStatus = uint16(5)
	chunkError       = uint16(1<<15 | 1)
	chunkErrorOffset = uint16(1<<15 | 2)

	// Status of an extent in the context base:allocation.
	stateHole = uint32(1 << 0)
	stateZero = uint32(1 << 1)

	// Error values.
	errnoOK       = uint32(0)
	errnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	errnoIO       = uint32(5)
	errnoInval    = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoOverflow = uint32(75)
	errnoNotSup   = uint32(95)
	errnoShutdown = uint32(108)
)

// Sizes in bytes.
const (
	requestSize     = 28
	replySize       = 16
	chunkSize       = 20      // header of a chunk of a structured reply
	dataChunkSize   = 28      // up to the data
	holeChunkSize   = 32      // the whole
	maxStatusSize   = 128     // of any reply without data, its text included
	maxNameSize     = 4096    // "MUST be no longer than 4096 bytes"
	maxOptionSize   = 8 << 10 // of an option that is read
	maxSkippedSize  = 1 << 20 // of an option that is skipped; beyond it the connection ends
	maxOptions      = 256     // of one handshake
	reservedZeroes  = 124     // after the answer to EXPORT_NAME
	defaultPayload  = 32 << 20
	preferredBlock  = 4096
	socketBuffer    = 2 << 20 // of a unix socket, for replies
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
