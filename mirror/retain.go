package mirror

import "time"

// Retention: records stay in the log, unapplied, for a while, so that a volume can go back to any point of that time.

// retainedLayers is into how many layers the retained part of the log is cut about: reads look into each of them.
const retainedLayers = 32

// freezeDue says whether the active layer has taken records for long enough: what is retained goes by whole layers, and
// there should be few of them.
func (v *Volume) freezeDue(since time.Duration) bool {
	wanted, limit := v.opts.RetainTime, v.opts.RetainBytes
	switch {
	case since < v.opts.ApplyInterval:
		return false
	case wanted == 0 && limit == 0, wanted > 0 && since >= wanted/retainedLayers:
		return true
	}
	_, active, _ := v.overlay.pending()
	return limit > 0 && active >= limit/retainedLayers
}

// ripe says whether a committed layer may be applied: it is old enough, or too much lies behind it, or room or memory is needed.
func (v *Volume) ripe(l *layer) bool {
	wanted, limit := v.opts.RetainTime, v.opts.RetainBytes
	switch {
	case wanted == 0 && limit == 0, v.settling.Load(), v.pressure(), v.retainedTooMuch(), v.overlayFull():
		return true
	case limit > 0 && int64(v.log.Head()-l.end) >= limit:
		return true
	}
	return wanted > 0 && time.Since(l.frozen) >= wanted
}

// retainedTooMuch: with one more layer of unapplied log writers would be slowed, and nothing would drain what they wait for.
func (v *Volume) retainedTooMuch() bool {
	return float64(int64(v.log.Head()-v.log.Applied())+v.layerBytes.Load()) > paceStart*float64(v.log.Capacity())
}
