package control

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mirror-agent/blockdev/histogram"
	"mirror-agent/mirror"
)

// gathering turns one look at the agent into metrics.
type gathering struct {
	ch     chan<- prometheus.Metric
	mirror string
	now    time.Time
}

func (g *gathering) send(m *metric, kind prometheus.ValueType, v float64, labels []string) {
	g.ch <- prometheus.MustNewConstMetric(m.desc, kind, v, append([]string{g.mirror}, labels...)...)
}

func (g *gathering) gauge(m *metric, v float64, labels ...string) {
	g.send(m, prometheus.GaugeValue, v, labels)
}

func (g *gathering) counter(m *metric, v uint64, labels ...string) {
	g.send(m, prometheus.CounterValue, float64(v), labels)
}

// one is a metric for each possible word of a label, its last one, of which one is true now.
func (g *gathering) one(m *metric, words []string, is string, labels ...string) {
	known := false
	for _, w := range words {
		known = known || w == is
		g.gauge(m, truth(w == is), append(labels[:len(labels):len(labels)], w)...)
	}
	if !known && is != "" {
		g.gauge(m, 1, append(labels[:len(labels):len(labels)], is)...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (g *gathering) moment(m *metric, t time.Time) {
	if !t.IsZero() {
		g.gauge(m, float64(t.UnixNano())/1e9)
	}
}

// A scrape has a bucket for every power of two in these spans, which the recorders count exactly.
const (
	leastTimeBit, mostTimeBit = 12, 35 // 4 µs to 34 s, in nanoseconds
	leastSizeBit, mostSizeBit = 0, 27  // to 128 MiB
)

// histogram gives s; its values in unit, as 1e9 for nanoseconds, are what the metric's name says.
func (g *gathering) histogram(m *metric, s *histogram.Snapshot, unit float64, from, to int, labels ...string) {
	buckets := make(map[float64]uint64, to-from+1)
	for bit := from; bit <= to; bit++ {
		// Whole numbers below a power of two are those up to the one before.
		buckets[float64(uint64(1)<<bit-1)/unit] = s.Below(bit)
	}
	g.ch <- prometheus.MustNewConstHistogram(m.desc, s.Count, float64(s.Sum)/unit, buckets, append([]string{g.mirror}, labels...)...)
}

func (g *gathering) status(s *mirror.Status) {
	g.one(role, mirror.StatesOf(mirror.SubjectRole), s.Role)
	g.one(state, mirror.StatesOf(mirror.SubjectMirror), s.State)
	g.moment(stateSince, s.Since)
	g.one(mode, []string{string(mirror.ModeAsync), string(mirror.ModeFlush), string(mirror.ModeReceive), string(mirror.ModeDurable)}, s.Mode)
	var major, minor uint32
	if n, _ := fmt.Sscanf(s.Generation, "%d.%d", &major, &minor); n == 2 {
		g.gauge(generationMajor, float64(major))
		g.gauge(generationMinor, float64(minor))
	}
	g.gauge(deviceSize, float64(s.Device.SizeBytes))
	g.gauge(alarms, float64(len(s.Alarms)))
	count := map[string]int{}
	for _, a := range s.Alarms {
		count[a.Name]++
	}
	for _, name := range mirror.AlarmNames() {
		g.gauge(alarm, float64(count[name]), name)
		delete(count, name)
	}
	for name, n := range count {
		g.gauge(alarm, float64(n), name)
	}
	if n := s.Network; n != nil {
		g.counter(messageBytes, n.SentBytes, "plain")
		g.counter(messageBytes, n.SentPacked, "sent")
		if n.BandwidthNow > 0 {
			g.gauge(bandwidthLimit, n.BandwidthNow)
		}
	}
}

func (g *gathering) log(l *mirror.LogStatus, v *mirror.VolumeStats) {
	g.gauge(logSize, float64(l.SizeBytes))
	g.gauge(logUsed, float64(v.UsedBytes))
	g.gauge(logPinned, float64(v.PinnedBytes))
	full := math.Inf(1)
	if v.FullIn >= 0 {
		full = v.FullIn.Seconds()
	}
	g.gauge(logFull, full)
	g.gauge(logRate, v.WriteBytesPerSecond)
	for _, p := range []struct {
		name string
		lsn  uint64
	}{{"head", l.Head}, {"durable", l.Durable}, {"committed", l.Committed}, {"applied", l.Applied}, {"tail", l.Tail}} {
		g.gauge(logPosition, float64(p.lsn), p.name)
	}
	g.counter(logRecords, v.Log.Records)
	g.counter(logRecordBytes, v.Log.Bytes)
	g.counter(logAppends, v.Log.Appends)
	g.counter(logAnchors, v.Log.Anchors)
	g.histogram(logAppendTime, &v.Log.AppendTime, 1e9, leastTimeBit, mostTimeBit)
	g.histogram(logSyncTime, &v.Log.SyncTime, 1e9, leastTimeBit, mostTimeBit)
	g.histogram(logGroupRecords, &v.Log.GroupRecords, 1, leastSizeBit, mostSizeBit/2)
	g.histogram(logGroupBytes, &v.Log.GroupBytes, 1, leastTimeBit/2, mostSizeBit)
	g.gauge(applierLag, float64(v.UnappliedBytes))
	g.gauge(applierLagTime, v.UnappliedAge.Seconds())
	g.gauge(overlayBytes, float64(v.OverlayBytes))
	g.gauge(overlayExtents, float64(v.OverlayExtents))
	g.gauge(overlayLimit, float64(v.OverlayLimit))
	g.counter(overlayAbsorbed, uint64(max(v.AbsorbedBytes, 0)))
	g.gauge(writersWaiting, float64(v.WritersWaiting))
}

func (g *gathering) clients(n *mirror.FrontStats) {
	g.gauge(nbdConnections, float64(n.Connections))
	for _, c := range []struct {
		name string
		n    uint64
	}{{"read", n.Reads}, {"write", n.Writes}, {"flush", n.Flushes}, {"trim", n.Trims}, {"write_zeroes", n.Zeroes}} {
		g.counter(nbdRequests, c.n, c.name)
	}
	g.counter(nbdErrors, n.Errors)
	g.counter(nbdReadBytes, n.ReadBytes)
	g.counter(nbdWrittenBytes, n.WrittenBytes)
	for i := range n.Times {
		g.histogram(nbdTime, &n.Times[i].Time, 1e9, leastTimeBit, mostTimeBit, n.Times[i].Command)
	}
}

func (g *gathering) followers(s *mirror.Status) {
	for i := range s.Followers {
		f := &s.Followers[i]
		who := []string{f.Target, f.Kind}
		g.one(followerState, mirror.StatesOf(mirror.SubjectFollower), f.State, who...)
		g.gauge(followerActive, truth(f.Active), who...)
		if f.Durable > 0 {
			g.gauge(followerRPO, f.RPOSeconds, who...)
			if f.Active {
				g.gauge(rpo, f.RPOSeconds)
			}
		}
		g.gauge(followerLag, float64(f.LagBytes), who...)
		g.gauge(followerDirty, float64(max(f.DirtyBytes, 0)), who...)
		g.gauge(followerReceived, float64(f.Received), who...)
		g.gauge(followerDurable, float64(f.Durable), who...)
		g.resync(f.Target, f.Resync)
		g.paths(f.Target, f.Paths)
	}
	if f := s.Source; f != nil {
		g.gauge(sourceConnected, truth(f.Connected), f.Peer)
		if f.Connected {
			g.gauge(sourceLag, float64(f.SourceHead-min(f.SourceHead, f.Durable)), f.Peer)
		}
		g.resync(f.Peer, f.Resync)
		g.paths(f.Peer, f.Paths)
	}
}

func (g *gathering) resync(peer string, p *mirror.Progress) {
	if p == nil {
		return
	}
	g.gauge(resyncDone, float64(p.DoneBytes), peer)
	g.gauge(resyncTotal, float64(p.TotalBytes), peer)
	g.gauge(resyncSent, float64(p.SentBytes), peer)
	if p.YieldsTo > 0 {
		g.gauge(resyncYields, float64(p.YieldsTo), peer)
	}
}

func (g *gathering) paths(peer string, paths []mirror.PathStatus) {
	for i := range paths {
		p := &paths[i]
		who := []string{peer, strconv.Itoa(p.ID), p.Remote}
		g.one(pathState, mirror.StatesOf(mirror.SubjectPath), p.State, who...)
		g.gauge(pathRTT, float64(p.RTTMicros)/1e6, who...)
		g.gauge(pathRate, p.Rate, who...)
		g.counter(pathSent, p.BytesSent, who...)
		g.counter(pathReceived, p.BytesReceived, who...)
		g.counter(pathResent, p.ResentFrames, who...)
		g.gauge(pathUnacked, float64(p.UnackedBytes), who...)
	}
}

func (g *gathering) checks(s *mirror.Status) {
	if v := s.Verify; v != nil {
		g.one(verifyState, []string{
			mirror.VerifyRunning, mirror.VerifyWaiting, mirror.VerifyDone, mirror.VerifyStopped, mirror.VerifyInterrupted, mirror.VerifyFailed,
		}, v.State)
		g.gauge(verifyDone, float64(v.DoneBytes))
		g.gauge(verifyTotal, float64(v.TotalBytes))
		g.gauge(verifyDifferent, float64(v.DifferentBytes))
		g.gauge(verifyRepaired, float64(v.RepairedBytes))
		g.moment(verifyEnd, v.Ended)
	}
	if c := s.Scrub; c != nil {
		g.gauge(scrubRunning, truth(c.Running))
		g.gauge(scrubDone, float64(c.DoneBytes))
		g.gauge(scrubFound, float64(c.Found))
		g.gauge(scrubMended, float64(c.Mended))
		g.moment(scrubEnd, c.Ended)
	}
}

func (g *gathering) hooks(all []HookRuns) {
	for i, h := range all {
		n := strconv.Itoa(i + 1)
		for result, count := range map[string]uint64{"done": h.Done, "failed": h.Failed, "killed": h.Killed} {
			g.counter(hookRuns, count, n, h.Events, result)
		}
		g.counter(hookMissed, h.Missed, n, h.Events)
	}
}
