package dataport

import (
	"sync"
	"time"
)

// packer decides for one direction of a session how each message goes, and counts what came of it.
//
// none, s2 and zstd are what they say; a message that does not shrink goes plain. auto weighs, per byte of the message,
// what it costs to pack it against what the link takes less time for:
//
//	plain: 1/link      packed: cost + ratio/link
//
// link is what the active paths deliver together (or the bandwidth limit, when that is lower), cost and ratio are
// measured on the go: on a machine that is short of CPU packing becomes dear, and ends. A link whose speed is not known
// yet, or that waits for the peer's client, gets everything plain. Data that does not shrink is told by a sample of its
// bytes; every now and then it is tried all the same, for a sample sees no repetition. Messages that were tried and did
// not shrink give the next ones a pause that doubles.
type packer struct {
	codec *codec
	mode  Compression
	takes packSet // what the peer unpacks

	mu       sync.Mutex // leaf: guards the fields below
	costs    [packEnd]packCost
	skip     int  // bytes to let pass before the next try
	failures int  // tries in a row that did not shrink
	random   int  // bytes let go plain because they look random, since a try showed that they are
	forced   bool // the message being packed looks random
	counts   CompressionStats
}

// packCost is what packing by one algorithm was seen to cost and to yield.
type packCost struct {
	perByte float64 // seconds
	ratio   float64
	age     int // bytes of messages since it was last tried
}

const neverTried = 2 * packAgeBytes

// Before anything was measured: what one core of a server does on data of applications.
var assumedCosts = [packEnd]packCost{packS2: {2e-9, 0.5, neverTried}, packZstd: {7e-9, 0.4, neverTried}}

const (
	minPackBytes   = 256 // a smaller message is one frame anyway, whose header is half of it
	minSampleBytes = 4 << 10
	packSkipMin    = 256 << 10
	packSkipMax    = 32 << 20 // also: of random looks, until a try
	packAgeBytes   = 64 << 20 // after so much without a try what was measured counts no more
	packGain       = 0.8      // packed must take less than this of plain's time: it costs CPU as well
	zstdGain       = 0.9      // and zstd less than this of s2's
	worthOneIn     = 16       // less than this share shorter is not worth unpacking
	packCostShare  = 0.25     // of the newest measurement
	packCostMost   = 20       // times what was assumed: a process that was stopped measures nonsense
	hopedCost      = 0.5      // of what is assumed
	hopedRatio     = 0.75
)

// newPacker returns nil when nothing is to be packed.
func newPacker(c *codec, mode Compression, takes packSet) *packer {
	k := &packer{codec: c, mode: mode, takes: takes, costs: assumedCosts}
	switch mode {
	case "", CompressNone:
		return nil
	case CompressS2:
		k.takes &= 1 << (packS2 - 1)
	case CompressZstd:
		k.takes &= 1 << (packZstd - 1)
	}
	k.counts.Mode = mode
	return k
}

// pack returns the message packed, or nil when it goes plain. link is in bytes per second, 0 when it is unknown or not
// what holds messages up.
func (k *packer) pack(parts [][]byte, size int, link float64) *buffer {
	if k == nil {
		return nil
	}
	a := k.choose(parts, size, link)
	var b *buffer
	var took time.Duration
	if a != packNone {
		began := time.Now()
		b = k.codec.pack(a, parts, size, max(1, size/worthOneIn))
		took = time.Since(began)
	}
	k.note(a, size, b, took)
	return b
}

