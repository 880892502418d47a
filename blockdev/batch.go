package blockdev

import (
	"errors"
	"sync"
)

// maxVector bounds the buffers that are joined for one WritevAt; Linux takes 1024 at once.
const maxVector = 256

// joints are kept from one WritevAt to the next.
var joints = sync.Pool{New: func() any { return new([maxVector][]byte) }}

// ApplyBatch runs a group of writes on any device, in order: by WriteBatch when it has one, else one by one, neighbours
// joined into one WritevAt where the device can do that. Writes with Sync set are durable when it returns, by one Sync
// for all of them. The result of each is in its Err.
func ApplyBatch(d Device, ws []Write) {
	if b, ok := d.(BatchWriter); ok {
		b.WriteBatch(ws)
		return
	}
	applyEach(d, ws)
}

// applyEach is ApplyBatch for a device without WriteBatch, and the WriteBatch of devices that have no better way.
func applyEach(d Device, ws []Write) {
	vector, _ := d.(VectorWriter)
	sync := false
	for i := 0; i < len(ws); {
		n := 1
		if vector != nil {
			n = neighbours(ws[i:])
		}
		err := applyRun(d, vector, ws[i:i+n])
		for k := i; k < i+n; k++ {
			ws[k].Err = err
			sync = sync || ws[k].Sync && err == nil
		}
		i += n
	}
	if !sync {
		return
	}
	if err := d.Sync(); err != nil {
		for i := range ws {
			if ws[i].Sync && ws[i].Err == nil {
				ws[i].Err = err
			}
		}
	}
}

// neighbours returns how many of ws from the first on are data that lies end to end on the device; at least 1.
func neighbours(ws []Write) int {
	n := 1
	if ws[0].Zero || ws[0].Trim {
		return n
	}
	end := ws[0].Offset + int64(len(ws[0].Data))
	for n < len(ws) && n < maxVector && !ws[n].Zero && !ws[n].Trim && ws[n].Offset == end && len(ws[n].Data) > 0 {
		end += int64(len(ws[n].Data))
		n++
	}
	return n
}

func applyRun(d Device, vector VectorWriter, ws []Write) error {
	w := &ws[0]
	var err error
	switch {
	case w.Fast && (w.Trim || w.Zero):
		fast, ok := d.(FastZeroer)
		if !ok {
			return errors.ErrUnsupported
		}
		err = fast.ZeroFast(w.Offset, w.Length, w.Trim)
	case w.Trim:
		err = d.Trim(w.Offset, w.Length)
	case w.Zero:
		err = d.Zero(w.Offset, w.Length)
	case len(ws) == 1:
		_, err = d.WriteAt(w.Data, w.Offset)
	default:
		joined := joints.Get().(*[maxVector][]byte)
		bufs := joined[:len(ws)]
		for i := range ws {
			bufs[i] = ws[i].Data
		}
		_, err = vector.WritevAt(bufs, w.Offset)
		clear(bufs) // they are the callers'
		joints.Put(joined)
	}
	return err
}
