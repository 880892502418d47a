package dataporttest

import "slices"

// damage is done to a direction of a link, once, after so many more bytes of whatever connection.
type damage struct {
	after  int64
	bit    byte   // to be flipped
	insert []byte // to be put in
	cut    bool   // the stream ends here
}

// FlipBit flips one bit (a mask) of the byte that is after bytes from now, in each of the directions d.
func (n *Net) FlipBit(addr string, d Direction, after int, bit byte) {
	n.damage(addr, d, damage{after: int64(after), bit: bit})
}

// Insert puts garbage into the stream, after bytes from now.
func (n *Net) Insert(addr string, d Direction, after int, garbage []byte) {
	n.damage(addr, d, damage{after: int64(after), insert: slices.Clone(garbage)})
}

// Truncate ends a connection's stream after bytes from now, in the middle of whatever is written then; the rest of it
// goes nowhere.
func (n *Net) Truncate(addr string, d Direction, after int) {
	n.damage(addr, d, damage{after: int64(after), cut: true})
}

func (n *Net) damage(addr string, d Direction, what damage) {
	n.set(addr, func(l *link) {
		l.each(d, func(w *way) { w.damage = append(w.damage, what) })
	})
}

// Spare takes back the damage that is ordered and not done yet.
func (n *Net) Spare(addr string) {
	n.set(addr, func(l *link) {
		l.each(Both, func(w *way) { w.damage = nil })
	})
}

// mangle does to b what is due, and says whether the stream ends with what is left of it.
func (w *way) mangle(b []byte) (out []byte, cut bool) {
	if len(w.damage) == 0 {
		return b, false
	}
	n := int64(len(b))
	var due []damage
	rest := w.damage[:0]
	for _, d := range w.damage {
		if d.after < n {
			due = append(due, d)
		} else {
			d.after -= n
			rest = append(rest, d)
		}
	}
	w.damage = rest
	if len(due) == 0 {
		return b, false
	}
	slices.SortStableFunc(due, func(a, b damage) int { return int(b.after - a.after) }) // from behind: places stay right
	b = slices.Clone(b)
	for _, d := range due {
		at := int(d.after)
		switch {
		case d.cut:
			b, cut = b[:min(at, len(b))], true
		case at >= len(b): // cut away
		case d.insert != nil:
			b = slices.Insert(b, at, d.insert...)
		default:
			b[at] ^= d.bit
		}
	}
	return b, cut
}
