package mirror

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cespare/xxhash/v2"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// staging is where a follower builds the state that a resync leads to. A
// volume that was never consistent builds it in place. All others keep their
// last consistent state, promotable at any time (G4), and build the new one
// beside it: a sparse file of the device's size whose blocks, where there are
// any, lie over the volume. One durable anchor takes it over; then it is
// merged into the device, again after a crash until that is done.
//
// Not for concurrent use.
type staging struct {
	v      *Volume
	size   int64     // of the state that is built, bytes
	file   stageFile // nil: in place
	staged []bool    // per resyncBlockBytes: the file holds it
	buf    []byte
	behind writeBehind
	remove func() error
}

type stageFile interface {
	blockdev.Device
	blockdev.DataFinder
}

// openStaging opens the place for a resync of v to a state of size bytes:
// path is where the file beside the volume goes, or already is from an
// earlier try. One of another size is of no use any more.
func openStaging(v *Volume, path string, size int64) (*staging, error) {
	if v.flags()&stateBlank != 0 {
		return &staging{v: v, size: size}, nil
	}
	if path == "" {
		return nil, &stageError{fmt.Errorf("there is no place for the copy: %w", errNoPlace)}
	}
	info, statErr := os.Stat(path)
	if statErr == nil && info.Mode().IsRegular() && info.Size() != size {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("staging file: %w", err)
		}
		statErr = os.ErrNotExist
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{Create: true, Size: size})
	if err != nil {
		return nil, &stageError{fmt.Errorf("staging file: %w", err)}
	}
	if statErr == nil { // what an earlier try put there counts as it is on the disk
		if err := f.DropCache(0, 0); err != nil {
			return nil, errors.Join(&stageError{fmt.Errorf("staging file: %w", err)}, f.Close())
		}
	}
	if errors.Is(statErr, os.ErrNotExist) {
		// What is not in the file must be told from zeroes in it.
		if _, _, err := f.NextData(0); !errors.Is(err, io.EOF) {
			return nil, errors.Join(fmt.Errorf("staging file %s: its filesystem knows no holes; put the journal on ext4, xfs, btrfs or tmpfs", path), f.Close(), os.Remove(path))
		}
	}
	return newStaging(v, f, func() error { return os.Remove(path) })
}

// newStaging uses f, whose blocks with data count as staged.
func newStaging(v *Volume, f stageFile, remove func() error) (*staging, error) {
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("staging file: %w", err), f.Close())
	}
	st := &staging{v: v, size: size, file: f, remove: remove, buf: make([]byte, resyncBlockBytes)}
	st.staged = make([]bool, (size+resyncBlockBytes-1)/resyncBlockBytes)
	for off := int64(0); off < size; {
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("staging file: %w", err), f.Close())
		}
		for i := start / resyncBlockBytes; i*resyncBlockBytes < min(end, size); i++ {
			st.staged[i] = true
		}
		off = end
	}
	return st, nil
}

