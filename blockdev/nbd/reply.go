package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// appendReply appends a simple reply header: magic u32, error u32, cookie u64.
func appendReply(p []byte, errno uint32, cookie uint64) []byte {
	p = binary.BigEndian.AppendUint32(p, protocol.TRANSMISSION_MAGIC_REPLY)
	p = binary.BigEndian.AppendUint32(p, errno)
	return binary.BigEndian.AppendUint64(p, cookie)
}

// appendChunk appends the header of a chunk of a structured reply:
//
//	0 magic u32    4 flags u16    6 type u16
//	8 cookie u64  16 length of the payload u32
func appendChunk(p []byte, flags, kind uint16, cookie uint64, length uint32) []byte {
	p = binary.BigEndian.AppendUint32(p, structuredMagic)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, kind)
	p = binary.BigEndian.AppendUint64(p, cookie)
	return binary.BigEndian.AppendUint32(p, length)
}

// appendDataHead appends an OFFSET_DATA chunk up to its data: header, offset u64.
func appendDataHead(p []byte, flags uint16, cookie, offset uint64, length uint32) []byte {
	p = appendChunk(p, flags, chunkData, cookie, length+8)
	return binary.BigEndian.AppendUint64(p, offset)
}

// appendHole appends an OFFSET_HOLE chunk: header, offset u64, length u32.
func appendHole(p []byte, flags uint16, cookie, offset uint64, length uint32) []byte {
	p = appendChunk(p, flags, chunkHole, cookie, 12)
	p = binary.BigEndian.AppendUint64(p, offset)
	return binary.BigEndian.AppendUint32(p, length)
}

// appendError appends an ERROR chunk that ends a reply: header, error u32, length of the text u16, text.
func appendError(p []byte, errno uint32, cookie uint64) []byte {
	text := errnoText(errno)
	p = appendChunk(p, chunkDone, chunkError, cookie, uint32(6+len(text)))
	p = binary.BigEndian.AppendUint32(p, errno)
	p = binary.BigEndian.AppendUint16(p, uint16(len(text)))
	return append(p, text...)
}

// appendErrorOffset is appendError with the place where the error is: an offset u64 after the text.
func appendErrorOffset(p []byte, errno uint32, cookie, offset uint64) []byte {
	text := errnoText(errno)
	p = appendChunk(p, chunkDone, chunkErrorOffset, cookie, uint32(14+len(text)))
	p = binary.BigEndian.AppendUint32(p, errno)
	p = binary.BigEndian.AppendUint16(p, uint16(len(text)))
	p = append(p, text...)
	return binary.BigEndian.AppendUint64(p, offset)
}

// appendStatus appends the reply to a request that has no data to answer with. Errors are chunks where the client takes
// them, for their text; a success never needs to be one.
func (e *export) appendStatus(p []byte, errno uint32, cookie uint64) []byte {
	if e.structured && errno != errnoOK {
		return appendError(p, errno, cookie)
	}
	return appendReply(p, errno, cookie)
}

// errnoText is for people. It is shorter than maxStatusSize allows.
func errnoText(errno uint32) string {
	switch errno {
	case errnoPerm:
		return "the export is read-only"
	case errnoInval:
		return "the request is invalid or outside of the export"
	case errnoNoSpace:
		return "no space left"
	case errnoOverflow:
		return "the request is too large"
	case errnoNotSup:
		return "it would not be fast"
	case errnoShutdown:
		return "the server is shutting down"
	default:
		return "the device failed"
	}
}
