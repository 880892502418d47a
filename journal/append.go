package journal

import (
	"fmt"
	"sync"
	"time"
)

// Group commit. Whoever finds the log free leads: it writes its own records at once, without a timer or another
// goroutine. Who comes meanwhile queues; when the leader is done it hands the lead to the first in the queue,
// which writes everything that has queued up by then. AppendRaw, Cut and Reset take the lead alone.

// Entry is one change to append, and where it went.
type Entry struct {
	Op      Op
	Flags   uint8
	Volume  uint16
	Offset  uint64 // bytes on the device
	Length  uint32 // bytes on the device; for a write the payload's length (0: taken from it)
	Payload []byte // not kept after Append returns

	LSN  LSN // of the record
	Data LSN // where the payload lies in the log, for ReadData
	End  LSN // where the next record begins
	Err  error

	hash uint64
}

// prepare does what needs no order: rules and the payload's hash.
func (e *Entry) prepare() error {
	e.Err = nil
	if len(e.Payload) > MaxPayload {
		return fmt.Errorf("%w entry: payload of %d bytes", ErrInvalid, len(e.Payload))
	}
	if e.Op == OpWrite && e.Length == 0 {
		e.Length = uint32(len(e.Payload))
	}
	r := e.record(0)
	if err := r.check(); err != nil {
		return err
	}
	e.hash = checksum(e.Payload)
	return nil
}

func (e *Entry) record(at LSN) Record {
	return Record{
		Op: e.Op, Flags: e.Flags, Volume: e.Volume, LSN: at, Offset: e.Offset, Length: e.Length,
		PayloadLen: uint32(len(e.Payload)), PayloadHash: e.hash,
	}
}

func failEntries(es []*Entry, err error) error {
	for _, e := range es {
		e.Err = err
	}
	return err
}

// ticket is one call waiting for the lead or for a leader.
type ticket struct {
	es    []*Entry
	bytes int64
	solo  bool
	stale func() bool // AppendUnless: asked by the leader; nil is never
	err   error
	next  *ticket
	wake  chan bool // capacity 1: true, you lead; false, your entries are done
}

var tickets = sync.Pool{New: func() any { return &ticket{wake: make(chan bool, 1)} }}

func (t *ticket) release() {
	t.es, t.err, t.next, t.solo, t.stale = nil, nil, nil, false, nil
	tickets.Put(t)
}

// enter queues t and waits; true means that t leads and is the first in the queue.
func (l *Log) enter(t *ticket) (bool, error) {
	l.qmu.Lock()
	if l.closed {
		l.qmu.Unlock()
		return false, ErrClosed
	}
	if l.first == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
	if !l.leading {
		l.leading = true
		l.qmu.Unlock()
		return true, nil
	}
	l.qmu.Unlock()
	return <-t.wake, nil
}

// pop needs qmu.
func (l *Log) pop() *ticket {
	t := l.first
	l.first, t.next = t.next, nil
	if l.first == nil {
		l.last = nil
	}
	return t
}

// leave hands the lead on.
func (l *Log) leave() {
	l.qmu.Lock()
	if l.first != nil {
		l.first.wake <- true
	} else {
		l.leading = false
		l.idle.Broadcast()
	}
	l.qmu.Unlock()
}

// alone takes the lead for something that is no group; leave gives it back.
func (l *Log) alone() error {
	t := tickets.Get().(*ticket)
	t.solo = true
	if _, err := l.enter(t); err != nil {
		t.release()
		return err
	}
	l.qmu.Lock()
	l.pop()
	l.qmu.Unlock()
	t.release()
	if err := l.Failed(); err != nil {
		l.leave()
		return err
	}
	return nil
}

// Append writes the entries as records that follow each other, all or none, and returns once they are in the file
// (in the OS, G1); Sync makes them durable. ErrFull: none was written, try again when the tail has moved.
// ErrInvalid, ErrTooLarge: they can never be written. ErrFailed: the log is at its end.
func (l *Log) Append(es []*Entry) error { return l.AppendUnless(es, nil) }

// AppendUnless is Append, unless stale says otherwise when it is the entries' turn: everything with a lower LSN has been
// told to OnAppend by then, and nothing else comes between the question and the records. ErrStale: none was written. stale must be
// quick and must not call the Log.
func (l *Log) AppendUnless(es []*Entry, stale func() bool) error {
	if len(es) == 0 {
		return nil
	}
	var bytes int64
	for _, e := range es {
		if err := e.prepare(); err != nil {
			return failEntries(es, err)
		}
		bytes += RecordSize(len(e.Payload))
	}
	if at := l.Damaged(); at > 0 {
		return failEntries(es, fmt.Errorf("%w: promised up to %d, to be repaired before anything is appended", ErrCorrupt, at))
	}
	if room := l.room.Load() - Reserve; bytes > room {
		return failEntries(es, fmt.Errorf("%w: %d bytes of records, room for %d", ErrTooLarge, bytes, room))
	}
	began := time.Now()
	t := tickets.Get().(*ticket)
	t.es, t.bytes, t.stale = es, bytes, stale
	lead, err := l.enter(t)
	if err != nil {
		t.release()
		return failEntries(es, err)
	}
	if lead {
		l.lead()
	}
	err = t.err
	t.release()
	if err == nil {
		l.counters.appended(began)
	}
	return err
}

