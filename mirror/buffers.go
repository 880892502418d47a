package mirror

import "context"

// bufferQueue holds the messages that the link still owns, oldest first, and
// reuses their memory.
type bufferQueue struct {
	free  [][]byte
	queue []queuedBuffer
}

type queuedBuffer struct {
	buf []byte
	r   receipt
}

// get returns a buffer of batchBytes and a header; it waits for the oldest
// message when inFlightBatches are under way.
func (q *bufferQueue) get(ctx context.Context, l link) ([]byte, error) {
	for len(q.queue) > 0 {
		if len(q.queue) < inFlightBatches {
			select {
			case <-q.queue[0].r.Done():
			default:
				return q.take(), nil
			}
		} else {
			select {
			case <-q.queue[0].r.Done():
			case <-l.Done():
				return nil, l.Err()
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		q.putBack(q.queue[0].buf)
		q.queue = q.queue[1:]
	}
	return q.take(), nil
}

func (q *bufferQueue) take() []byte {
	if n := len(q.free); n > 0 {
		b := q.free[n-1]
		q.free = q.free[:n-1]
		return b
	}
	return make([]byte, recordsHeaderBytes+batchBytes)
}

func (q *bufferQueue) putBack(b []byte) {
	if cap(b) >= recordsHeaderBytes+batchBytes && cap(b) <= 2*batchBytes {
		q.free = append(q.free, b[:recordsHeaderBytes+batchBytes])
	}
}

func (q *bufferQueue) put(b []byte, r receipt) { q.queue = append(q.queue, queuedBuffer{b, r}) }

// drop forgets all: the link may still own what is queued.
func (q *bufferQueue) drop() { q.free, q.queue = nil, nil }
