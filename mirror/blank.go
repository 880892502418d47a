package mirror

import (
	"errors"
	"io"

	"mirror-agent/blockdev"
)

const (
	blankExtents = 16      // of data that are looked into at most
	blankEdge    = 1 << 20 // read at both ends of each: where filesystems and partition tables begin, and RAID ends
	blankProbes  = 62      // and between, so many of
	blankProbe   = 64 << 10
)

// blankFile: f holds no data, as far as that is quickly known. Allocated is not yet data: an area of zeroes is blank. A block
// device is one long extent; it is read at its ends and in places between.
func blankFile(f *blockdev.File) bool {
	buf := make([]byte, blankEdge)
	zeroes := func(at, end int64, n int) bool {
		p := buf[:min(int64(n), end-at)]
		_, err := f.ReadAt(p, at)
		return err == nil && allZero(p)
	}
	off := int64(0)
	for range blankExtents {
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil || !zeroes(start, end, blankEdge) || !zeroes(max(start, end-blankEdge), end, blankEdge) {
			return false
		}
		if step := (end - start) / (blankProbes + 1); step > blankProbe {
			for i := range int64(blankProbes) {
				if !zeroes(start+(i+1)*step, end, blankProbe) {
					return false
				}
			}
		}
		off = end
	}
	return false
}