// lead writes one group: the caller's own ticket, the first in the queue, and those behind it.
func (l *Log) lead() {
	group, bytes := l.group[:0], int64(0)
	l.qmu.Lock()
	for t := l.first; t != nil && !t.solo; t = l.first {
		if len(group) > 0 && (bytes+t.bytes > l.opts.MaxGroupBytes || t.stale != nil) {
			break // who asks comes first in a group: all before it is published then
		}
		bytes += t.bytes
		group = append(group, l.pop())
	}
	l.qmu.Unlock()
	l.writeGroup(group)
	for _, t := range group[1:] {
		t.wake <- false
	}
	clear(group)
	l.group = group
	l.leave()
}

func (t *ticket) fail(err error) {
	t.err = failEntries(t.es, err)
}

func (l *Log) writeGroup(group []*ticket) {
	if err := l.Failed(); err != nil {
		for _, t := range group {
			t.fail(err)
		}
		return
	}
	w := &l.w
	head := l.Head()
	w.begin(l.ring.Load(), head, l.chain, group)
	w.indexed = l.index.newest()
	w.time, w.durable = l.opts.Now().UnixNano(), l.Durable()
	limit := l.Tail() + LSN(l.room.Load())
	for _, t := range group {
		if t.stale != nil && t.stale() {
			t.fail(ErrStale)
			continue
		}
		if !w.fits(t, limit) {
			t.fail(ErrFull)
			continue
		}
		for _, e := range t.es {
			w.add(e)
		}
	}
	if w.at == head {
		return
	}
	err := l.reach(w.at)
	if err == nil {
		if err = w.flush(l.ring.Load(), head); err != nil {
			err = l.fail(fmt.Errorf("append at %d: %w", head, err))
		}
	}
	if err != nil {
		for _, t := range group {
			if t.err == nil {
				t.fail(err)
			}
		}
		return
	}
	l.publish(w.at, w.chain, w.points, w.es)
	w.end()
}

// publish tells the world of a written group.
func (l *Log) publish(head LSN, chain uint64, points []point, es []*Entry) {
	for _, p := range points {
		l.index.add(p)
	}
	l.counters.group(len(es), head-l.Head())
	l.setHead(head, chain)
	if l.opts.OnAppend != nil {
		l.opts.OnAppend(es)
	}
	l.notify()
}

// groupWriter lays out one group. Its buffers are reused from group to group.
type groupWriter struct {
	at      LSN
	chain   uint64
	time    int64
	durable LSN

	headers []byte // headers and padding; never grows inside a group, vecs point into it
	vecs    [][]byte
	wrapped int // vecs[wrapped:] start at the ring's beginning; -1 when nothing wraps
	left    int64
	open    int // start in headers of the run that is not yet in vecs
	es      []*Entry
	points  []point
	indexed LSN // of the last index point
}

func (w *groupWriter) begin(r *ring, at LSN, chain uint64, group []*ticket) {
	n := 0
	for _, t := range group {
		n += len(t.es)
	}
	if need := n * (HeaderSize + 8); cap(w.headers) < need {
		w.headers = make([]byte, 0, need*2)
	}
	w.at, w.chain = at, chain
	w.headers, w.vecs, w.es, w.points = w.headers[:0], w.vecs[:0], w.es[:0], w.points[:0]
	w.wrapped, w.open, w.left = -1, 0, r.size-r.position(at)
}

// fits says whether all records of t have their place: writes leave the reserve.
func (w *groupWriter) fits(t *ticket, limit LSN) bool {
	at := w.at
	for _, e := range t.es {
		at += LSN(RecordSize(len(e.Payload)))
		if at > limit || (!e.Op.control() && at > limit-Reserve) {
			return false
		}
	}
	return true
}

func (w *groupWriter) add(e *Entry) {
	e.LSN, e.Data = w.at, w.at+HeaderSize
	if w.at >= w.indexed+indexSpacing {
		w.points = append(w.points, point{w.at, w.chain})
		w.indexed = w.at
	}
	r := e.record(w.at)
	r.Time, r.Durable = w.time, w.durable
	n := len(w.headers)
	w.headers = w.headers[:n+HeaderSize]
	r.encode(w.headers[n:], w.chain)
	w.at, w.chain = r.End(), r.Chain
	e.End = w.at
	if len(e.Payload) > 0 {
		w.close()
		w.piece(e.Payload)
		pad := -len(e.Payload) & 7
		n = len(w.headers)
		w.headers = w.headers[:n+pad]
		clear(w.headers[n:])
	}
	w.es = append(w.es, e)
}

// close moves the run of headers and padding since the last payload to vecs.
func (w *groupWriter) close() {
	if w.open < len(w.headers) {
		run := w.headers[w.open:]
		w.open = len(w.headers)
		w.piece(run)
	}
}

// piece appends bytes, split where the ring ends.
func (w *groupWriter) piece(b []byte) {
	if w.wrapped < 0 && int64(len(b)) >= w.left {
		if w.left > 0 {
			w.vecs = append(w.vecs, b[:w.left])
			b = b[w.left:]
		}
		w.wrapped = len(w.vecs)
		w.left = 0
		if len(b) == 0 {
			return
		}
	} else if w.wrapped < 0 {
		w.left -= int64(len(b))
	}
	w.vecs = append(w.vecs, b)
}

func (w *groupWriter) flush(r *ring, from LSN) error {
	w.close()
	if w.wrapped < 0 {
		return r.writev(w.vecs, r.offset(from))
	}
	if err := r.writev(w.vecs[:w.wrapped], r.offset(from)); err != nil {
		return err
	}
	return r.writev(w.vecs[w.wrapped:], ringStart)
}

// end forgets the callers' memory.
func (w *groupWriter) end() {
	clear(w.vecs)
	clear(w.es)
}
