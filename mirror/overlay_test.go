package mirror

import (
	"testing"

	"pgregory.net/rapid"

	"mirror-agent/journal"
)

// TestOverlayModel: any stream of records, frozen and dropped at any time,
// shows for every byte the newest record that is not dropped.
func TestOverlayModel(t *testing.T) {
	const size = 256
	rapid.Check(t, func(t *rapid.T) {
		at := journal.LSN(8)
		o := newOverlay(at)
		var newest, applied [size]extent // per byte: who wrote it
		layers := [][size]extent{}
		t.Repeat(map[string]func(*rapid.T){
			"record": func(t *rapid.T) {
				off := rapid.Int64Range(0, size-1).Draw(t, "off")
				end := rapid.Int64Range(off+1, size).Draw(t, "end")
				x := extent{off: off, end: end, lsn: at, data: at * 1000}
				if rapid.Bool().Draw(t, "zero") {
					x.zero, x.data = true, 0
				}
				for i := off; i < end; i++ {
					newest[i] = x
				}
				at += 8
				o.add([]extent{x}, at, rapid.SampledFrom([]int64{8, 64, 1 << 30}).Draw(t, "layer"), rapid.SampledFrom([]int{3, 1 << 30}).Draw(t, "extents"))
				for len(layers) < len(o.frozen) {
					layers = append(layers, newest)
				}
			},
			"freeze": func(*rapid.T) {
				o.freeze()
				for len(layers) < len(o.frozen) {
					layers = append(layers, newest)
				}
			},
			"drop": func(t *rapid.T) {
				if l := o.oldest(); l != nil {
					o.drop(l)
					applied, layers = layers[0], layers[1:]
				}
			},
			"": func(t *rapid.T) {
				held, count := int64(0), 0
				for _, l := range append([]*layer{o.active}, o.frozen...) {
					l.extents.Scan(func(x extent) bool { held += x.len(); count++; return true })
				}
				if _, _, n := o.pending(); n != count {
					t.Fatalf("%d extents counted, there are %d", n, count)
				}
				if h, absorbed := o.volume(); h != held || absorbed < 0 {
					t.Fatalf("%d bytes held, the layers hold %d; %d absorbed", h, held, absorbed)
				}
				off := rapid.Int64Range(0, size-1).Draw(t, "from")
				end := rapid.Int64Range(off+1, size).Draw(t, "to")
				next := off
				for _, p := range o.lookup(nil, off, end) {
					if p.off != next || p.end <= p.off || p.end > end {
						t.Fatalf("piece %+v, expected one at %d", p, next)
					}
					next = p.end
					for i := p.off; i < p.end; i++ {
						want := newest[i]
						switch {
						case want == applied[i]: // dropped, or never written
							if !p.base {
								t.Fatalf("byte %d comes from %+v, it is applied", i, p)
							}
						case p.base:
							t.Fatalf("byte %d comes from the device, it is in record %+v", i, want)
						case p.lsn != want.lsn || p.zero != want.zero:
							t.Fatalf("byte %d comes from %+v, want %+v", i, p, want)
						case !p.zero && p.data+journal.LSN(i-p.off) != want.data+journal.LSN(i-want.off):
							t.Fatalf("byte %d: at %d of the log, want %d", i, p.data+journal.LSN(i-p.off), want.data+journal.LSN(i-want.off))
						}
					}
				}
				if next != end {
					t.Fatalf("pieces end at %d instead of %d", next, end)
				}
			},
		})
	})
}