func (k *packer) choose(parts [][]byte, size int, link float64) packAlgorithm {
	if size < minPackBytes {
		return packNone
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mode != CompressAuto {
		for a := packZstd; a > packNone; a-- {
			if k.takes.has(a) {
				return a
			}
		}
		return packNone
	}
	if k.skip = max(k.skip-size, 0); k.skip > 0 || link <= 0 {
		return packNone
	}
	a := k.cheapest(link)
	k.forced = a != packNone && size >= minSampleBytes && looksRandom(parts, size)
	if k.forced && k.random < packSkipMax {
		k.random += size
		return packNone
	}
	return a
}

// cheapest weighs the algorithms for a link. k.mu is held.
func (k *packer) cheapest(link float64) packAlgorithm {
	best, bestTime := packNone, packGain/link
	for a := packS2; a < packEnd; a++ {
		if !k.takes.has(a) {
			continue
		}
		c := k.costs[a]
		if c.age > packAgeBytes { // not known any more: hoped for, so that it gets its try
			c.perByte, c.ratio = assumedCosts[a].perByte*hopedCost, assumedCosts[a].ratio*hopedRatio
			if other := packS2 + packZstd - a; k.costs[other].age <= packAgeBytes { // data that one shrinks a lot, so does the other
				c.ratio *= min(k.costs[other].ratio/assumedCosts[other].ratio, 1)
			}
		}
		t := c.perByte + c.ratio/link
		if best != packNone {
			t /= zstdGain
		}
		if t < bestTime {
			best, bestTime = a, t
		}
	}
	return best
}

func (k *packer) note(a packAlgorithm, size int, b *buffer, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	after := size
	if b != nil {
		after = len(b.data)
		k.counts.Packed++
	}
	if size >= minPackBytes {
		k.counts.InUse = CompressNone
		if b != nil {
			k.counts.InUse = a.compression()
		}
	}
	k.counts.BytesBefore += uint64(size)
	k.counts.BytesAfter += uint64(after)
	for i := range k.costs {
		k.costs[i].age += size
	}
	switch {
	case a == packNone || k.mode != CompressAuto:
		return
	case k.forced && b == nil:
		k.random = 0 // the sample was right; the ratio of what does not look so is another matter
		return
	}
	c := &k.costs[a]
	per, ratio := min(took.Seconds()/float64(size), assumedCosts[a].perByte*packCostMost), float64(after)/float64(size)
	if c.age > packAgeBytes+size {
		c.perByte, c.ratio = per, ratio
	}
	c.age = 0
	c.perByte += (per - c.perByte) * packCostShare
	c.ratio += (ratio - c.ratio) * packCostShare
	if b != nil {
		k.failures = 0
		return
	}
	k.skip = min(packSkipMin<<k.failures, packSkipMax)
	k.failures = min(k.failures+1, 16)
}

func (k *packer) stats() CompressionStats {
	if k == nil {
		return CompressionStats{Mode: CompressNone, InUse: CompressNone}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counts
}

// looksRandom takes a sample of the message, small pieces from all over it, and tells whether its bytes are spread as
// evenly as those of compressed or encrypted data: an entropy (of second order, which needs no logarithms) close to 8 bits.
func looksRandom(parts [][]byte, size int) bool {
	const pieces, piece = 64, 32
	var seen [256]uint32
	n, at, next := 0, 0, 0 // at: where the part begins in the message
	for _, p := range parts {
		for next < at+len(p) && n < pieces*piece {
			for _, x := range p[next-at : min(next-at+piece, len(p))] {
				seen[x]++
				n++
			}
			next += max(size/pieces, piece)
		}
		at += len(p)
	}
	pairs := 0 // of equal bytes
	for _, c := range seen {
		pairs += int(c) * int(c-min(c, 1))
	}
	return float64(pairs) < 1.2*float64(n)*float64(n-1)/256
}

// linkSpeed is what a message has to wait for, in bytes per second: the active paths together or the bandwidth limit. 0
// when it is not known, or when the peer's client is what holds messages up. s.mu is held.
func (s *Session) linkSpeed() float64 {
	o := &s.out
	if int64(o.credit)-int64(o.spent) < minCutBytes && o.base-min(o.peerConsumed, o.base) > o.next-o.base {
		return 0
	}
	sum := 0.0
	for _, p := range s.paths {
		if p.state == PathActive {
			sum += p.rate
		}
	}
	if s.port == nil {
		return sum
	}
	if limit := s.port.limit.rateAt(time.Now()); limit > 0 && (sum == 0 || limit < sum) {
		return limit
	}
	return sum
}