// read reads the new state as far as it is built.
func (st *staging) read(p []byte, off int64) error {
	if st.file == nil {
		_, err := st.v.dev.ReadAt(p, off)
		return err
	}
	for len(p) > 0 {
		i := off / resyncBlockBytes
		n := min(int64(len(p)), (i+1)*resyncBlockBytes-off)
		var err error
		if st.staged[i] {
			_, err = st.file.ReadAt(p[:n], off)
		} else {
			err = st.v.readBeyond(p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// stageError: the place where a resync is built has failed; the volume itself is as it was.
type stageError struct{ err error }

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// readBeyond reads the volume and, behind its end, the backing device.
func (v *Volume) readBeyond(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), v.size.Load()-off))
	if n > 0 {
		if _, err := v.ReadAt(p[:n], off); err != nil {
			return err
		}
	}
	if n == int64(len(p)) {
		return nil
	}
	_, err := v.dev.ReadAt(p[n:], off+n)
	return err
}

// write puts p (nil: zeroes) over [off, off+n) of the new state.
func (st *staging) write(p []byte, off, n int64, trim bool) error {
	if err := st.put(p, off, n, trim); err != nil {
		return &stageError{err}
	}
	if st.file != nil {
		st.behind.wrote(st.file, off, n)
	} else {
		st.behind.wrote(st.v.dev, off, n)
	}
	return nil
}

// writeBehind has the kernel write to the disk what was written in ascending order, so that the Sync at the end does not have
// everything before it.
type writeBehind struct{ from, to int64 }

// writeBehindBytes are left for the kernel to write at a time.
const writeBehindBytes = 8 << 20

// wrote takes what was written last. Where the advice fails the Sync takes longer, or fails itself.
func (w *writeBehind) wrote(dev blockdev.Device, off, n int64) {
	if off != w.to {
		w.from = off // a record of the stream, or behind what was equal: the kernel writes the rest in its own time
	}
	w.to = off + n
	if w.to-w.from < writeBehindBytes {
		return
	}
	if b, ok := dev.(blockdev.Writebacker); ok {
		_ = b.StartWriteback(w.from, w.to-w.from)
	}
	w.from = w.to
}

func (st *staging) put(p []byte, off, n int64, trim bool) error {
	if st.file == nil {
		var err error
		switch {
		case p != nil:
			_, err = st.v.dev.WriteAt(p, off)
		case trim:
			err = st.v.dev.Trim(off, n)
		default:
			err = st.v.dev.Zero(off, n)
		}
		if err == nil {
			st.v.badReads.good(off, off+n)
		}
		return err
	}
	for n > 0 {
		i := off / resyncBlockBytes
		start := i * resyncBlockBytes
		size := min(int64(resyncBlockBytes), st.size-start)
		m := min(n, start+size-off)
		b := st.buf[:size]
		if m < size {
			if err := st.read(b, start); err != nil {
				return err
			}
		}
		if p == nil {
			clear(b[off-start : off-start+m])
		} else {
			copy(b[off-start:off-start+m], p)
			p = p[m:]
		}
		// Zeroes are written, not left out: a hole means "as before".
		if _, err := st.file.WriteAt(b, start); err != nil {
			return err
		}
		st.staged[i] = true
		off, n = off+m, n-m
	}
	return nil
}

// finish takes the new state over: it is the volume's at lsn, durably, when
// the anchor is written; the merge that follows may be interrupted.
func (st *staging) finish(lsn journal.LSN, chain uint64, gs []journal.Generation) error {
	if st.file == nil {
		if err := st.v.dev.Sync(); err != nil {
			return st.v.fail("device", err)
		}
		return st.v.restart(lsn, chain, gs, func(a *journal.Anchor) {
			a.State &^= stateBlank
			a.DeviceSize = st.size
		})
	}
	if err := st.keepUnapplied(); err != nil {
		return errors.Join(&stageError{fmt.Errorf("staging file: %w", err)}, st.file.Close())
	}
	if err := st.reserve(); err != nil {
		return errors.Join(&stageError{fmt.Errorf("space on the device for what is staged: %w", err)}, st.file.Close())
	}
	if err := st.file.Sync(); err != nil {
		// G9: what it holds can be read back, and is not on the disk.
		return errors.Join(&stageError{fmt.Errorf("sync the staging file: %w", err)}, st.file.Close(), st.remove())
	}
	if err := st.v.restart(lsn, chain, gs, func(a *journal.Anchor) {
		a.State |= stateMerging
		a.DeviceSize = st.size
	}); err != nil {
		return errors.Join(err, st.file.Close())
	}
	return st.merge()
}

// keepUnapplied stages the blocks that the volume has in its log only: they
// were found equal to the source's, and the log is about to be forgotten.
func (st *staging) keepUnapplied() error {
	b := st.buf
	for off := int64(0); ; {
		start, end, ok := st.v.overlay.next(off)
		if !ok || start >= st.size {
			return nil
		}
		for i := start / resyncBlockBytes; i*resyncBlockBytes < min(end, st.size); i++ {
			if st.staged[i] {
				continue
			}
			b = b[:min(int64(resyncBlockBytes), st.size-i*resyncBlockBytes)]
			if err := st.read(b, i*resyncBlockBytes); err != nil {
				return err
			}
			if _, err := st.file.WriteAt(b, i*resyncBlockBytes); err != nil {
				return err
			}
			st.staged[i] = true
		}
		off = end
	}
}

// reserve takes the space that the merge needs: once the new state is taken over the volume is not whole without it.
func (st *staging) reserve() error {
	a, ok := st.v.dev.(blockdev.Allocator)
	if !ok {
		return nil
	}
	for i, staged := range st.staged {
		off := int64(i) * resyncBlockBytes
		if !staged {
			continue
		}
		if err := a.Allocate(off, min(resyncBlockBytes, st.size-off)); err != nil {
			return err
		}
	}
	return nil
}

// merge copies the staged blocks into the device and ends the staging. The
// volume is not whole without it: an error stops the volume.
func (st *staging) merge() error {
	if err := st.mergeBlocks(); err != nil {
		return errors.Join(st.v.fail("staging file", err), st.file.Close())
	}
	return errors.Join(st.file.Close(), st.remove())
}

func (st *staging) mergeBlocks() error {
	for i, ok := range st.staged {
		if !ok {
			continue
		}
		off := int64(i) * resyncBlockBytes
		b := st.buf[:min(int64(resyncBlockBytes), st.size-off)]
		if _, err := st.file.ReadAt(b, off); err != nil {
			return fmt.Errorf("staging file at %d: %w", off, err)
		}
		if _, err := st.v.dev.WriteAt(b, off); err != nil {
			return st.v.fail("device", err)
		}
		st.v.badReads.good(off, off+int64(len(b)))
		st.behind.wrote(st.v.dev, off, int64(len(b)))
	}
	if err := st.v.dev.Sync(); err != nil {
		return st.v.fail("device", err)
	}
	return st.v.setFlags(0, stateMerging)
}

// suspend leaves the staging for a later try.
func (st *staging) suspend() {
	if st.file != nil {
		_ = st.file.Close()
	}
}

// resumeMerge ends a merge that a crash interrupted, before the volume is
// used. The staging file is part of the volume until then.
func resumeMerge(v *Volume, path string) error {
	if v.flags()&stateMerging == 0 {
		return nil
	}
	if path == "" {
		return fmt.Errorf("a resync was being taken over, and the staging file is part of the volume: say the --state-dir where it is: %w", errNoPlace)
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{})
	if err != nil {
		return fmt.Errorf("%s is part of the volume, a resync was being taken over: %w", path, err)
	}
	st, err := newStaging(v, f, func() error { return os.Remove(path) })
	if err != nil {
		return err
	}
	return st.merge()
}

// reads0: the device is known to read as zeroes all over.
func (v *Volume) reads0() bool {
	f, ok := v.dev.(blockdev.DataFinder)
	if !ok {
		return false
	}
	_, _, err := f.NextData(0)
	return errors.Is(err, io.EOF)
}

// beginResync, block, resyncCall and stageRecords are the receiver's part.

func (r *receiver) beginResync(b []byte) ([]byte, error) {
	var m resyncBegin
	if err := decodeJSON(b, &m); err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) ([]byte, error) {
		return encodeJSON(0, resyncReply{Refused: fmt.Sprintf(format, args...)})[1:], nil
	}
	if r.v.Role() != RoleSecondary {
		return refuse("%s is %s", r.node, r.v.Role())
	}
	if m.Size > r.v.capacity() || m.Size <= 0 || m.Size%sectorBytes != 0 {
		return refuse("%s has a device of %d bytes, %d are needed", r.node, r.v.capacity(), m.Size)
	}
	r.dropStaging()
	var reply resyncReply
	var err error
	all := m.Size
	if m.Partial != nil {
		if r.v.flags()&stateDiverged != 0 {
			reply.Rewound, reply.Compare, err = r.beginRejoin(m.Partial, m.Size)
		} else {
			reply.Compare, err = r.beginPartial(m.Partial)
		}
		if err != nil {
			return nil, err
		}
		if reply.Compare != "" {
			return encodeJSON(0, reply)[1:], nil
		}
		all = max(m.Partial.Bytes+rewoundBytes(reply.Rewound, m.Size), 1)
		r.staging, reply.Staged, err = r.openPartial(m.Size)
	} else {
		r.staging, err = r.newStage(m.Size)
	}
	if held := (*heldError)(nil); errors.As(err, &held) {
		r.staging = nil
		reply := resyncReply{Refused: fmt.Sprintf("%s: %v", r.node, err), RetryMillis: held.left.Milliseconds()}
		return encodeJSON(0, reply)[1:], nil
	}
	if err != nil {
		r.staging = nil
		return refuse("%s: %v", r.node, err)
	}
	r.mu.Lock()
	r.started, r.received = false, m.From
	r.resyncDone, r.resyncAll, r.resyncAt = 0, all, time.Now()
	r.mu.Unlock()
	return encodeJSON(0, reply)[1:], nil
}

