package nbd

import (
	"encoding/binary"
	"strings"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The one metadata context that there is, and the number that stands for it in replies.
const (
	allocationName    = "base:allocation"
	allocationContext = uint32(1)
	baseWildcard      = "base:" // for LIST only
)

// metaContext handles LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(id uint32, data []byte) error {
	set := id == optionSetMetaContext
	if !h.structured {
		return h.reply(id, replyErrInvalid, []byte("structured replies come first"))
	}
	name, queries, err := parseMetaContext(data)
	if err != nil {
		return h.reply(id, replyErrInvalid, []byte(err.Error()))
	}
	found := h.find(name)
	if found == nil {
		return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, []byte(errNoExport.Error()))
	}
	matches := !set && len(queries) == 0
	for _, q := range queries {
		matches = matches || q == allocationName || q == baseWildcard && !set
	}
	if matches {
		number := uint32(0) // "reserved and SHOULD be set to zero" in a LIST
		if set {
			number = allocationContext
			h.allocation = found
		}
		err := h.reply(id, replyMetaContext, append(binary.BigEndian.AppendUint32(nil, number), allocationName...))
		if err != nil {
			return err
		}
	}
	return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// parseMetaContext decodes the data of both: length of the name u32, name, count u32, count × (length u32, query).
// A query without a namespace is an error, one of a namespace that is not known is not.
func parseMetaContext(p []byte) (name string, queries []string, err error) {
	name, p, err = cutString(p)
	if err != nil || len(p) < 4 {
		return "", nil, errBadOption
	}
	count := binary.BigEndian.Uint32(p)
	p = p[4:]
	for range count { // ends with the data at the latest
		var q string
		if q, p, err = cutString(p); err != nil {
			return "", nil, err
		}
		if !strings.Contains(q, ":") {
			return "", nil, errBadOption
		}
		queries = append(queries, q)
	}
	if len(p) != 0 {
		return "", nil, errBadOption
	}
	return name, queries, nil
}

// cutString takes a string with its length before it off p.
func cutString(p []byte) (s string, rest []byte, err error) {
	if len(p) < 4 {
		return "", nil, errBadOption
	}
	n := binary.BigEndian.Uint32(p)
	if p = p[4:]; n > maxNameSize || uint64(n) > uint64(len(p)) {
		return "", nil, errBadOption
	}
	return string(p[:n]), p[n:], nil
}
