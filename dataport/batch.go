package dataport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Several messages that travel as one, so that what a message costs beside its bytes (a frame, a receipt, a turn with
// every lock) is paid once: count u32, count × length u32, then the messages one after the other. Little endian.
//
// The messages are the client's one by one, in order; window, receipt and loss are those of the whole.

// SendBatch queues msgs and returns one receipt for all: it is done when the peer's OnMessage has returned for the last
// of them. Together they may be as large as one message (MaxMessageBytes, 4 bytes each besides). Else it is like Send.
func (s *Session) SendBatch(ctx context.Context, msgs ...[]byte) (*Receipt, error) {
	if len(msgs) == 0 {
		return nil, errors.New("dataport: a batch without a message")
	}
	table := make([]byte, 4+4*len(msgs))
	binary.LittleEndian.PutUint32(table, uint32(len(msgs)))
	for i, m := range msgs {
		if len(m) > s.maxMsg { // before its length goes into 32 bits
			return nil, fmt.Errorf("%w: message %d of the batch has %d bytes, at most %d", ErrMessageTooBig, i, len(m), s.maxMsg)
		}
		binary.LittleEndian.PutUint32(table[4+4*i:], uint32(len(m)))
	}
	m, err := s.send(ctx, slices.Insert(slices.Clone(msgs), 0, table), nil, len(msgs))
	if err != nil {
		return nil, err
	}
	return &m.Receipt, nil
}

// SendBatch queues messages on the current session; ErrNotConnected when there is none. See Session.SendBatch.
func (p *Port) SendBatch(ctx context.Context, msgs ...[]byte) (*Receipt, error) {
	s, err := p.current()
	if err != nil {
		return nil, err
	}
	return s.SendBatch(ctx, msgs...)
}

// eachOfBatch calls fn for the messages of b, until it returns false, and returns for how many. Nothing is called when b
// makes no sense.
func eachOfBatch(b []byte, fn func(i int, m []byte) bool) (count int, err error) {
	bad := func() (int, error) {
		return 0, fmt.Errorf("%w: a batch of %d bytes whose lengths do not fit", ErrProtocol, len(b))
	}
	if len(b) < 4 {
		return bad()
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if n == 0 || 4+4*n > uint64(len(b)) {
		return bad()
	}
	table, rest := b[4:4+4*n], b[4+4*n:]
	sum := uint64(0)
	for i := range n {
		sum += uint64(binary.LittleEndian.Uint32(table[4*i:]))
	}
	if sum != uint64(len(rest)) {
		return bad()
	}
	for i := range n {
		size := binary.LittleEndian.Uint32(table[4*i:])
		if !fn(int(i), rest[:size:size]) {
			return int(i), nil
		}
		rest = rest[size:]
	}
	return int(n), nil
}

// hand gives the client what m holds: of a batch no more once the session has ended. No lock is held.
func (s *Session) hand(m *inMsg) (reply []byte, messages int, err error) {
	x := Message{Session: s, Seq: m.last, Payload: m.buf.data, Call: m.flags&flagCall != 0}
	if m.typ != frameBatch {
		reply, err = s.reg.client.OnMessage(s.handed, x)
		return reply, 1, err
	}
	messages, broken := eachOfBatch(m.buf.data, func(i int, b []byte) bool {
		if s.ctx.Err() != nil {
			return false
		}
		x.Payload, x.Index = b, i
		_, _ = s.reg.client.OnMessage(s.handed, x)
		return true
	})
	if broken != nil {
		return nil, 0, &brokenError{broken, endProtocol}
	}
	return nil, messages, nil
}
