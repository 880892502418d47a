package dataport

import (
	"testing"
	"time"
)

// machine stands for the processor: what packing costs on it, in nanoseconds per byte, and how the data shrinks.
type machine struct {
	s2, zstd           float64
	s2Ratio, zstdRatio float64
}

// feed gives the packer messages as a session would, without packing any, and returns how many went by which algorithm.
func (m machine) feed(k *packer, link float64, messages int, data []byte) (n [packEnd]int) {
	for range messages {
		a := k.choose([][]byte{data}, len(data), link)
		n[a]++
		cost, ratio := m.s2, m.s2Ratio
		if a == packZstd {
			cost, ratio = m.zstd, m.zstdRatio
		}
		var b *buffer
		if a != packNone && ratio < 1-1.0/worthOneIn {
			b = &buffer{data: make([]byte, int(ratio*float64(len(data))))}
		}
		k.note(a, len(data), b, time.Duration(cost*float64(len(data))))
	}
	return n
}

const mbit = 1e6 / 8

func TestAutoWeighsLinkAndProcessor(t *testing.T) {
	server := machine{s2: 1, zstd: 4, s2Ratio: 0.5, zstdRatio: 0.35}
	for _, row := range []struct {
		name  string
		link  float64
		m     machine
		takes packSet
		want  packAlgorithm
	}{
		{"loopback", 4e9, server, packAll, packNone},
		{"10 Gbit/s", 10_000 * mbit, server, packAll, packNone},
		{"1 Gbit/s", 1000 * mbit, server, packAll, packS2},
		{"100 Mbit/s", 100 * mbit, server, packAll, packZstd},
		{"20 Mbit/s", 20 * mbit, server, packAll, packZstd},
		{"20 Mbit/s, the peer takes s2 only", 20 * mbit, server, 1 << (packS2 - 1), packS2},
		{"20 Mbit/s, the peer takes nothing", 20 * mbit, server, 0, packNone},
		{"speed unknown", 0, server, packAll, packNone},
		{"1 Gbit/s, a processor that is busy", 1000 * mbit, machine{s2: 20, zstd: 60, s2Ratio: 0.5, zstdRatio: 0.35}, packAll, packNone},
		{"20 Mbit/s, zstd gains nothing over s2", 20 * mbit, machine{s2: 1, zstd: 4, s2Ratio: 0.01, zstdRatio: 0.01}, packAll, packS2},
		{"20 Mbit/s, only zstd shrinks it", 20 * mbit, machine{s2: 1, zstd: 4, s2Ratio: 1, zstdRatio: 0.75}, packAll, packZstd},
	} {
		t.Run(row.name, func(t *testing.T) {
			k := newPacker(nil, CompressAuto, row.takes)
			row.m.feed(k, row.link, 200, prose(64<<10)) // learns
			n := row.m.feed(k, row.link, 1000, prose(64<<10))
			if n[row.want] < 900 {
				t.Errorf("of 1000 messages %d went plain, %d by s2, %d by zstd; want them by %s", n[packNone], n[packS2], n[packZstd], row.want.compression())
			}
		})
	}
}

// It follows what changes: the link, the processor, the data.
func TestAutoFollows(t *testing.T) {
	m := machine{s2: 1, zstd: 4, s2Ratio: 0.5, zstdRatio: 0.35}
	k := newPacker(nil, CompressAuto, packAll)
	const link = 1000 * mbit
	shrinks, random := prose(256<<10), noise(256<<10, 1)
	if n := m.feed(k, link, 100, shrinks); n[packS2] < 95 {
		t.Fatalf("at first %v", n)
	}
	if n := m.feed(k, link*20, 100, shrinks); n[packNone] != 100 {
		t.Errorf("the link became fast: %v", n)
	}
	if n := m.feed(k, link, 100, shrinks); n[packS2] < 95 {
		t.Errorf("the link is slow again: %v", n)
	}
	starved := m
	starved.s2, starved.zstd = 40, 160
	if n := starved.feed(k, link, 250, shrinks); n[packNone] < 230 {
		t.Errorf("the processor became slow: %v", n)
	}
	// What was measured is forgotten some day.
	if n := m.feed(k, link, 1000, shrinks); n[packS2] < 600 {
		t.Errorf("the processor is quick again: %v", n)
	}
	none := machine{s2: 0.1, zstd: 0.2, s2Ratio: 1, zstdRatio: 1}
	if n := none.feed(k, link, 1280, random); n[packS2]+n[packZstd] == 0 || n[packS2]+n[packZstd] > 12 {
		t.Errorf("of 320 MiB of noise in 1280 messages %v were tried, want a few", n)
	}
	if n := m.feed(k, link, 100, shrinks); n[packS2] < 95 {
		t.Errorf("after the noise %v", n)
	}
	mixed := 0
	for range 100 {
		none.feed(k, link, 1, random)
		mixed += m.feed(k, link, 1, shrinks)[packS2]
	}
	if mixed < 95 {
		t.Errorf("of 100 messages that shrink, among noise, %d were packed", mixed)
	}
}

