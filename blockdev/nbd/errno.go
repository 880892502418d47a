package nbd

import (
	"errors"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// errno is what a client is told about an error of the device. Which value stands for "outside" depends on the command:
// "NBD_ENOSPC if it receives a write or write zeroes request including sectors beyond the size of the device", EINVAL for
// read and trim (proto.md, "Error values").
func errno(command uint16, err error) uint32 {
	switch {
	case err == nil:
		return errnoOK
	case errors.Is(err, blockdev.ErrOutOfRange):
		return errnoOutside(command)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return errnoNoSpace
	case errors.Is(err, blockdev.ErrReadOnly), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		return errnoPerm
	case errors.Is(err, blockdev.ErrShutdown):
		return errnoShutdown
	default:
		return errnoIO
	}
}

func errnoOutside(command uint16) uint32 {
	if command == protocol.TRANSMISSION_TYPE_REQUEST_WRITE || command == cmdWriteZeroes {
		return errnoNoSpace
	}
	return errnoInval
}

// refusal checks a request against the export and returns the error value for it, 0 when it may go to the device.
func (e *export) refusal(h *protocol.TransmissionRequestHeader, maxPayload uint32) uint32 {
	allowed := cmdFlagFUA // "the server MUST accept all commands with this bit set"
	change, payload := false, false
	switch h.Type {
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		payload = true
		if e.structured {
			allowed |= cmdFlagDF
		}
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		change, payload = true, true
	case cmdTrim:
		change = true
	case cmdWriteZeroes:
		change = true
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	case cmdFlush:
		if h.CommandFlags&^allowed != 0 || h.Offset != 0 || h.Length != 0 {
			return errnoInval
		}
		return errnoOK
	case cmdCache:
		if e.prefetcher == nil {
			return errnoInval
		}
	case cmdBlockStatus:
		if !e.allocation || h.Length == 0 { // a reply to the latter would have an extent of length 0
			return errnoInval
		}
		allowed |= cmdFlagReqOne
	default:
		return errnoInval
	}
	switch {
	case h.CommandFlags&^allowed != 0:
		return errnoInval
	case change && e.readOnly:
		return errnoPerm
	case payload && h.Length > maxPayload && h.Type == protocol.TRANSMISSION_TYPE_REQUEST_READ && e.structured:
		return errnoOverflow
	case payload && h.Length > maxPayload:
		return errnoInval
	case !e.covers(h.Offset, uint64(h.Length)):
		return errnoOutside(h.Type)
	case (h.Offset|uint64(h.Length))&uint64(e.blockMin-1) != 0:
		return errnoInval
	case h.CommandFlags&cmdFlagFastZero != 0 && !e.fastZero:
		return errnoNotSup
	}
	return errnoOK
}
