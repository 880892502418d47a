package mirror

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// lazyVolume is a primary whose background does nothing by itself.
func lazyVolume(t *testing.T, o VolumeOptions) *Volume {
	t.Helper()
	h := newHost(t, RolePrimary)
	o.SyncInterval, o.SyncBytes, o.ApplyInterval = time.Hour, 1<<40, time.Hour
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Abort() })
	return v
}

func TestVolumeStats(t *testing.T) {
	began := time.Now()
	v := lazyVolume(t, VolumeOptions{Now: func() time.Time { return began.Add(-time.Minute) }})
	p := make([]byte, 4096)
	for i := range 10 { // two blocks, five times each
		if _, err := v.WriteAt(p, int64(i%2)*4096); err != nil {
			t.Fatal(err)
		}
	}
	s := v.Stats()
	if s.OverlayBytes != 8192 || s.OverlayExtents != 2 || s.AbsorbedBytes != 0 {
		t.Errorf("overlay: %d bytes, %d extents, %d absorbed", s.OverlayBytes, s.OverlayExtents, s.AbsorbedBytes)
	}
	log := 10 * journal.RecordSize(4096)
	if s.UnappliedBytes != log || s.UsedBytes != log || s.PinnedBytes != log || s.Log.Records != 10 {
		t.Errorf("%d bytes not applied, %d used, %d pinned, want %d; %d records", s.UnappliedBytes, s.UsedBytes, s.PinnedBytes, log, s.Log.Records)
	}
	if s.UnappliedAge < time.Minute || s.UnappliedAge > time.Minute+time.Since(began) {
		t.Errorf("age %v", s.UnappliedAge)
	}
	h := v.newHold("somebody", firstLSN, func() {})
	if err := v.settle(); err != nil {
		t.Fatal(err)
	}
	s = v.Stats()
	if s.OverlayBytes != 0 || s.AbsorbedBytes != 8*4096 || s.UnappliedBytes != 0 || s.UnappliedAge != 0 || s.Log.Anchors == 0 {
		t.Errorf("applied: overlay %d bytes, %d absorbed, %d not applied since %v", s.OverlayBytes, s.AbsorbedBytes, s.UnappliedBytes, s.UnappliedAge)
	}
	if s.UsedBytes != log || s.PinnedBytes != log {
		t.Errorf("applied and held by a follower: %d used, %d pinned, want %d", s.UsedBytes, s.PinnedBytes, log)
	}
	h.release()
	if s = v.Stats(); s.PinnedBytes != 0 || s.FullIn >= 0 {
		t.Errorf("released: %d pinned, full in %v", s.PinnedBytes, s.FullIn)
	}
}

// The rate follows the log within seconds and fades when nobody looks after it.
func TestPulse(t *testing.T) {
	var p pulse
	now := time.Unix(1000, 0)
	head := journal.LSN(1 << 20)
	if p.rate(now) != 0 {
		t.Error("a rate before the first beat")
	}
	for range 20 {
		p.beat(head, now)
		now, head = now.Add(time.Second), head+1000
	}
	if r := p.rate(now); math.Abs(r-1000) > 20 {
		t.Errorf("1000 bytes a second for 20 s: %v", r)
	}
	p.beat(8, now) // the log was cut
	if r := p.rate(now); math.Abs(r-1000) > 20 {
		t.Errorf("after a cut: %v", r)
	}
	if r := p.rate(now.Add(30 * time.Second)); r > 1 {
		t.Errorf("half a minute without a beat: %v", r)
	}
	for range 20 {
		now = now.Add(time.Second)
		p.beat(8, now)
	}
	if r := p.rate(now); r > 5 {
		t.Errorf("nothing written for 20 s: %v", r)
	}
}

// How long the ring lasts, and the words that all of this has in the status.
func TestLogStatus(t *testing.T) {
	v := lazyVolume(t, VolumeOptions{})
	ws := []blockdev.Write{{Data: make([]byte, 8192)}, {Offset: 4096, Data: make([]byte, 4096)}}
	v.WriteBatch(ws)
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	v.pulse.beat(1<<20, now.Add(-time.Second)) // nobody else's: the background sleeps
	v.pulse.beat(2<<20, now)
	s := v.Stats()
	room := float64(v.log.Capacity() - journal.Reserve - s.PinnedBytes)
	if want := room / s.WriteBytesPerSecond; s.WriteBytesPerSecond < 1 || math.Abs(s.FullIn.Seconds()/want-1) > 1e-6 {
		t.Errorf("full in %v at %v bytes/s with %v left", s.FullIn, s.WriteBytesPerSecond, room)
	}
	l := LogStatus{}
	l.fill(&s)
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]float64{
		"overlay_bytes": 8192, "absorbed_bytes": 0, "unapplied_bytes": float64(s.UnappliedBytes), "used_bytes": float64(s.UsedBytes),
		"full_in_seconds": s.FullIn.Seconds(), "appends": 1, "records": 2, "record_bytes": float64(s.UsedBytes),
	} {
		if m[key] != want {
			t.Errorf("%s: %v, want %v", key, m[key], want)
		}
	}
	for key, least := range map[string]float64{"records_in_group": 2, "bytes_in_group": 12288, "append_us": 0.1, "fdatasync_us": 0} {
		d, ok := m[key].(map[string]any)
		if !ok || d["count"] != 1.0 || d["p50"].(float64) < least || d["max"] != d["p999"] {
			t.Errorf("%s: %v", key, m[key])
		}
	}
}