func (r *receiver) block(b []byte) error {
	if r.staging == nil {
		return fmt.Errorf("%w: block outside of a resync", errMessage)
	}
	h, data, err := decodeBlock(b, r.staging.size)
	if err != nil {
		return err
	}
	if h.Zero {
		data = nil
	}
	if err := r.staging.write(data, h.Offset, h.Length, false); err != nil {
		return fmt.Errorf("resync: block at %d: %w", h.Offset, err)
	}
	r.mu.Lock()
	r.resyncDone = min(h.Done, r.resyncAll)
	r.mu.Unlock()
	return nil
}

func (r *receiver) resyncCall(b []byte) ([]byte, error) {
	if b[0] == kindHashes {
		return r.hashes(b)
	}
	var m resyncEnd
	if err := decodeJSON(b[1:], &m); err != nil {
		return nil, err
	}
	r.mu.Lock()
	at := r.received
	r.mu.Unlock()
	if m.At != at {
		return nil, fmt.Errorf("resync ends at LSN %d, records came up to %d: %w", m.At, at, ErrBehind)
	}
	st := r.staging
	r.staging = nil
	damaged := r.v.damageNow() != nil
	if err := st.finish(m.At, m.Chain, m.Generations); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.resyncAll = 0
	r.mu.Unlock()
	if err := r.begin(m.At); err != nil {
		return nil, err
	}
	if damaged {
		r.repaired()
	}
	r.resynced()
	return encodeJSON(0, resyncReply{})[1:], nil
}