// Data that looks even and does not shrink either: tries become rare, and never end.
func TestAutoGivesUpOnWhatDoesNotShrink(t *testing.T) {
	k := newPacker(nil, CompressAuto, packAll)
	stubborn := machine{s2: 1, zstd: 4, s2Ratio: 1, zstdRatio: 1}
	data := prose(64 << 10) // looks as if, and is said not to
	n := stubborn.feed(k, 50*mbit, 16*100, data)
	if tried := n[packS2] + n[packZstd]; tried < 3 || tried > 20 {
		t.Errorf("of 100 MiB %d messages were tried", tried)
	}
	if n := stubborn.feed(k, 50*mbit, 16*1000, data); n[packS2]+n[packZstd] < 10 || n[packS2]+n[packZstd] > 60 {
		t.Errorf("of the next 1000 MiB %v", n)
	}
}

// Repeated noise looks random to the sample and shrinks well: a try finds out.
func TestAutoTriesWhatLooksRandom(t *testing.T) {
	k := newPacker(nil, CompressAuto, packAll)
	m := machine{s2: 1, zstd: 4, s2Ratio: 0.1, zstdRatio: 0.1}
	if n := m.feed(k, 50*mbit, 16*64, noise(64<<10, 1)); n[packS2]+n[packZstd] < 500 {
		t.Errorf("of 64 MiB in 1024 messages only %v were packed", n)
	}
}

func TestLooksRandom(t *testing.T) {
	half := append(noise(64<<10, 5), make([]byte, 64<<10)...)
	for _, row := range []struct {
		name  string
		parts [][]byte
		want  bool
	}{
		{"noise", [][]byte{noise(64<<10, 1)}, true},
		{"noise of 4 KiB", [][]byte{noise(4<<10, 2)}, true},
		{"noise in pieces", [][]byte{noise(5000, 3), nil, noise(100, 4), noise(60_000, 5)}, true},
		{"what was packed already", [][]byte{newCodec().pack(packZstd, [][]byte{prose(1 << 20)}, 1<<20, 1).data}, true},
		{"prose", [][]byte{prose(64 << 10)}, false},
		{"zeroes", [][]byte{make([]byte, 64<<10)}, false},
		{"half of it zeroes", [][]byte{half}, false},
		{"half of it zeroes, in pieces", [][]byte{half[:1000], half[1000:70_000], half[70_000:]}, false},
	} {
		size := 0
		for _, p := range row.parts {
			size += len(p)
		}
		if got := looksRandom(row.parts, size); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
	for seed := range uint64(2000) {
		if !looksRandom([][]byte{noise(8<<10, seed)}, 8<<10) {
			t.Errorf("noise of seed %d does not look random", seed)
		}
	}
}

func TestFixedCompressionTriesEverything(t *testing.T) {
	for mode, a := range map[Compression]packAlgorithm{CompressS2: packS2, CompressZstd: packZstd} {
		k := newPacker(nil, mode, packAll)
		for range 50 {
			if got := k.choose([][]byte{noise(64<<10, 1)}, 64<<10, 0); got != a {
				t.Fatalf("%s: %d", mode, got)
			}
			k.note(a, 64<<10, nil, time.Millisecond)
		}
		if got := k.choose(nil, minPackBytes-1, 1); got != packNone {
			t.Errorf("%s: a tiny message goes by %d", mode, got)
		}
		if got := newPacker(nil, mode, packAll&^(1<<(a-1))).choose(nil, 64<<10, 1); got != packNone {
			t.Errorf("%s: a peer that does not take it gets %d", mode, got)
		}
	}
	for _, mode := range []Compression{"", CompressNone} {
		if newPacker(nil, mode, packAll) != nil {
			t.Errorf("%q packs", mode)
		}
	}
}
