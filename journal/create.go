package journal

import (
	"context"
	"fmt"
)

// Space that was only reserved (fallocate) costs a change of the filesystem's own metadata when it is first written, and the
// fdatasync after that write waits for it. So a new ring is written whole, with zeroes, before it is used: then the first lap
// is as fast as all others, and nothing of what lay in the file or partition before can ever be read as a record.

const (
	zeroBytes     = 1 << 20  // written at once
	zeroSyncBytes = 64 << 20 // written between two syncs: what the page cache holds unwritten at most
)

// Format makes f, all of it, an empty journal that starts at a.Applied with a.AppliedChain. It refuses nothing, and writes
// all of f once. A crash inside leaves a file without an anchor, or the new empty journal, or (when there was a journal
// before) damaged anchors.
func Format(f File, a Anchor) error { return FormatContext(context.Background(), f, a, nil) }

// FormatContext is Format that ends with ctx, as after a crash inside. progress, unless nil, is told how much of the ring is
// written, bytes.
func FormatContext(ctx context.Context, f File, a Anchor, progress func(done, total int64)) error {
	fileSize, err := f.Size()
	if err != nil {
		return fmt.Errorf("size of journal: %w", err)
	}
	size, err := ringFor(fileSize)
	if err != nil {
		return err
	}
	d := &diskAnchor{Anchor: a.clone(), ringSize: size}
	d.Tail, d.TailChain, d.Durable = d.Applied, d.AppliedChain, d.Applied
	d.horizon = d.Applied + horizonStep(size)
	if err := d.check(); err != nil {
		return err
	}
	if err := blankAnchors(f); err != nil {
		return fmt.Errorf("format journal: %w", err)
	}
	if err := zeroRing(ctx, f, size, progress); err != nil {
		return fmt.Errorf("format journal: %w", err)
	}
	return firstAnchors(f, d)
}

// blankAnchors takes the anchors away, durably: what is in f is no journal from now on.
func blankAnchors(f File) error {
	if _, err := f.WriteAt(make([]byte, ringStart), 0); err != nil {
		return err
	}
	return f.Sync()
}

// zeroRing writes the whole ring, durably.
func zeroRing(ctx context.Context, f File, size int64, progress func(done, total int64)) error {
	zeroes := make([]byte, min(zeroBytes, size))
	for done, synced := int64(0), int64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := f.WriteAt(zeroes[:min(int64(len(zeroes)), size-done)], ringStart+done)
		if err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(zeroes), ringStart+done, err)
		}
		if done += int64(n); done-synced >= zeroSyncBytes || done == size {
			if err := f.Sync(); err != nil {
				return err
			}
			synced = done
		}
		if progress != nil {
			progress(done, size)
		}
	}
	return nil
}

// firstAnchors makes a ring that is durable as it is a journal: both slots are written, since from here on a slot of zeroes is
// damage. d has passed check.
func firstAnchors(f File, d *diskAnchor) error {
	for d.Sequence = 1; d.Sequence <= 2; d.Sequence++ {
		if err := writeSlot(f, d); err != nil {
			return err
		}
	}
	d.Sequence = 2
	return nil
}