func (r *receiver) hashes(b []byte) ([]byte, error) {
	req, err := decodeHashRequest(b, r.staging.size)
	if err != nil {
		return nil, err
	}
	readAhead(r.v.dev, req.Offset, min(2*req.Length, r.staging.size-req.Offset)) // what is asked for next, too
	h := newBlockHasher(&req.Key)
	out := make([]byte, 0, (req.Length+req.Unit-1)/req.Unit*hashBytes)
	block := make([]byte, resyncBlockBytes)
	for off := req.Offset; off < req.Offset+req.Length; off += req.Unit {
		p := block[:min(req.Unit, req.Offset+req.Length-off)]
		if err := r.staging.read(p, off); err != nil {
			return nil, &stageError{fmt.Errorf("resync: read at %d: %w", off, err)}
		}
		out = out[:len(out)+hashBytes]
		h.sum(out[len(out)-hashBytes:], p)
	}
	return out, nil
}

// stageRecords applies records that came during a resync to its staging.
func (r *receiver) stageRecords(h recordsHeader, raw []byte) error {
	r.mu.Lock()
	at := r.received
	r.sourceHead = h.Head
	r.mu.Unlock()
	if h.From != at {
		return fmt.Errorf("records from LSN %d, expected %d: %w", h.From, at, ErrBehind)
	}
	err := journal.ParseRaw(raw, func(rec journal.Record, payload []byte) error {
		if rec.Op == journal.OpResize {
			return fmt.Errorf("the device grows to %d bytes: the resync begins anew", rec.Offset)
		}
		x, ok, err := extentOf(r.staging.size, rec.Op, rec.Offset, rec.Length, rec.LSN, 0)
		if err != nil || !ok {
			return err
		}
		if xxhash.Sum64(payload) != rec.PayloadHash { // these pass no log that would check it
			return &journal.CorruptError{LSN: rec.LSN, Reason: "payload does not match its hash"}
		}
		if x.zero {
			payload = nil
		}
		return r.staging.write(payload, x.off, x.len(), x.trim)
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.received = at + journal.LSN(len(raw))
	r.mu.Unlock()
	return nil
}
